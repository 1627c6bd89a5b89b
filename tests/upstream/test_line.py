"""The line: whose turn is next, which session is refused when it is full, and no lost place, in whatever order sessions enter and leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay.upstream.line import Entered, Line


class Host:
    """A git host with so many places."""

    def __init__(self, places: int, name: str = "main") -> None:
        self.name, self.places, self.taken = name, places, 0


class Guest:
    def __init__(self, host: Host, identity: str, repository: str = "app") -> None:
        self.host, self.upstream, self.identity, self.repository = host, host.name, identity, repository
        self.number = 0
        self.has_place = False

    def __repr__(self) -> str:
        return f"{self.identity}/{self.repository}#{self.number}"

    @property
    def kind(self) -> Hashable:
        return ""

    def take(self) -> bool:
        if self.host.taken >= self.host.places:
            return False
        assert not self.has_place
        self.host.taken += 1
        self.has_place = True
        return True

    def give_back(self) -> None:
        assert self.has_place
        self.host.taken -= 1
        self.has_place = False


def names(guests: Iterable[Guest]) -> list[str]:
    return [guest.identity if guest.repository == "app" else f"{guest.identity}/{guest.repository}" for guest in guests]


def order_of(line: Line[Guest], host: Host, *waiting: Guest) -> list[str]:
    """The order in which sessions get the host's one place, which each gives back at once; asserts that `ahead` predicted it."""
    holder = Guest(host, "holder")
    assert line.enter(holder).served == [holder]
    for guest in waiting:
        assert line.enter(guest).served == []
    told = sorted(waiting, key=line.ahead)
    assert [line.ahead(guest) for guest in told] == list(range(len(waiting)))
    served, now = [], line.leave(holder)
    while now:
        served += now
        now = line.leave(now[0])
    assert served == told
    assert host.taken == line.waiting == 0
    return names(served)


def test_a_free_place_is_taken_at_once() -> None:
    line, host = Line[Guest](), Host(2)
    first, second, third = (Guest(host, "alice") for _ in range(3))
    assert [line.enter(guest).served for guest in (first, second, third)] == [[first], [second], []]
    assert (host.taken, line.waiting, line.why(third), line.ahead(third)) == (2, 1, "upstream", 0)
    assert line.leave(first) == [third]
    assert repr(line) == "<line waiting=0 leased=2>"


def test_identities_take_turns() -> None:
    host = Host(1)
    many = [Guest(host, "robot") for _ in range(5)]
    assert order_of(Line(), host, *many, Guest(host, "alice"), Guest(host, "bob"), Guest(host, "alice")) == (
        ["robot", "alice", "bob", "robot", "alice", "robot", "robot", "robot"]
    )


def test_repositories_of_an_identity_take_turns() -> None:
    host = Host(1)
    came = [("robot", "a"), ("robot", "a"), ("robot", "a"), ("alice", "a"), ("robot", "b"), ("robot", "b")]
    assert order_of(Line(), host, *(Guest(host, *one) for one in came)) == (
        ["robot/a", "alice/a", "robot/b", "robot/a", "robot/b", "robot/a"]
    )


def test_within_a_repository_the_first_comes_first() -> None:
    line, host = Line[Guest](), Host(1)
    guests = [Guest(host, "alice") for _ in range(4)]
    for guest in guests:
        line.enter(guest)
    served = [one for guest in guests for one in line.leave(guest)]
    assert served == guests[1:]


def test_who_leaves_the_line_leaves_no_trace() -> None:
    line, host = Line[Guest](), Host(1)
    holder, leaves, stays = Guest(host, "holder"), Guest(host, "alice"), Guest(host, "bob")
    for guest in (holder, leaves, stays):
        line.enter(guest)
    assert line.leave(leaves) == []
    assert line.leave(leaves) == []  # leaving again does nothing
    assert (line.waiting, line.ahead(stays)) == (1, 0)
    assert line.leave(holder) == [stays]
    assert line.leave(stays) == []
    assert all(not kept for kept in (line._queues, line._waiting_of, line._leases_of, line._leases_at, line._again, line._leased))


def test_who_had_a_place_is_next_in_the_order_in_which_they_came() -> None:
    line, host = Line[Guest](), Host(3)
    a, b, c = (Guest(host, identity) for identity in ("alice", "bob", "bob"))
    waiting = Guest(host, "carol")
    for guest in (a, b, c, waiting):
        line.enter(guest)
    host.places = 0  # the host is away
    for guest in (c, a, b):
        line.leave(guest)
        line.enter(guest, again=True)
    host.places = 4
    assert line.advance() == [a, b, waiting, c]


