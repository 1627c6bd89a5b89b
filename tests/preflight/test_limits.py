"""Limits that do not fit one another, and networks that are exempt."""

from __future__ import annotations

from typing import Any

import pytest

from relay.preflight import load_all, remarks
from tests.preflight.helpers import Setup
from tests.support.problems import unplaced


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"limits": {"penalty_seconds": 700}}, "relay.toml: limits.penalty_seconds: is 700, must be at most penalty_max_seconds (600)"),
    ],
)  # fmt: skip
def test_one_thing_wrong_is_one_line(setup: Setup, changes: dict[str, Any], expected: str) -> None:
    assert setup.problems(**changes) == [expected]


def test_exempt_networks(setup: Setup) -> None:
    assert setup.problems(limits={"exempt": ["10.0.0.1/8", "example.com"]}) == [
        'relay.toml: limits.exempt: "10.0.0.1/8" has bits set beyond its prefix, must be 10.0.0.0/8 or a single address',
        'relay.toml: limits.exempt: "example.com" must be an IP address or a network such as 10.0.0.0/8 or 2001:db8::/32',
    ]
    assert setup.problems(limits={"exempt": ["10.0.0.0/8", "10.1.0.0/16", "::/0", "10.0.0.0/8"]}) == []
    assert [unplaced(line) for line in remarks(load_all(setup.path))] == [
        f'{setup.path}: limits.exempt: "10.1.0.0/16" has no effect beside 10.0.0.0/8',
        f'{setup.path}: limits.exempt: "::/0" is everybody, so no limit by source and no penalty is left',
    ]
