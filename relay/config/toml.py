"""Decodes a TOML file into structs, and reports all faults at once, each in one line for people.

Keys, types and bounds come from the structs alone. A faulty value is replaced by its default, so that the rest can be checked; `Problems`
drops later problems that depend on a faulty value.
"""

from __future__ import annotations

import codecs
import datetime
import json
import os
import re
import stat
import tomllib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
from msgspec import inspect

from relay.config.toml_lines import BARE_KEY, lines_of
from relay.config.trust import everyone_may_write
from relay.errors import ConfigError
from relay.text import SHOWN_CHARACTERS, plain, quoted

TOML_FILE_BYTES = 16 << 20  # a larger configuration, access or routes file is refused

T = TypeVar("T", bound=msgspec.Struct)

_FAULTY: Any = object()
_HEADER = re.compile(r"\s*(\[\[?[^\]]*\]\]?)")


class TomlFault(NamedTuple):
    """`key` as in a dotted TOML key; the second table of an array is `rule#2`."""

    key: str
    text: str


class Places:
    """Where the keys of one file are, as `FILE:LINE: KEY`; without the line if it is not found in `text`, the file's content."""

    def __init__(self, file: Path | str, text: str = "") -> None:
        self._file = file
        self._text = text

    def where(self, key: str) -> str:
        """The place of a key; a missing key has the line of its table."""
        end = len(key)
        while end > 0:
            if (line := self._lines.get(key[:end], -1)) != -1:
                return f"{self._file}: {key}" if line is None else f"{self._file}:{line}: {key}"
            end = max(key.rfind(".", 0, end), key.rfind("#", 0, end))
        return f"{self._file}: {key}"

    @cached_property
    def _lines(self) -> dict[str, int | None]:
        """The lines by key as problems show it. Long keys are cut there; if two look the same, neither has a line."""
        lines: dict[str, int | None] = {}
        for path, line in lines_of(self._text).items():
            key = ""
            for part in path:
                key = below(key, part) if isinstance(part, str) else f"{key}#{part}"
            lines[key] = line if lines.get(key, line) == line else None
        return lines


class Problems:
    """The problems of one file, in the order in which they were found."""

    def __init__(self, places: Places, faults: list[TomlFault] | None = None) -> None:
        self.places = places
        self._faulty = [fault.key for fault in faults or []]
        self.keys = list(self._faulty)  # the keys of the problems, in order
        self.lines = [self._line(fault.key, fault.text) for fault in faults or []]

    def add(self, key: str, text: str) -> None:
        """Adds a problem beyond types and bounds, unless the value was faulty and is only a default now."""
        if not self.about(key):
            self.keys.append(key)
            self.lines.append(self._line(key, text))

    def take(self, lines: Iterable[str]) -> None:
        """Adds whole lines, possibly about other files."""
        self.lines += map(plain, lines)

    def about(self, key: str) -> bool:
        """Whether the value at `key`, or something above or below it, was faulty."""
        return any(_within(key, faulty) or _within(faulty, key) for faulty in self._faulty)

    def where(self, key: str) -> str:
        return self.places.where(key)

    def _line(self, key: str, text: str) -> str:
        return plain(f"{self.where(key)}: {text}")


def read(path: Path, kind: type[T]) -> tuple[T, Problems]:
    """The file as `kind`, with a default wherever `problems` has a line.

    Raises ConfigError with one line if the file cannot be read or is not TOML.
    """
    faults: list[TomlFault] = []
    table, text, exposed = _parse(path)
    value = decode(kind, table, faults)
    problems = Problems(Places(path, text), faults)
    if exposed is not None:
        problems.take([f"{path}: may be written by everyone (mode {exposed:04o}), must not: chmod o-w {path}"])
    return value, problems


def decode(kind: type[T], table: dict[str, Any], faults: list[TomlFault]) -> T:
    """The table as `kind`; faults are appended to `faults`."""
    return cast(T, _struct(struct_type(kind), table, "", faults))