@pytest.mark.parametrize("what", ["identity", "repository"])
def test_a_limit_of_its_own_lets_others_pass(what: str) -> None:
    line, host = Line[Guest](per_identity=2 if what == "identity" else 0, per_repository=2 if what == "repository" else 0), Host(10)
    same = {"identity": "robot", "repository": "app"}
    other = {"identity": "alice", "repository": "lib"}
    busy = [Guest(host, **{**other, what: same[what]}) for _ in range(4)]
    for guest in busy:
        line.enter(guest)
    assert (host.taken, line.why(busy[2])) == (2, what)
    another = Guest(host, **{**same, what: other[what]})
    assert line.enter(another).served == [another]
    assert line.leave(busy[1]) == [busy[2]]


def test_a_limit_holds_over_all_upstreams_and_frees_the_one_who_waits_at_another() -> None:
    line, one, two = Line[Guest](per_identity=1), Host(5, "one"), Host(5, "two")
    here, there = Guest(one, "robot"), Guest(two, "robot")
    line.enter(here)
    assert line.enter(there).served == []
    assert line.leave(here) == [there]


def test_a_full_line_refuses_the_newcomer_when_no_identity_has_more_in_it() -> None:
    line, host = Line[Guest](most=2), Host(0)
    first, second, third = (Guest(host, identity) for identity in ("alice", "bob", "carol"))
    assert line.enter(first) == line.enter(second) == Entered([])
    assert line.enter(third) == Entered([], third, "upstream")
    assert line.waiting == 2


def test_a_line_that_one_identity_fills_has_room_for_another() -> None:
    line, host = Line[Guest](most=3), Host(0)
    robots = [Guest(host, "robot", repository) for repository in ("a", "b", "a", "a")]
    for robot in robots[:3]:
        assert line.enter(robot).refused is None
    assert line.enter(robots[3]) == Entered([], robots[3], "identity")
    alice = Guest(host, "alice")
    assert line.enter(alice) == Entered([], robots[2], "identity")  # the session that entered last
    assert line.waiting == 3
    host.places = 3
    assert line.advance() == [robots[0], alice, robots[1]]


def test_a_full_line_tells_a_limit_of_its_own() -> None:
    line, host = Line[Guest](per_repository=1, most=1), Host(9)
    for identity in ("alice", "bob"):
        line.enter(Guest(host, identity))
    carol = Guest(host, "carol")
    assert line.enter(carol) == Entered([], carol, "repository")


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("xy")), min_size=1, max_size=40))
@settings(deadline=None)
def test_turns_are_taken(came: list[tuple[str, str]]) -> None:
    """Between two turns of an identity each other waiting identity has exactly one, and so for the repositories of an identity."""
    host = Host(1)
    served = order_of(Line(), host, *(Guest(host, identity, f"lib{repository}") for identity, repository in came))
    _check_turns([name.partition("/")[0] for name in served])
    for identity in "abcd":
        _check_turns([name for name in served if name.startswith(f"{identity}/")])


def _check_turns(served: list[str]) -> None:
    for name in set(served):
        mine = [position for position, one in enumerate(served) if one == name]
        for before, after in pairwise(mine):
            between = Counter(served[before + 1 : after])
            assert all(count == 1 for count in between.values())
            assert set(between) == set(served[before + 1 :]) - {name}


