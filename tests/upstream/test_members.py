"""The addresses of an upstream for one login: which one has a place for a session, and the operators' table."""

from __future__ import annotations

import pytest

from relay.config import Policy
from relay.events import Observer
from relay.upstream.hostkeys import HostKeys
from relay.upstream.libssh2 import Login
from relay.upstream.member import MemberLimits
from relay.upstream.members import Members, Row, table

ADDRESSES = [("a.example", 22), ("b.example", 22), ("c.example", 22)]
ALL = [f"{host}:22" for host, _ in ADDRESSES]


def members(policy: Policy = "first", connections_max: int = 2) -> Members:
    limits = MemberLimits(connections_max, 0, 300, 10, 15, policy=policy)
    return Members("main", ADDRESSES, Login("git", b"", HostKeys()), limits, Observer())


def down(one: Members, *addresses: str) -> None:
    for member in one.all:
        if member.address in addresses:
            member.health.breaker.failed(at_once=True)


def found(one: Members, addresses: list[str] = ALL, repository: str = "", dials: int | None = None) -> str | None:
    member = one.find(addresses, repository, dials)
    return member.address if member is not None else None


def test_the_first_is_waited_for_while_it_is_full() -> None:
    one = members()
    assert found(one) == ALL[0]
    one.all[0].places = 2
    assert found(one) is None
    assert found(one, ALL[1:]) == ALL[1]


def test_the_next_serves_while_the_first_is_down() -> None:
    one = members()
    down(one, ALL[0])
    assert found(one) == ALL[1]
    down(one, *ALL)
    assert found(one) == ALL[0]


def test_with_least_sessions_whoever_has_a_place_serves_but_none_that_is_down() -> None:
    one = members("least_sessions")
    down(one, ALL[2])
    one.all[0].places = 1
    assert found(one) == ALL[1]
    one.all[1].places = 2
    assert found(one) == ALL[0]
    one.all[0].places = 2
    assert found(one) is None
    down(one, *ALL)
    assert found(one) == ALL[2]


def test_with_hash_a_repository_waits_for_its_own_host() -> None:
    one = members("hash")
    homes = {repository: found(one, repository=repository) for repository in map(str, range(20))}
    assert set(homes.values()) == set(ALL)
    home = homes["0"]
    for member in one.all:
        member.places = 2 if member.address == home else 0
    assert [found(one, repository=repository) for repository in homes] == [None if at == home else at for at in homes.values()]
    assert one.kind("0") != one.kind("1") and members("first").kind("0") == members("first").kind("1")


@pytest.mark.parametrize("policy", ["first", "least_sessions"])
def test_where_enough_are_getting_a_connection_the_next_one_waits(policy: Policy) -> None:
    one = members(policy, connections_max=9)
    for member in one.all:
        member.places = 3
    assert found(one, dials=3) is None
    assert found(one, dials=4) == ALL[0]


def test_without_an_idle_connection_none_is_found() -> None:
    assert members().find_idle(ALL) is None


def test_the_table_adds_up_what_others_have_to_the_same_address() -> None:
    one, two = members(), members()
    one.all[0].places, two.all[0].places, two.all[2].places = 1, 2, 1
    down(one, ALL[1])
    assert table(one.all, {ALL[2]}, [two]) == [
        Row(ALL[0], up=None, drained=False, leased=3, idle=0, dialing=0),
        Row(ALL[1], up=False, drained=False, leased=0, idle=0, dialing=0),
        Row(ALL[2], up=None, drained=True, leased=1, idle=0, dialing=0),
    ]
