"""The JSON Schema, compared with the loader by a real validator."""

from __future__ import annotations

import json
import math
import tomllib
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.commands.init import EXAMPLE, config_text
from relay.config import Config, LimitsSettings, UpstreamSettings
from relay.config.schema import config_schema, notes, schema, tables
from relay.config.toml import TomlFault, decode

VALIDATOR = jsonschema.Draft202012Validator(config_schema())


def test_it_is_a_schema_and_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema.Draft202012Validator.check_schema(config_schema())
    assert schema() == 0
    assert json.loads(capsys.readouterr().out) == config_schema()


def test_the_example_of_init_is_valid() -> None:
    VALIDATOR.validate(tomllib.loads(config_text(EXAMPLE)))


def test_every_table_and_nearly_every_setting_is_described() -> None:
    definitions = config_schema()["$defs"]
    assert set(definitions) == {kind.__name__ for kind in tables()}
    assert all(definition["description"] for definition in definitions.values())
    limits = definitions["LimitsSettings"]["properties"]
    assert all("description" in limits[name] for name in LimitsSettings.__struct_fields__)
    assert limits["stall_seconds"]["description"].startswith("a session ends in which bytes wait but do not move, or")
    assert limits["buffer_bytes"]["description"] == "data of all sessions of a worker that waits to be sent; in bytes"
    assert definitions["UpstreamSettings"]["properties"]["addresses"]["description"] == "after one that does not answer the next is tried"


def test_every_default_is_the_structs() -> None:
    definitions = config_schema()["$defs"]
    for kind, value in ((LimitsSettings, LimitsSettings()), (UpstreamSettings, UpstreamSettings(addresses=["a:1"]))):
        told = {name: entry["default"] for name, entry in definitions[kind.__name__]["properties"].items() if "default" in entry}
        assert told == {name: getattr(value, name) for name in told}
        assert set(kind.__struct_fields__) - set(told) <= {"addresses", "known_hosts", "user_certificate"}


def test_comments_behind_fields_are_found_whatever_stands_in_the_value() -> None:
    told = notes(UpstreamSettings)
    assert told["host_keys"] == 'pinned, as in a .pub file: "ssh-ed25519 AAAA..."'
    assert told["idle_connections"] == "kept warm to each address, for each worker"
    assert set(told) <= set(UpstreamSettings.__struct_fields__)


_values: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(-1, 0, 1, 30, 65_536, 10**7, 0.5, math.inf, True, False),
        *("", "git", "x y", "off", "modern", "file", "10.0.0.5:22"),
        *([], ["a"], ["a", ""], [1], {}, {"a": 1}, {"path": "x"}, {"source": "file"}, {"source": "x"}, {"level": "info"}),
    ]
)
_upstream = st.dictionaries(st.sampled_from([*UpstreamSettings.__struct_fields__, "x"]), _values)
_table = st.fixed_dictionaries(
    {"upstreams": st.dictionaries(st.just("main"), _upstream | _values)},
    optional=dict.fromkeys((*Config.__struct_fields__[1:], "x"), _values),
)


@given(_table)
def test_the_schema_accepts_what_the_loader_accepts(table: dict[str, Any]) -> None:
    faults: list[TomlFault] = []
    decode(Config, table, faults)
    assert VALIDATOR.is_valid(table) == (faults == [])