class Crowd(RuleBasedStateMachine):
    """Sessions enter, leave the line, lose their places and give them back; hosts get more and fewer places."""

    @initialize(identity=st.integers(0, 2), repository=st.integers(0, 2), most=st.integers(0, 6), places=st.integers(1, 4))
    def begin(self, identity: int, repository: int, most: int, places: int) -> None:
        self.identity_most, self.repository_most, self.most = identity, repository, most
        self.line = Line[Guest](identity, repository, most)
        self.hosts = [Host(places, "one"), Host(2, "two")]
        self.inside: list[Guest] = []
        self.waiting: list[Guest] = []

    def _served(self, served: list[Guest]) -> None:
        for guest in served:
            assert guest.has_place and guest in self.waiting
            self.waiting.remove(guest)
            self.inside.append(guest)

    def _enter(self, guest: Guest, again: bool) -> None:
        self.waiting.append(guest)
        entered = self.line.enter(guest, again=again)
        self._served(entered.served)
        if entered.refused is not None:
            assert len(self.waiting) > self.most
            most = max(Counter(one.identity for one in self.waiting).values())
            assert sum(one.identity == entered.refused.identity for one in self.waiting) == most
            self.waiting.remove(entered.refused)

    @rule(host=st.integers(0, 1), identity=st.sampled_from("abc"), repository=st.sampled_from("xyz"))
    def come(self, host: int, identity: str, repository: str) -> None:
        self._enter(Guest(self.hosts[host], identity, repository), again=False)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave_the_line(self, data: st.DataObject) -> None:
        guest = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(guest)
        self._served(self.line.leave(guest))

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        guest = data.draw(st.sampled_from(self.inside))
        self.inside.remove(guest)
        self._served(self.line.leave(guest))
        assert not guest.has_place

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def try_again(self, data: st.DataObject) -> None:
        guest = data.draw(st.sampled_from(self.inside))
        self.inside.remove(guest)
        self._served(self.line.leave(guest))
        self._enter(guest, again=True)

    @rule(host=st.integers(0, 1), places=st.integers(0, 4))
    def change_places(self, host: int, places: int) -> None:
        self.hosts[host].places = places
        self._served(self.line.advance())

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "line"):
            return
        assert self.line.waiting == len(self.waiting) <= self.most
        for host in self.hosts:
            assert host.taken == sum(guest.host is host for guest in self.inside)
            assert set(self.line.waiting_at(host.name)) == {guest for guest in self.waiting if guest.host is host}

    @invariant()
    def limits_hold(self) -> None:
        if not hasattr(self, "line"):
            return
        for most, count in (
            (self.identity_most, Counter(guest.identity for guest in self.inside)),
            (self.repository_most, Counter(guest.repository for guest in self.inside)),
        ):
            assert not most or all(number <= most for number in count.values())

    @invariant()
    def nobody_waits_who_could_be_served(self) -> None:
        if not hasattr(self, "line"):
            return
        identities = Counter(guest.identity for guest in self.inside)
        repositories = Counter(guest.repository for guest in self.inside)
        for guest in self.waiting:
            free = guest.host.taken < guest.host.places
            why = self.line.why(guest)
            limited = {
                "identity": 0 < self.identity_most <= identities[guest.identity],
                "repository": 0 < self.repository_most <= repositories[guest.repository],
            }
            assert limited.get(why, not free)

    def teardown(self) -> None:
        """Every waiting session is served in the end: no starvation, whatever happened before."""
        if not hasattr(self, "line"):
            return
        for host in self.hosts:
            host.places = max(host.places, 1)
        self._served(self.line.advance())
        steps = 0
        while self.inside:
            guest = self.inside.pop(0)
            self._served(self.line.leave(guest))
            steps += 1
            assert steps < 10_000
        assert not self.waiting
        assert all(not kept for kept in (self.line._queues, self.line._waiting_of, self.line._leases_of, self.line._leases_at))


TestCrowd = Crowd.TestCase
TestCrowd.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)


@given(
    st.lists(st.sampled_from(["robot", "robot", "robot", "alice", "bob"]), min_size=1, max_size=60),
    st.integers(1, 3),
    st.integers(0, 2),
)
@settings(deadline=None)
def test_no_identity_waits_for_more_than_a_turn_of_each_other(came: list[str], places: int, per_identity: int) -> None:
    """However many sessions an identity has in line: each identity is served at most once before another's first session."""
    line, host = Line[Guest](per_identity), Host(places)
    inside: list[Guest] = []
    first: dict[str, Guest] = {}
    passed: dict[str, Counter[str]] = {}

    def serve(guests: list[Guest]) -> None:
        for guest in guests:
            inside.append(guest)
            if first.get(guest.identity) is guest:
                del first[guest.identity], passed[guest.identity]
            for identity in first:
                passed[identity][guest.identity] += 1

    for identity in came:
        guest = Guest(host, identity)
        if identity not in first:
            first[identity], passed[identity] = guest, Counter()
        serve(line.enter(guest).served)
    while inside:
        serve(line.leave(inside.pop(0)))
        for identity, others in passed.items():
            if not per_identity:
                assert all(count <= 1 for other, count in others.items() if other != identity)
    assert not line.waiting
