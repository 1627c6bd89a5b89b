"""Every table and setting of the configuration, as the structs declare them, for docs/configuration.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple, cast

import msgspec
from msgspec import inspect

from relay.access.file import AccessFile
from relay.config import Address, Config, FilePath
from relay.config.schema import notes
from relay.config.toml import _allowed, struct_type
from relay.routes.file import RoutesFile
from tests.pages.markdown import cell, code, table

HEAD = ("setting", "allowed values", "default", "")
SHORT = {  # short forms of long explanations, which the page's introduction gives once
    _allowed(inspect.type_info(FilePath), ""): "a path",
    _allowed(inspect.type_info(Address), ""): "an address",
}


class Section(NamedTuple):
    """One table of a TOML file."""

    title: str
    kind: type[msgspec.Struct]


def configuration() -> str:
    """relay.toml, then the files that it points to."""
    parts = ["## relay.toml", *_told(sections("", Config))]
    parts += ["## access.toml", *_told(sections("", AccessFile)), "## routes.toml", *_told(sections("", RoutesFile))]
    return "\n\n".join(parts)


def sections(key: str, kind: type[msgspec.Struct], title: str = "") -> Iterator[Section]:
    """The struct, then the tables in it, in the order of its fields."""
    yield Section(title, kind)
    for field in struct_type(kind).fields:
        name = f"{key}.{field.encode_name}" if key else field.encode_name
        for one, form in _tables(field.type, name):
            tag = one.__struct_config__.tag
            yield from sections(form.strip("[]"), one, f"`{form}`" + (f' with `source = "{tag}"`' if tag else ""))


@cache
def settings() -> dict[str, set[str]]:
    """The names of all tables of relay.toml (`limits`, `upstreams.NAME`, ...; "" for the top level), and of their settings."""
    found: dict[str, set[str]] = {}
    for title, kind in sections("", Config):
        tag_field = kind.__struct_config__.tag_field
        names = {field.encode_name for field in msgspec.structs.fields(kind)} | ({tag_field} if tag_field else set())
        found.setdefault(title.partition("]")[0].lstrip("`["), set()).update(names)
    return found


def _tables(kind: inspect.Type, name: str) -> Iterator[tuple[type[msgspec.Struct], str]]:
    """The structs that a value may be, each with its table header in TOML."""
    match kind:
        case inspect.Metadata():
            yield from _tables(kind.type, name)
        case inspect.UnionType():
            for choice in kind.types:
                yield from _tables(choice, name)
        case inspect.StructType():
            yield kind.cls, f"[{name}]"
        case inspect.DictType():
            yield from _tables(kind.value_type, f"{name}.NAME")
        case inspect.ListType():
            yield from ((one, f"[[{name}]]") for one, _ in _tables(kind.item_type, name))


def _told(found: Iterator[Section]) -> Iterator[str]:
    """The text of each section; tables with the same settings have one, under all their names."""
    groups: dict[tuple[tuple[str, ...], ...], list[Section]] = {}
    for section in found:
        groups.setdefault(tuple(_rows(section.kind)), []).append(section)
    for rows, group in groups.items():
        titles = list(dict.fromkeys(section.title for section in group if section.title))
        if titles:
            yield f"### {', '.join(titles)}"
        about = dict.fromkeys(cell(" ".join((section.kind.__doc__ or "").split())) for section in group)
        if titles or len(about) > 1 or next(iter(about)).endswith("."):
            yield "\n".join(f"- {text}" for text in about) if len(about) > 1 else next(iter(about))
        if rows:
            yield table(HEAD, rows)


def _rows(kind: type[msgspec.Struct]) -> Iterator[tuple[str, str, str, str]]:
    """The settings of a table, without its subtables."""
    told = notes(kind)
    for field, info in zip(struct_type(kind).fields, msgspec.structs.fields(kind), strict=True):
        if list(_tables(field.type, "")):
            continue
        note = told.get(field.name, "")
        yield code(field.encode_name), cell(_said(field.type, field.encode_name)), _default(info), cell(note)


def _said(kind: inspect.Type, name: str) -> str:
    """The allowed values, as in the error messages for an invalid value."""
    if isinstance(kind, inspect.DictType):
        return f"a table: NAME = {_said(kind.value_type, '')}"
    told = _allowed(kind, name)
    for long, short in SHORT.items():
        told = told.replace(long, short)
    return told.replace("of an address", "of addresses").replace("of a path", "of paths")


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "must be given"
    factory = cast(Any, field.default_factory)
    value = field.default if factory is msgspec.NODEFAULT else factory()
    return "none" if value is None else code(json.dumps(value, ensure_ascii=False))
