"""Writes tables as TOML, which the standard library only reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` over it: tables are merged, other values replaced, None removes a key."""
    merged = dict(base)
    for name, value in changes.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
            merged[name] = merge(merged[name], value)
        else:
            merged[name] = value
    return merged


def toml_text(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """The TOML of a document of strings, booleans, numbers, lists, tables and lists of tables."""
    lines = [f"{_key(name)} = {_value(value)}" for name, value in table.items() if not _is_table(value)]
    text = "".join(line + "\n" for line in lines)
    for name, value in table.items():
        if isinstance(value, Mapping):
            inner = (*path, _key(name))
            text += f"\n[{'.'.join(inner)}]\n" + toml_text(value, inner)
        elif _is_table(value):
            inner = (*path, _key(name))
            text += "".join(f"\n[[{'.'.join(inner)}]]\n" + toml_text(item, inner) for item in value)
    return text


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):  # JSON's escapes are TOML's, except that TOML also wants DEL escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise TypeError(f"TOML has no {type(value).__name__}: {value!r}")
