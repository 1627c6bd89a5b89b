"""Upstreams: names, addresses, pins and user certificates."""

from __future__ import annotations

from typing import Any

import pytest

from relay.errors import ConfigError
from relay.preflight import load_all
from tests.preflight.helpers import Setup
from tests.support.keys import make_key


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"upstreams": {"main": {"addresses": ["git"]}}}, 'relay.toml: upstreams.main.addresses: "git" must be host:port or [v6]:port'),
        ({"upstreams": {"main": {"addresses": ["[::1]:22", "[0::1]:22"]}}},
            'relay.toml: upstreams.main.addresses: "[::1]:22" is listed twice, must be listed once'),
        ({"upstreams": {"main": {"addresses": ["git.example.com:22"]}}},
            'relay.toml: upstreams.main.addresses: "git.example.com:22" is an example, must be the host:port of your git host'),
        ({"upstreams": {"main": {"idle_connections": 65}}},
            "relay.toml: upstreams.main.idle_connections: is 65, must be at most connections_max (64)"),
        ({"upstreams": {"main": {"known_hosts": "known_hosts"}}},
            "relay.toml: upstreams.main.known_hosts: is set beside host_keys, must be one of the two"),
        ({"upstreams": {"main": {"addresses": None}}},
            "relay.toml: upstreams.main.addresses: is missing, must be a list of text of 1 to 256 characters"
            " (host:port, [v6]:port, or systemd where allowed), at least 1"),
        ({"upstreams": None}, "relay.toml: upstreams: is missing, must be tables: [upstreams.NAME]"),
        ({"upstreams": 5}, "relay.toml: upstreams: is 5, must be tables: [upstreams.NAME]"),
        ({"upstreams": {"main": 5}}, "relay.toml: upstreams.main: is 5, must be a table: [upstreams.main]"),
    ],
)  # fmt: skip
def test_one_thing_wrong_is_one_line(setup: Setup, changes: dict[str, Any], expected: str) -> None:
    assert setup.problems(**changes) == [expected]


def test_an_upstream_s_name_is_a_label(setup: Setup) -> None:
    (setup.folder / "routes.toml").write_text('[[route]]\nrepositories = "**"\nupstream = "a b"\npath = "{repository}"\n')
    table = setup.table["upstreams"]["main"]
    assert setup.problems(upstreams={"main": None, "a b": table}) == [
        'relay.toml: upstreams."a b": has a name that is not allowed, must be 1 to 64 letters, digits, dots, hyphens or underscores'
    ]


def test_no_upstream_at_all(setup: Setup) -> None:
    setup.table = {}
    setup.path.write_text("[upstreams]\n")
    with pytest.raises(ConfigError) as caught:
        load_all(setup.path)
    assert caught.value.problems == [f"{setup.path}:1: upstreams: is empty, must have at least one git host: [upstreams.NAME]"]


def test_a_known_hosts_file_instead_of_pins(setup: Setup) -> None:
    known = {"upstreams": {"main": {"host_keys": None, "known_hosts": "known_hosts"}}}
    assert setup.problems(**known) == [
        "relay.toml: upstreams.main.known_hosts: known_hosts cannot be read (No such file or directory), must be a known_hosts file"
    ]
    (setup.folder / "known_hosts").write_text(f"10.0.0.6 {setup.far.line}\n")
    assert setup.problems(**known) == [
        "relay.toml: upstreams.main.known_hosts: known_hosts has no usable key of 10.0.0.5:22, must have one for every address"
    ]
    (setup.folder / "known_hosts").write_text(f"10.0.0.5 {setup.far.line}\n")
    assert setup.problems(**known) == []


def test_a_user_certificate_is_judged(setup: Setup) -> None:
    def problems(**certificate: Any) -> list[str]:
        main = {**setup.table["upstreams"]["main"], "private_key": "none", "user_certificate": {"ca_key": "relay_ca", **certificate}}
        return setup.problems(upstreams={"main": main})

    where = "relay.toml: upstreams.main.user_certificate"
    [line] = problems()
    assert line.startswith(f"{where}.ca_key: relay_ca is missing, must be a private key (make one: ssh-keygen -t ed25519")
    make_key(setup.folder, "relay_ca")
    assert problems() == [], "no other private key is asked for"
    assert problems(ca_key="host_ed25519") == [f"{where}.ca_key: host_ed25519 is a host key too, must be a key of its own"]
    assert problems(key_id="{name}", user="{}", principals=["{identity}", "a,b"], check_identity="@x", valid_seconds=5) == [
        f"{where}.valid_seconds: is 5, must be a number of seconds from 10 to 86400",
        f"{where}.key_id: has braces besides {{identity}}, which is the only placeholder that is allowed",
        f"{where}.user: has braces besides {{identity}}, which is the only placeholder that is allowed",
        f'{where}.principals: "a,b" must have printable characters only, and no comma',
        f'{where}.check_identity: "@x" must not be * and must not begin with @, which have a meaning in access rules',
    ]
