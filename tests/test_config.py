"""The settings as declared: defaults within their own bounds, units in names, nothing unknown let through, the values of the design."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from relay import config
from relay.config import Config, Limits, Table, Upstream

UPSTREAM = Upstream(addresses=["127.0.0.1:22"])


def tables() -> Iterator[type[Table]]:
    """Every declared table."""
    for value in vars(config).values():
        if isinstance(value, type) and issubclass(value, Table) and value is not Table:
            yield value


ALL = list(tables())


@pytest.mark.parametrize("table", ALL, ids=lambda table: table.__name__)
def test_a_table_is_frozen_and_refuses_what_it_does_not_know(table: type[Table]) -> None:
    assert table.__struct_config__.frozen
    assert table.__struct_config__.forbid_unknown_fields
    assert table.__doc__


@pytest.mark.parametrize("table", ALL, ids=lambda table: table.__name__)
def test_a_number_has_its_unit_in_its_name(table: type[Table]) -> None:
    units = {config.Seconds: "_seconds", config.SecondsOrNever: "_seconds", config.Bytes: "_bytes"}
    for name, kind in get_type_hints(table, include_extras=True).items():
        for declared, unit in units.items():
            assert kind != declared or name.endswith(unit), f"{table.__name__}.{name}"
        if name.endswith(("_seconds", "_bytes")):
            assert get_args(kind)[0] in (int, float), f"{table.__name__}.{name}"


def test_the_defaults_keep_their_own_bounds() -> None:
    whole = Config(upstreams={"main": UPSTREAM})
    assert msgspec.convert(msgspec.to_builtins(whole), Config) == whole


def test_what_the_design_says() -> None:
    whole = Config(upstreams={"main": UPSTREAM})
    assert (whole.user, whole.listen, whole.host_keys, whole.workers) == ("git", ["0.0.0.0:2222"], ["host_ed25519"], 0)
    assert whole.admin.listen == "127.0.0.1:9122"
    assert (whole.log.level, whole.log.format, whole.log.audit) == ("info", "auto", "-")
    limits = whole.limits
    assert (limits.login_grace_seconds, limits.auth_attempts, limits.unauthenticated_connections) == (30, 6, 200)
    assert (limits.connections_per_source, limits.sessions_per_connection) == (64, 10)
    assert (limits.stall_seconds, limits.drain_seconds) == (300, 60)
    assert (whole.proxy_protocol.mode, whole.proxy_protocol.trusted, whole.algorithms.profile) == ("off", [], "modern")
    assert [table.__struct_config__.tag for table in (whole.keys, whole.access, whole.routes)] == ["file"] * 3
    assert (UPSTREAM.user, UPSTREAM.connections_max, UPSTREAM.idle_connections) == ("git", 64, 4)
    assert (UPSTREAM.idle_seconds, UPSTREAM.connect_seconds) == (300, 10)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("login_grace_seconds", 0),
        ("login_grace_seconds", 86_401),
        ("auth_attempts", 0),
        ("connections", 0),
        ("connections", 1_000_001),
        ("penalty_seconds", -1),
        ("stall_seconds", "300"),
        ("buffer_bytes", 1000),
        ("sessions_per_connection", 1.5),
        ("sessions", 10),
    ],
)
def test_out_of_bounds(name: str, value: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({name: value}, Limits)


def test_one_default_is_not_shared() -> None:
    one, two = (Config(upstreams={"main": UPSTREAM}) for _ in range(2))
    one.proxy_protocol.trusted.append("10.0.0.0/8")
    assert two.proxy_protocol.trusted == []
