"""Which address each policy tries first, and the guarantees of rendezvous hashing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config import Policy
from relay.upstream.policy import order, score


@dataclass(frozen=True)
class Host:
    address: str
    up: bool | None = True
    full: bool = False
    sessions: int = 0
    used: int = 0


A, B, C = (Host(f"10.0.0.{number}:22") for number in (1, 2, 3))
REPOSITORIES = [f"team/app{number}" for number in range(300)]
POLICIES: list[Policy] = ["first", "least_sessions", "hash"]

hosts = st.lists(
    st.builds(
        Host,
        address=st.integers(0, 50).map("10.0.0.{}:22".format),
        up=st.sampled_from([True, False, None]),
        full=st.booleans(),
        sessions=st.integers(0, 5),
        used=st.integers(0, 5),
    ),
    max_size=8,
    unique_by=lambda host: host.address,
)


def test_first_keeps_the_order_of_the_configuration_however_busy() -> None:
    busy = replace(A, full=True, sessions=64, used=9)
    assert order("first", [busy, B, C], "x") == [busy, B, C]
    down = replace(A, up=False)
    assert order("first", [down, B, C], "x") == [B, C, down]
    unknown = replace(A, up=None)
    assert order("first", [unknown, B], "x") == [unknown, B]


def test_least_sessions_takes_turns_among_equals_and_leaves_full_ones_for_last() -> None:
    a, b, c = replace(A, sessions=2), replace(B, sessions=1, used=8), replace(C, sessions=1, used=7)
    assert order("least_sessions", [a, b, c], "x") == [c, b, a]
    full = replace(C, sessions=0, full=True)
    assert order("least_sessions", [full, a, b], "x") == [b, a, full]
    down = replace(C, up=False)
    assert order("least_sessions", [down, full, a], "x") == [a, full, down]


@given(st.sampled_from(POLICIES), hosts, st.text(max_size=10))
def test_every_address_is_tried_and_those_down_last(policy: Policy, candidates: list[Host], repository: str) -> None:
    asked = order(policy, candidates, repository)
    assert sorted(asked, key=repr) == sorted(candidates, key=repr)
    downs = [host.up is False for host in asked]
    assert downs == sorted(downs)


@given(hosts, st.text(max_size=10), st.randoms(use_true_random=False))
def test_hash_depends_on_nothing_but_address_and_repository(candidates: list[Host], repository: str, random: Random) -> None:
    same = [Host(host.address) for host in candidates]
    shuffled = list(same)
    random.shuffle(shuffled)
    assert order("hash", same, repository) == order("hash", shuffled, repository)


def test_hash_is_the_same_for_ever() -> None:
    """Every worker computes the same order, before and after an upgrade."""
    assert score("10.0.0.1:22", "team/app") == 9096712638177210605
    assert score("10.0.0.1:22", "team/app2") != score("10.0.0.1:2", "2team/app")


@pytest.mark.parametrize("lost", [A, B, C])
def test_a_lost_host_moves_only_its_own_repositories(lost: Host) -> None:
    before = {name: order("hash", [A, B, C], name) for name in REPOSITORIES}
    gone = [host if host != lost else replace(host, up=False) for host in (A, B, C)]
    for name, asked in before.items():
        first = order("hash", gone, name)[0]
        assert first == (asked[0] if asked[0] != lost else asked[1])
    moved = [name for name in REPOSITORIES if before[name][0] == lost]
    assert len(REPOSITORIES) / 6 < len(moved) < len(REPOSITORIES) / 2  # a third, more or less
    assert {before[name][1] for name in moved} == {A, B, C} - {lost}  # to each of the other addresses