def _parse(path: Path) -> tuple[dict[str, Any], str, int | None]:
    """The table, its text; and the file's mode if everyone may write it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            exposed = stat.S_IMODE(mode) if everyone_may_write(mode, file.fileno()) else None
            data = file.read(TOML_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError([plain(f"{path}: is missing, must be a TOML file")]) from None
    except OSError as error:
        raise ConfigError([plain(f"{path}: cannot be read ({error.strerror}), must be a TOML file")]) from None
    if len(data) > TOML_FILE_BYTES:
        raise ConfigError([plain(f"{path}: is larger than the {TOML_FILE_BYTES} bytes that are allowed")])
    try:
        text = data.decode("utf-8-sig")
        return tomllib.loads(text), text, exposed
    except UnicodeDecodeError as error:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ConfigError([plain(f"{path}: is UTF-16, must be TOML in UTF-8")]) from None
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([plain(f"{path}:{line}: is not UTF-8, must be a TOML file")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([plain(_syntax(path, str(error), data.decode("utf-8-sig")))]) from None
    except RecursionError:
        raise ConfigError([plain(f"{path}: is nested too deeply, must be a TOML file")]) from None


def _syntax(path: Path, said: str, text: str) -> str:
    """The line for a syntax error. tomllib's text ends in `(at line L, column C)` or `(at end of document)`, and names no duplicate key."""
    if place := re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", said):
        line = text.split("\n")[int(place[2]) - 1]
        if (table := _HEADER.match(line)) and place[1].startswith("Cannot"):
            return f"{path}:{place[2]}: the table {table[1]} is there already, must be there once"
        if "=" in line and place[1].startswith("Cannot"):
            return f"{path}:{place[2]}: the key {line.partition('=')[0].strip()} is there already, must be there once"
        return f"{path}:{place[2]}: {place[1]} in column {place[3]}, must be TOML"
    last_line = text.count("\n") + 1
    return f"{path}:{last_line}: {said.removesuffix(' (at end of document)')} at the end of the file, must be TOML"


def struct_type(kind: type[msgspec.Struct]) -> inspect.StructType:
    """What msgspec knows about a struct."""
    return cast(inspect.StructType, inspect.type_info(kind))


def _within(key: str, other: str) -> bool:
    return key == other or key.startswith((other + ".", other + "#"))


def below(key: str, name: str) -> str:
    """The key of `name` in the table at `key`, quoted where TOML would."""
    name = name if BARE_KEY.fullmatch(name) else quoted(name)
    return f"{key}.{name}" if key else name


# -- the walk ------------------------------------------------------------------------------------------------------------


def _struct(kind: inspect.StructType, table: dict[str, Any], key: str, faults: list[TomlFault]) -> msgspec.Struct:
    fields = {field.encode_name: field for field in kind.fields}
    known = [*([kind.tag_field] if kind.tag_field else []), *fields]
    unknown = [name for name in table if name not in known]
    faults += (TomlFault(below(key, name), f"unknown key, allowed are {', '.join(known)}") for name in unknown)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        value = _FAULTY
        if name in table:
            value = _value(field, field.type, table[name], below(key, name), faults)
        elif field.required:
            faults.append(TomlFault(below(key, name), f"is missing, must be {_allowed(field.type, name)}"))
        if value is not _FAULTY:
            values[field.name] = value
        elif field.required:
            values[field.name] = _filler(field.type)
    return kind.cls(**values)


def _value(field: inspect.Field | None, kind: inspect.Type, value: Any, key: str, faults: list[TomlFault]) -> Any:
    """The decoded value; `_FAULTY` if the default must be used."""
    told, kind = kind, _bare(kind)
    if isinstance(kind, inspect.UnionType):
        choices = [_bare(choice) for choice in kind.types if not isinstance(choice, inspect.NoneType)]
        if isinstance(choices[0], inspect.StructType):
            return _tagged(field, cast(list[inspect.StructType], choices), value, key, faults)
        return _value(field, choices[0], value, key, faults)
    if isinstance(kind, inspect.StructType):
        return _tagged(field, [kind], value, key, faults)
    if isinstance(kind, inspect.DictType) and isinstance(value, dict):
        return {name: _item(kind.value_type, item, below(key, name), faults) for name, item in value.items()}
    if isinstance(kind, inspect.ListType) and isinstance(value, list) and _long_enough(kind, value):
        return _list(kind.item_type, value, key, faults)
    if _fits(kind, value):
        return float(value) if isinstance(kind, inspect.FloatType) else value
    faults.append(TomlFault(key, f"is {_shown(value)}, must be {_allowed(told, key)}"))
    return _FAULTY


def _tagged(field: inspect.Field | None, kinds: list[inspect.StructType], value: Any, key: str, faults: list[TomlFault]) -> Any:
    """A table. If several kinds are possible, its tag (`source`) names one; without a tag it is the default's."""
    if not isinstance(value, dict):
        faults.append(TomlFault(key, f"is {_shown(value)}, must be {_allowed(kinds[0], key)}"))
        return _FAULTY
    tag_field = kinds[0].tag_field
    if tag_field is None:
        return _struct(kinds[0], value, key, faults)
    default = next((kind.tag for kind in kinds if field is not None and kind.cls is field.default_factory), kinds[0].tag)
    tag = value.get(tag_field, default)
    for kind in kinds:
        if type(tag) is type(kind.tag) and tag == kind.tag:
            return _struct(kind, value, key, faults)
    allowed = ", ".join(json.dumps(kind.tag) for kind in kinds)
    faults.append(TomlFault(below(key, tag_field), f"is {_shown(tag)}, allowed {'are' if len(kinds) > 1 else 'is'} {allowed}"))
    return _FAULTY


