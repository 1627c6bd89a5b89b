"""The addresses to listen on, and whose PROXY headers count."""

from __future__ import annotations

from typing import Any

import pytest

from tests.preflight.helpers import Setup


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"listen": ["0.0.0.0"]}, 'relay.toml: listen: "0.0.0.0" must be host:port or [v6]:port, or "systemd"'),
        ({"listen": ["::1:22"]}, 'relay.toml: listen: "::1:22" must have brackets around an IPv6 address: [v6]:port, or "systemd"'),
        ({"listen": ["1.2.3.4:1", "1.2.3.4:1"]}, "relay.toml: listen: names an address twice, must name each once"),
        ({"listen": []}, "relay.toml: listen: is an empty list, must be a list of text of 1 to 256 characters"
            " (host:port, [v6]:port, or systemd where allowed), at least 1"),
        ({"admin": {"listen": "systemd"}}, 'relay.toml: admin.listen: "systemd" must be host:port or [v6]:port'),
        ({"admin": {"listen": "0.0.0.0:2222"}}, 'relay.toml: admin.listen: "0.0.0.0:2222" is taken by listen, must be another port'),
        ({"proxy_protocol": {"mode": "require"}},
            'relay.toml: proxy_protocol.trusted: is empty though mode is "require", must name the load balancers\' addresses or networks'),
        ({"proxy_protocol": {"mode": "allow", "trusted": ["10.0.0.0/8", "lb"]}},
            'relay.toml: proxy_protocol.trusted: "lb" must be an IP address or a network such as 10.0.0.0/8 or 2001:db8::/32'),
        ({"proxy_protocol": {"trusted": ["10.0.0.1/8"]}},
            'relay.toml: proxy_protocol.trusted: "10.0.0.1/8" has bits set beyond its prefix, must be 10.0.0.0/8 or a single address'),
    ],
)  # fmt: skip
def test_one_thing_wrong_is_one_line(setup: Setup, changes: dict[str, Any], expected: str) -> None:
    assert setup.problems(**changes) == [expected]
