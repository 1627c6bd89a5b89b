"""The schema of the audit, as the structs declare it, for docs/audit.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from relay.observe.audit_lines import AuditLine, audit_schema
from tests.pages.markdown import cell, code, table


def audit() -> str:
    definitions = audit_schema()["$defs"]
    parts = []
    for kind in get_args(AuditLine):
        told = definitions[kind.__name__]
        properties: dict[str, Any] = told["properties"]
        parts.append(f"### `{kind.__struct_config__.tag}`\n\n{cell(told['description'])}")
        parts.append(table(("field", "type", ""), _rows(properties, definitions)))
    return "\n\n".join(parts)


def _rows(properties: dict[str, Any], definitions: dict[str, Any], within: str = "") -> Iterator[list[str]]:
    """A field that is itself a struct is followed by its fields."""
    for name, entry in properties.items():
        yield [code(within + name), _type(entry), cell(_about(entry))]
        for one in entry.get("anyOf", []):
            if "$ref" in one:
                yield from _rows(definitions[one["$ref"].rpartition("/")[2]]["properties"], definitions, f"{name}.")


def _type(entry: dict[str, Any]) -> str:
    if "enum" in entry:
        return " or ".join(code(str(one)) for one in entry["enum"])
    if "$ref" in entry:
        return "object"
    return " or ".join(_type(one) for one in entry["anyOf"]) if "anyOf" in entry else str(entry["type"])


def _about(entry: dict[str, Any]) -> str:
    return str(entry.get("description", ""))
