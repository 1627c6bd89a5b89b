"""Refused logins are remembered by identity and address for a while."""

from __future__ import annotations

import pytest

from relay.errors import Unavailable
from relay.upstream import refusals
from relay.upstream.refusals import Refusals

HERE = "10.0.0.5:22"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_refusal_holds_for_its_time_and_its_identity_only() -> None:
    clock = Clock()
    refused = Refusals(60, clock)
    refused.add("alice", HERE, "the key was refused")
    with pytest.raises(Unavailable, match="the key was refused; not tried again for 60 s") as told:
        refused.check("alice", HERE)
    assert told.value.reason == "auth"
    refused.check("bob", HERE)
    refused.check("alice", "10.0.0.6:22")
    clock.now = 59.0
    with pytest.raises(Unavailable, match="for 1 s"):
        refused.check("alice", HERE)
    clock.now = 60.0
    refused.check("alice", HERE)
    assert not refused._until


def test_none_is_remembered_with_0_seconds() -> None:
    refused = Refusals(0)
    refused.add("alice", HERE, "the key was refused")
    refused.check("alice", HERE)


def test_the_seconds_left_and_a_forgotten_refusal() -> None:
    clock = Clock()
    refused = Refusals(60, clock)
    refused.add("", HERE, "the key was refused", 30)
    clock.now = 10.0
    assert (refused.left("", HERE), refused.left("alice", HERE)) == (20.0, 0.0)
    refused.forget("", HERE)
    refused.check("", HERE)
    assert refused.left("", HERE) == 0


def test_refusals_are_bounded_and_the_oldest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "REMEMBERED_MOST", 2)
    refused = Refusals(60, Clock())
    for name in ("alice", "bob", "carol"):
        refused.add(name, HERE, "refused")
    refused.check("alice", HERE)
    for name in ("bob", "carol"):
        with pytest.raises(Unavailable):
            refused.check(name, HERE)
