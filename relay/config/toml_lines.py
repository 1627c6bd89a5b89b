"""The line of each key and table of a TOML document, which tomllib does not return.

Scans a document that tomllib has accepted, so it does not check anything; it only finds where keys, values and tables begin and end. If the
scan finds other keys than tomllib, it returns no lines: a wrong line is worse than none.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any, Final

Path = tuple[str | int, ...]  # names of keys; a number for an item of an array, from 1 on

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_STRING: Final = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"""(?:"{0,2})'  # the string itself may end in one or two quotes
    r"|'''(?:[^']|'(?!''))*'''(?:'{0,2})"
    r'|"(?:[^"\\]|\\.)*"'
    r"|'[^']*'",
    re.DOTALL,
)
_PLAIN: Final = re.compile(r"[^,\]}\n#]+")  # a number, a truth value, a date, perhaps with a space before its time
BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_DOT: Final = re.compile(r"[ \t]*\.[ \t]*")
_AFTER_KEY: Final = re.compile(r"[ \t]*=[ \t]*")


def lines_of(text: str) -> dict[Path, int]:
    """Line numbers, from 1 on, of all keys, tables and items of arrays; {} if the scan fails.

    The line of a table is that of its header, or without a header that of its first key. Raises tomllib.TOMLDecodeError for invalid TOML.
    """
    scan = _Scan(text)
    try:
        scan.document()
    except (_ScanFailed, RecursionError):
        return {}
    return scan.lines if scan.lines.keys() == set(_paths((), tomllib.loads(text))) else {}


def _paths(path: Path, value: Any) -> Iterator[Path]:
    if path:
        yield path
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _paths((*path, name), item)
    elif isinstance(value, list):
        for number, item in enumerate(value, 1):
            yield from _paths((*path, number), item)


class _ScanFailed(Exception):
    """The scan met something that it does not expect."""


class _Scan:
    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._text = text
        self._at = 0
        self._line = 1
        self._counted = 0  # up to where line ends were counted
        self._tables: dict[Path, int] = {}  # arrays of tables, and how many headers each has had

    def document(self) -> None:
        table: Path = ()
        while self._blank():
            if self._text.startswith("[", self._at):
                table = self._header()
            else:
                self._pair(table)

    def _blank(self) -> bool:
        """Skips white space and comments; False at the end of the document."""
        self._take(_BLANK)
        return self._at < len(self._text)

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise _ScanFailed
        self._at = found.end()
        return found[0]

    def _literal(self, text: str) -> None:
        if not self._text.startswith(text, self._at):
            raise _ScanFailed
        self._at += len(text)

    def _here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def _header(self) -> Path:
        many = self._text.startswith("[[", self._at)
        line = self._here()
        self._at += 2 if many else 1
        self._take(_BLANK)
        names = self._key()
        self._take(_BLANK)
        self._literal("]]" if many else "]")
        path: Path = ()
        for number, name in enumerate(names, 1):
            path = (*path, name)
            last = number == len(names)
            if not last:
                self.lines.setdefault(path, line)
            if last and many:
                self.lines.setdefault(path, line)
                self._tables[path] = self._tables.get(path, 0) + 1
            if path in self._tables:
                path = (*path, self._tables[path])
        self.lines[path] = line  # also of a table that was known without its header, by [a.b] before [a]
        return path

    def _key(self) -> list[str]:
        names = []
        while True:
            if self._text.startswith(('"', "'"), self._at):
                names.append(str(tomllib.loads(f"key = {self._take(_STRING)}")["key"]))
            else:
                names.append(self._take(BARE_KEY))
            if _DOT.match(self._text, self._at) is None:
                return names
            self._take(_DOT)

    def _pair(self, table: Path) -> None:
        line = self._here()
        path = table
        for name in self._key():
            path = (*path, name)
            self.lines.setdefault(path, line)
        self._take(_AFTER_KEY)
        self._value(path)

    def _value(self, path: Path) -> None:
        if self._text.startswith("[", self._at):
            self._array(path)
        elif self._text.startswith("{", self._at):
            self._inline_table(path)
        elif self._text.startswith(('"', "'"), self._at):
            self._take(_STRING)
        else:
            self._take(_PLAIN)

    def _array(self, path: Path) -> None:
        self._literal("[")
        number = 0
        while self._blank() and not self._text.startswith("]", self._at):
            number += 1
            self.lines[*path, number] = self._here()
            self._value((*path, number))
            self._comma("]")
        self._literal("]")

    def _inline_table(self, path: Path) -> None:
        self._literal("{")
        while self._blank() and not self._text.startswith("}", self._at):
            self._pair(path)
            self._comma("}")
        self._literal("}")

    def _comma(self, end: str) -> None:
        if self._blank() and not self._text.startswith(end, self._at):
            self._literal(",")
