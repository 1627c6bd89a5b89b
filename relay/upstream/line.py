"""The line of the sessions that wait for a git host: who is next, and who is refused when it is full. Pure: no I/O, no clock.

When a place is free, identities take turns, and within an identity its repositories; within a repository the session that came first is
next. So one identity's five hundred clones delay another's fetch by one turn, not by five hundred. A worker has one line for all its
upstreams, because its limits hold for all of them together; turns are taken at each upstream by itself.

When more than `most` sessions wait, the last one of the identity with the most waiting sessions is refused: a newcomer finds room in a
line that one identity has filled.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Generic, Literal, Protocol, TypeVar

Why = Literal[
    "identity",  # as many sessions of its identity have places, or wait, as may
    "repository",  # as many sessions of its repository have places as may
    "upstream",  # all places of the git host are taken
]


class Turn(Protocol):
    """A session that asks for a place at an upstream; hashed by what it is, not by its fields."""

    upstream: str
    identity: str
    repository: str
    number: int  # set by the line: in which order sessions came

    @property
    def kind(self) -> Hashable:
        """Turns of one upstream and kind may use the same places: if one finds none, the others need not be asked."""

    def take(self) -> bool:
        """Takes a place at the git host, if one that it may use is free."""

    def give_back(self) -> None:
        """Frees the place that it took."""


T = TypeVar("T", bound=Turn)
V = TypeVar("V")
_Repositories = OrderedDict[str, list[T]]
_Identities = OrderedDict[str, _Repositories[T]]


@dataclass(frozen=True, slots=True)
class Entered(Generic[T]):
    """What has changed since a session came."""

    served: list[T] = field(default_factory=list)  # have a place from now on, the newcomer perhaps among them
    refused: T | None = None  # perhaps the newcomer; it is in line no longer
    why: Why = "upstream"  # it was refused


class Line(Generic[T]):
    """0 for `per_identity` or `per_repository` is no limit; `most` sessions wait at once."""

    def __init__(self, per_identity: int = 0, per_repository: int = 0, most: int = 1000) -> None:
        self._per_identity, self._per_repository, self._most = per_identity, per_repository, most
        self._queues: OrderedDict[str, _Identities[T]] = OrderedDict()  # by upstream; whose turn is next comes first, on each level
        self._again: set[T] = set()  # those in line that had a place before
        self._leased: set[T] = set()  # those that have a place
        self._leases_of: Counter[str] = Counter()  # by identity, if they have a limit
        self._leases_at: Counter[str] = Counter()  # by repository, if they have a limit
        self._waiting_of: Counter[str] = Counter()  # by identity
        self._numbers = 0
        self.waiting = 0

    def __repr__(self) -> str:
        return f"<line waiting={self.waiting} leased={len(self._leased)}>"

    def enter(self, turn: T, *, again: bool = False) -> Entered[T]:
        """`turn` asks for a place: it gets one at once or stands in line. `again`: it had a place and lost it, so it is next."""
        if not turn.number:
            self._numbers += 1
            turn.number = self._numbers
        if turn.upstream not in self._queues and self._may_take(turn) and turn.take():  # nobody is before it
            self._has_place(turn)
            return Entered([turn])
        self._add(turn, again)
        served = self.advance()
        if self.waiting <= self._most:
            return Entered(served)
        refused = self._last(turn)
        why = self.why(refused)
        if why == "upstream" and self._waiting_of[refused.identity] > 1:
            why = "identity"
        self._remove(refused)
        return Entered(served, refused, why)

    def leave(self, turn: T) -> list[T]:
        """`turn` gives its place back, or does not wait any longer. Returns those that have a place from now on, in order."""
        if turn in self._leased:
            self._leased.discard(turn)
            if self._per_identity:
                _subtract(self._leases_of, turn.identity)
            if self._per_repository:
                _subtract(self._leases_at, turn.repository)
            turn.give_back()
        else:
            self._remove(turn)
        return self.advance()

    def advance(self) -> list[T]:
        """Gives free places to those in line; returns who got one, in order. To be called whenever a place may have become free."""
        served: list[T] = []
        if not self._queues:
            return served
        full: set[tuple[str, Hashable]] = set()  # upstreams and kinds without a place
        found = True
        while found and self._queues:
            found = False
            for upstream in list(self._queues):
                turn = self._serve_next(upstream, full)
                if turn is not None:
                    served.append(turn)
                    found = True
        return served

    # -- what a session in line may know -------------------------------------------------------------------------------

    def why(self, turn: T) -> Why:
        """What keeps `turn` waiting."""
        if self._identity_full(turn.identity):
            return "identity"
        return "repository" if self._repository_full(turn.repository) else "upstream"

    def ahead(self, turn: T) -> int:
        """How many sessions in line get a place before `turn`, if nobody comes or leaves and no limit holds one up."""
        identities = self._queues[turn.upstream]
        repositories = identities[turn.identity]
        of_its_identity = _before(repositories, turn.repository, repositories[turn.repository].index(turn), len)
        return _before(identities, turn.identity, of_its_identity, _count)

    def waiting_at(self, upstream: str) -> Iterator[T]:
        """Those in line for this upstream."""
        for repositories in self._queues.get(upstream, {}).values():
            for turns in repositories.values():
                yield from turns

    # -- inside --------------------------------------------------------------------------------------------------------

    def _identity_full(self, identity: str) -> bool:
        return bool(self._per_identity) and self._leases_of[identity] >= self._per_identity

    def _repository_full(self, repository: str) -> bool:
        return bool(self._per_repository) and self._leases_at[repository] >= self._per_repository

    def _may_take(self, turn: T) -> bool:
        return not self._identity_full(turn.identity) and not self._repository_full(turn.repository)

    def _has_place(self, turn: T) -> None:
        self._leased.add(turn)
        if self._per_identity:
            self._leases_of[turn.identity] += 1
        if self._per_repository:
            self._leases_at[turn.repository] += 1

    def _serve_next(self, upstream: str, full: set[tuple[str, Hashable]]) -> T | None:
        for identity, repositories in self._queues[upstream].items():
            if self._identity_full(identity):
                continue
            for repository, turns in repositories.items():
                if self._repository_full(repository):
                    continue
                for turn in turns:
                    kind = (upstream, turn.kind)
                    if kind in full:
                        continue
                    if turn.take():
                        self._serve(turn)
                        return turn
                    full.add(kind)
        return None

    def _serve(self, turn: T) -> None:
        """`turn` has taken a place: its repository, its identity and its upstream are the last to be asked again."""
        self._has_place(turn)
        self._remove(turn)
        if (identities := self._queues.get(turn.upstream)) is None:
            return
        self._queues.move_to_end(turn.upstream)
        if (repositories := identities.get(turn.identity)) is None:
            return
        identities.move_to_end(turn.identity)
        if turn.repository in repositories:
            repositories.move_to_end(turn.repository)

    def _add(self, turn: T, again: bool) -> None:
        identities = self._queues.setdefault(turn.upstream, OrderedDict())
        repositories = identities.setdefault(turn.identity, OrderedDict())
        turns = repositories.setdefault(turn.repository, [])
        self.waiting += 1
        self._waiting_of[turn.identity] += 1
        if not again:
            turns.append(turn)
            return
        self._again.add(turn)

        def is_before(other: T) -> bool:  # both were next already: by their numbers
            return other in self._again and other.number < turn.number

        turns.insert(sum(1 for _ in takewhile(is_before, turns)), turn)
        _to_front(repositories, turn.repository, lambda others: is_before(others[0]))
        _to_front(identities, turn.identity, lambda others: is_before(next(iter(others.values()))[0]))

    def _remove(self, turn: T) -> None:
        """Takes `turn` out of the line, if it is in it."""
        identities = self._queues.get(turn.upstream)
        repositories = identities.get(turn.identity) if identities is not None else None
        turns = repositories.get(turn.repository) if repositories is not None else None
        if identities is None or repositories is None or turns is None or turn not in turns:
            return
        turns.remove(turn)
        self._again.discard(turn)
        self.waiting -= 1
        _subtract(self._waiting_of, turn.identity)
        if not turns:
            del repositories[turn.repository]
        if not repositories:
            del identities[turn.identity]
        if not identities:
            del self._queues[turn.upstream]

    def _last(self, newcomer: T) -> T:
        """Who is refused: the one that came last, of the identity with the most in line; of several, rather the newcomer's."""
        most = max(self._waiting_of.values())
        longest = newcomer.identity
        if self._waiting_of[longest] < most:
            longest = next(identity for identity, count in self._waiting_of.items() if count == most)
        theirs = [identities[longest] for identities in self._queues.values() if longest in identities]
        return max((turns[-1] for repositories in theirs for turns in repositories.values()), key=lambda turn: turn.number)


def _subtract(counter: Counter[str], key: str) -> None:
    """Counts one less; a name that nobody uses is forgotten."""
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _to_front(ordered: OrderedDict[str, V], key: str, is_before: Callable[[V], bool]) -> None:
    """Moves `key` to the front, but behind those at the front that are before it."""
    front = list(takewhile(lambda other: other != key and is_before(ordered[other]), ordered))
    for one in (key, *reversed(front)):
        ordered.move_to_end(one, last=False)


def _before(ordered: OrderedDict[str, V], key: str, mine: int, count: Callable[[V], int]) -> int:
    """How many are served before one of `key` that has `mine` of its own before it, as each key takes a turn after the other."""
    before, earlier = mine, True
    for other, theirs in ordered.items():
        if other == key:
            earlier = False
        else:
            before += min(count(theirs), mine + earlier)
    return before


def _count(repositories: _Repositories[T]) -> int:
    return sum(map(len, repositories.values()))
