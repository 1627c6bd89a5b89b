"""The declared settings: defaults within bounds, units in names, unknown keys refused, no shared defaults."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from relay import config
from relay.config import Config, Table, UpstreamSettings
from relay.config.schema import notes, tables

TABLES = tables()
REQUIRED = {"addresses": ["10.0.0.5:22"], "upstreams": {}, "url": "https://authority.internal"}
REQUIRED |= {"ca_key": "relay_ca", "folder": "packs", "who": ["alice"]}
REQUIRED |= {"urls": ["redis://127.0.0.1"], "command": ["/usr/bin/true"]}
UPSTREAM = {"addresses": ["10.0.0.5:22"]}


def read(**changes: Any) -> Config:
    return msgspec.convert({"upstreams": {"main": UPSTREAM}, **changes}, Config)


def test_every_table_of_the_module_is_in_the_configuration() -> None:
    declared = [kind for kind in vars(config).values() if isinstance(kind, type) and issubclass(kind, Table)]
    assert {kind for kind in declared if not kind.__subclasses__()} == set(TABLES)


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_is_frozen_refuses_unknown_keys_and_says_what_it_is(kind: type[msgspec.Struct]) -> None:
    settings = kind.__struct_config__
    assert settings.frozen
    assert settings.forbid_unknown_fields
    assert kind.__doc__


@pytest.mark.parametrize("kind", TABLES)
def test_defaults_hold_their_own_bounds(kind: type[msgspec.Struct]) -> None:
    """msgspec does not validate defaults."""
    made = kind(**{field.name: REQUIRED[field.name] for field in msgspec.structs.fields(kind) if field.required})
    assert msgspec.convert(msgspec.to_builtins(made), kind) == made


@pytest.mark.parametrize("kind", TABLES)
def test_times_and_sizes_carry_their_unit_in_the_name(kind: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(kind):
        shown = str(field.type)
        if "float" in shown:
            assert field.name.endswith("_seconds"), field.name
        if field.name.endswith("_seconds"):
            assert "float" in shown, field.name
        if field.name.endswith("_bytes"):
            assert "int" in shown, field.name


@pytest.mark.parametrize("kind", TABLES)
def test_default_lists_and_tables_are_not_shared(kind: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(kind):
        assert not isinstance(field.default, list | dict), field.name


def test_each_number_says_what_it_limits() -> None:
    for kind in (config.LimitsSettings, config.CacheSettings, UpstreamSettings):
        numbers = {field.name for field in msgspec.structs.fields(kind) if isinstance(field.default, int | float)} - {"send_identity"}
        assert numbers <= set(notes(kind)), kind


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"limits": {"stall_seconds": 0}}, "limits.stall_seconds"),
        ({"limits": {"stall_seconds": 86_401}}, "limits.stall_seconds"),
        ({"limits": {"buffer_bytes": 65_535}}, "limits.buffer_bytes"),
        ({"limits": {"connections": 0}}, "limits.connections"),
        ({"limits": {"stall": 5}}, "stall"),
        ({"listen": []}, "listen"),
        ({"host_keys": []}, "host_keys"),
        ({"user": "git user"}, "user"),
        ({"user": ""}, "user"),
        ({"workers": 257}, "workers"),
        ({"proxy_protocol": {"mode": "maybe"}}, "proxy_protocol.mode"),
        ({"algorithms": {"profile": "old"}}, "algorithms.profile"),
        ({"keys": {"source": "ldap"}}, "keys.source"),
        ({"keys": {"source": "http", "url": "ftp://a"}}, "keys.url"),
        ({"packs": {}}, "folder"),
        ({"packs": {"folder": "packs", "max_bytes": 65_535}}, "packs.max_bytes"),
        ({"packs": {"folder": "packs", "free_bytes": -1}}, "packs.free_bytes"),
        ({"packs": {"folder": "packs", "ttl_seconds": 0}}, "packs.ttl_seconds"),
        ({"packs": {"folder": "packs", "first": 1}}, "packs.first"),
        ({"upstreams": {"main": {"addresses": []}}}, "addresses"),
        ({"upstreams": {"main": {**UPSTREAM, "keepalive_seconds": 1}}}, "keepalive_seconds"),
        ({"upstreams": {"main": {**UPSTREAM, "insecure": True}}}, "insecure"),
    ],
)
def test_what_is_out_of_bounds_or_unknown_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        read(**wrong)
    assert said.split(".")[-1] in str(refused.value)


def test_never_is_zero_only_where_a_limit_may_be_off() -> None:
    off = read(limits={"penalty_seconds": 0, "keepalive_seconds": 0, "drain_seconds": 0}).limits
    assert (off.penalty_seconds, off.keepalive_seconds, off.drain_seconds) == (0, 0, 0)


def test_there_is_no_way_to_trust_any_host_key() -> None:
    names = [field.name for field in msgspec.structs.fields(UpstreamSettings)]
    assert not [name for name in names if "insecure" in name or "verify" in name or "check" in name]
