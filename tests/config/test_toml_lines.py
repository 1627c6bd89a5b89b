"""The line of each key of a TOML document: exact for every document, or none at all."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config import toml_lines
from relay.config.toml_lines import lines_of

DOCUMENT = '''\
# relay.toml
user = "git"
motd = """
[not.a.table]
x = 1 \\"""
""""                       # ends in a quote of its own
paths = [ # one
  'a]', "b#",

  { name = "c", deep.er = [1, 2] },
  1979-05-27 07:32:00,
]
limits.a = 1
limits . "b.c" = 2

[upstreams.main.user_certificate]
ca_key = """x"""

[ upstreams . 'main' ]
addresses = ["a:22"]

[[rule]]
who = ["*"]

[[rule]]
  who = [
    "*",
  ]

  [rule.sub]
  x = \'\'\'
[[rule]]
\'\'\'
  [[rule.sub.item]]
  [[rule.sub.item]]
  y = 1
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("user",), 2),
        (("motd",), 3),
        (("paths",), 7),
        (("paths", 1), 8),
        (("paths", 2), 8),
        (("paths", 3, "deep", "er", 2), 10),
        (("paths", 4), 11),
        (("limits",), 13),
        (("limits", "a"), 13),
        (("limits", "b.c"), 14),
        (("upstreams",), 16),
        (("upstreams", "main"), 19),
        (("upstreams", "main", "user_certificate"), 16),
        (("upstreams", "main", "user_certificate", "ca_key"), 17),
        (("upstreams", "main", "addresses"), 20),
        (("rule",), 22),
        (("rule", 1), 22),
        (("rule", 2), 25),
        (("rule", 2, "who"), 26),
        (("rule", 2, "who", 1), 27),
        (("rule", 2, "sub"), 30),
        (("rule", 2, "sub", "x"), 31),
        (("rule", 2, "sub", "item"), 34),
        (("rule", 2, "sub", "item", 2), 35),
        (("rule", 2, "sub", "item", 2, "y"), 36),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_where_a_key_is_written(path: tuple[str | int, ...], line: int, end: str) -> None:
    assert lines_of(DOCUMENT.replace("\n", end))[path] == line


def test_all_of_a_document_is_found_or_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(lines_of(DOCUMENT)) > 25
    monkeypatch.setattr(toml_lines, "_PLAIN", toml_lines.BARE_KEY)  # a scan that misreads dates
    assert lines_of(DOCUMENT) == {}
    monkeypatch.setattr(toml_lines._Scan, "document", lambda self: None)  # a scan that finds nothing
    assert lines_of(DOCUMENT) == {}


def test_what_is_nested_too_deeply_has_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_deep(self: object, path: object) -> None:
        raise RecursionError

    monkeypatch.setattr(toml_lines._Scan, "_value", too_deep)
    assert lines_of("a = 1") == {}


@pytest.mark.parametrize("text", ["a = ", "[a\nb = 1", "a = 1\na = 2"])
def test_what_is_no_toml_is_refused(text: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError):
        assert lines_of(text) == {}
        tomllib.loads(text)


# -- against documents that are written together with their lines --------------------------------------------------------

_TRICKY = st.text(st.sampled_from("ab \"'\\\n#[]{}=.,ü"), max_size=6)
_NAME = st.text(st.sampled_from("ab-_1"), min_size=1, max_size=2) | _TRICKY
_SCALARS = st.sampled_from(["1", "-2.5e3", "true", "1979-05-27", "1979-05-27 07:32:00", "07:32:00", "0xff", "inf", "''", '""'])


