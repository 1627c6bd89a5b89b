"""The JSON Schema of the configuration, with the structs' docstrings and the comments behind their fields."""

from __future__ import annotations

import ast
import inspect
import io
import sys
import tokenize
from functools import cache
from typing import Any

import msgspec

from relay.config import Config
from relay.config.toml import struct_type

_UNITS = ("seconds", "bytes")


def schema(of: dict[str, Any] | None = None) -> int:
    """`relay schema`: prints the schema, or another one, for editors (`#:schema relay.config.schema.json` in line 1 of relay.toml)."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(config_schema() if of is None else of), indent=2).decode() + "\n")
    return 0


def config_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of what `relay.config.load` accepts."""
    whole = msgspec.json.schema(Config)
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "git-ssh-relay", **whole}
    defaults = {field.default_factory for kind in tables() for field in msgspec.structs.fields(kind)}
    for kind in tables():
        definition = whole["$defs"][kind.__name__]
        told = notes(kind)
        for field in msgspec.structs.fields(kind):
            entry = definition["properties"][field.encode_name]
            if description := _description(field.encode_name, told.get(field.name, ""), entry.get("description", "")):
                entry["description"] = description
            entry.pop("default", None)
            if (default := _default(field)) is not None:
                entry["default"] = default
        _without_null(definition)
        if (tag := kind.__struct_config__.tag_field) is not None:
            if kind in defaults:  # without a tag the default table is meant
                definition["required"] = [name for name in definition.get("required", []) if name != tag]
            definition["properties"][tag]["description"] = "where the answers come from"
    return whole


def tables(kind: type[msgspec.Struct] = Config) -> list[type[msgspec.Struct]]:
    """The struct and all structs in its fields, each once, in the order of the fields."""
    found = [kind]
    todo: list[Any] = [field.type for field in struct_type(kind).fields]
    while todo:
        one = todo.pop(0)
        if isinstance(one, msgspec.inspect.StructType):
            found += [inner for inner in tables(one.cls) if inner not in found]
        todo += [inner for name in ("type", "value_type", "item_type") if (inner := getattr(one, name, None)) is not None]
        todo += getattr(one, "types", ())
    return found


@cache
def notes(kind: type) -> dict[str, str]:
    """The comment behind each field, also inherited ones; empty if the source is not available."""
    inherited = notes(kind.__base__) if kind.__base__ not in (None, msgspec.Struct) else {}
    try:
        source = inspect.getsource(kind)
    except OSError:
        return inherited
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    return inherited | {
        node.target.id: comments[node.end_lineno]
        for node in body.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno in comments
    }


def _default(field: msgspec.structs.FieldInfo) -> Any:
    """The default as JSON; None if there is none, or it is a table, whose settings have their own."""
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return None if value is msgspec.NODEFAULT or isinstance(value, msgspec.Struct) else msgspec.to_builtins(value)


def _description(name: str, note: str, of_type: str) -> str:
    unit = name.rpartition("_")[2]
    parts = [note, of_type, f"in {unit}" if unit in _UNITS else ""]
    return "; ".join(part for part in parts if part)


def _without_null(definition: dict[str, Any]) -> None:
    """Removes null from the schema: TOML has none, an optional setting is left out."""
    for name, entry in definition["properties"].items():
        choices = [choice for choice in entry.get("anyOf", []) if choice != {"type": "null"}]
        if len(choices) == 1:
            definition["properties"][name] = {**choices[0], **{key: value for key, value in entry.items() if key != "anyOf"}}