def _list(kind: inspect.Type, items: list[Any], key: str, faults: list[TomlFault]) -> Any:
    """Keeps all tables of a list, so that `rule#2` stays the second; a list of plain values with a faulty one is faulty as a whole."""
    if isinstance(_bare(kind), inspect.StructType):
        return [_item(kind, item, f"{key}#{number}", faults) for number, item in enumerate(items, 1)]
    before, values = len(faults), []
    for number, item in enumerate(items, 1):
        if _fits(_bare(kind), item):
            values.append(item)
        else:
            faults.append(TomlFault(key, f"item {number} is {_shown(item)}, must be {_allowed(kind, key)}"))
    return values if len(faults) == before else _FAULTY


def _item(kind: inspect.Type, item: Any, key: str, faults: list[TomlFault]) -> Any:
    value = _value(None, kind, item, key, faults)
    return _filler(kind) if value is _FAULTY else value


def _filler(kind: inspect.Type) -> Any:
    """A placeholder for a required value that is faulty or missing; no further problems about it are reported."""
    kind = _bare(kind)
    if isinstance(kind, inspect.StructType):
        return _struct(kind, {}, "", [])
    return {inspect.ListType: list, inspect.DictType: dict, inspect.StrType: str}.get(type(kind), lambda: None)()


def _bare(kind: inspect.Type) -> inspect.Type:
    return _bare(kind.type) if isinstance(kind, inspect.Metadata) else kind


def _long_enough(kind: inspect.ListType, value: list[Any]) -> bool:
    return (kind.min_length or 0) <= len(value) <= (len(value) if kind.max_length is None else kind.max_length)


def _fits(kind: inspect.Type, value: Any) -> bool:
    """Whether a plain value has the type and is within bounds. true and false are not numbers; nan is never within bounds."""
    if isinstance(kind, inspect.BoolType):
        return isinstance(value, bool)
    if isinstance(kind, inspect.LiteralType):
        return any(type(value) is type(choice) and value == choice for choice in kind.values)
    if isinstance(kind, inspect.StrType):
        fits = isinstance(value, str) and (kind.min_length or 0) <= len(value)
        fits = fits and (kind.max_length is None or len(value) <= kind.max_length)
        # JSON Schema's $ matches only at the end, Python's also before a last newline
        return fits and (kind.pattern is None or (re.search(kind.pattern, value) is not None and not value.endswith("\n")))
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        if isinstance(value, bool) or not isinstance(value, int if isinstance(kind, inspect.IntType) else int | float):
            return False
        fits = kind.ge is None or value >= kind.ge
        fits = fits and (kind.gt is None or value > kind.gt)
        return fits and (kind.le is None or value <= kind.le)
    return False


# -- words ---------------------------------------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, datetime.date | datetime.time):
        return f"a date or time ({value})"
    return str(value) if not isinstance(value, int) or abs(value) < 10**SHOWN_CHARACTERS else "a very large number"


def _allowed(kind: inspect.Type, key: str) -> str:
    """What is allowed at `key`, whose name ends in its unit."""
    if isinstance(kind, inspect.Metadata):
        note = (kind.extra_json_schema or {}).get("description")
        return _allowed(kind.type, key) + (f" ({note})" if note else "")
    if isinstance(kind, inspect.UnionType):
        return _allowed(next(choice for choice in kind.types if not isinstance(choice, inspect.NoneType)), key)
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, inspect.LiteralType):
        return "one of " + ", ".join(json.dumps(choice) for choice in kind.values)
    if isinstance(kind, inspect.StrType):
        return "text" + _characters(kind)
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        unit = key.rpartition("_")[2]
        what = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
        return what + (f" of {unit}" if unit in ("seconds", "bytes") else "") + _bounds(kind)
    if isinstance(kind, inspect.ListType):
        of = f"tables: [[{key}]]" if isinstance(_bare(kind.item_type), inspect.StructType) else f"a list of {_allowed(kind.item_type, key)}"
        return of + (f", at least {kind.min_length}" if kind.min_length else "")
    if isinstance(kind, inspect.DictType):
        return f"tables: [{key}.NAME]"
    return f"a table: [{key}]"


def _characters(kind: inspect.StrType) -> str:
    if kind.pattern is not None:
        return f" that matches {kind.pattern}" + (f", at most {kind.max_length} characters" if kind.max_length else "")
    if kind.max_length is not None:
        return f" of {kind.min_length or 0} to {kind.max_length} characters"
    return " that is not empty" if kind.min_length else ""


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.gt is not None:
        low = f" above {kind.gt:g}"
        return low if kind.le is None else f"{low} and at most {_number(kind.le)}"
    if kind.ge is not None:
        return f" from {_number(kind.ge)}" + (" on" if kind.le is None else f" to {_number(kind.le)}")
    return "" if kind.le is None else f" of at most {_number(kind.le)}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