class Writer:
    """Writes a document, and records each key with its line."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.text = ""
        self.lines: dict[tuple[str | int, ...], int] = {}

    def line(self) -> int:
        return self.text.count("\n") + 1

    def blank(self, within_lines: bool) -> None:
        more = ["\n", "\r\n", ' # ] } = "\n', "\n\n"] if within_lines else []
        self.text += self.draw(st.sampled_from(["", " ", "\t", *more]))

    def name(self, name: str) -> None:
        bare = name != "" and all(letter in "ab-_1" for letter in name)
        if bare and self.draw(st.booleans()):
            self.text += name
        elif "'" not in name and "\n" not in name and self.draw(st.booleans()):
            self.text += f"'{name}'"
        else:
            self.text += json.dumps(name)

    def string(self) -> None:
        text = self.draw(_TRICKY)
        kinds = [json.dumps(text)]
        if "'" not in text and "\n" not in text:
            kinds.append(f"'{text}'")
        if "'''" not in text:
            kinds.append(f"'''{text}'''")
        if "\\" not in text and '"""' not in text:
            kinds.append(f'"""{text}"""')
            kinds.append(f'"""\\\n   {text}\\""""')
        self.text += self.draw(st.sampled_from([kind for kind in kinds if _same_end(kind)]))

    def value(self, path: tuple[str | int, ...], depth: int, in_table: bool) -> None:
        kind = self.draw(st.sampled_from(["scalar", "string", "string", *(["array", "table"] if depth else [])]))
        if kind == "scalar":
            self.text += self.draw(_SCALARS)
        elif kind == "string":
            self.string()
        elif kind == "array":
            self.text += "["
            count = self.draw(st.integers(0, 3))
            for number in range(1, count + 1):
                self.blank(True)
                self.lines[*path, number] = self.line()
                self.value((*path, number), depth - 1, False)
                self.blank(True)
                self.text += "," if number < count or self.draw(st.booleans()) else ""
            self.blank(True)
            self.text += "]"
        else:
            self.text += "{"
            names = self.draw(st.lists(_NAME, max_size=2, unique=True))
            for number, name in enumerate(names):
                self.text += "," if number else ""
                self.blank(False)
                self.pair(path, name, depth - 1)
            self.blank(False)
            self.text += "}"

    def pair(self, table: tuple[str | int, ...], name: str, depth: int) -> None:
        path = (*table, name)
        line = self.line()
        self.lines[path] = line
        self.name(name)
        if self.draw(st.integers(0, 4)) == 0:
            self.blank(False)
            self.text += "."
            self.blank(False)
            inner = self.draw(_NAME)
            self.name(inner)
            path = (*path, inner)
            self.lines[path] = line
        self.blank(False)
        self.text += "="
        self.blank(False)
        self.value(path, depth, True)

    def header(self, names: list[str], many: bool) -> None:
        self.text += "[[" if many else "["
        for number, name in enumerate(names):
            self.text += "." if number else ""
            self.blank(False)
            self.name(name)
            self.blank(False)
        self.text += "]]" if many else "]"

    def table(self, path: tuple[str | int, ...], names: list[str], depth: int) -> None:
        """Writes keys, and the tables below; `names` is `path` as written in a header."""
        children = self.draw(st.lists(_NAME, max_size=4, unique=True))
        tables = self.draw(st.integers(0, len(children))) if depth else 0
        for name in children[tables:]:
            self.blank(True)
            self.pair(path, name, 2)
            self.text += self.draw(st.sampled_from(["\n", " # [x]\n", "\r\n"]))
        for name in children[:tables]:
            inner: tuple[str | int, ...] = (*path, name)
            if self.draw(st.booleans()):
                for number in range(1, self.draw(st.integers(1, 3)) + 1):
                    self.blank(True)
                    self.lines.setdefault(inner, self.line())
                    self.lines[*inner, number] = self.line()
                    self.header([*names, name], True)
                    self.text += "\n"
                    self.table((*inner, number), [*names, name], depth - 1)
            else:
                self.blank(True)
                self.lines[inner] = self.line()
                self.header([*names, name], False)
                self.text += "\n"
                self.table(inner, [*names, name], depth - 1)


def _same_end(kind: str) -> bool:
    """Whether a multi-line string ends at its last three quotes: its content may end in two quotes, but not in more."""
    try:
        tomllib.loads(f"a = {kind}")
    except tomllib.TOMLDecodeError:
        return False
    return True


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[tuple[str | int, ...], int]]:
    writer = Writer(draw)
    writer.table((), [], 3)
    return writer.text, writer.lines


@given(documents())
def test_every_key_of_every_document_is_on_the_line_where_it_was_written(written: tuple[str, dict[tuple[str | int, ...], int]]) -> None:
    text, lines = written
    tomllib.loads(text)
    assert lines_of(text) == lines


@given(st.text(st.sampled_from("ab =.[]{}\"'#\n\\1,"), max_size=40))
def test_no_text_leads_the_scan_astray(text: str) -> None:
    """The scan finds every key of any text that tomllib accepts."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    found = lines_of(text)
    assert found.keys() == set(toml_lines._paths((), table))
    assert all(1 <= line <= text.count("\n") + 1 for line in found.values())


def test_the_repositorys_own_files_are_understood() -> None:
    root = Path(__file__).parents[2]
    for path in root.glob("*.toml"):
        assert lines_of(path.read_text()), path
