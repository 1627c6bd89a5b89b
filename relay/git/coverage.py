"""Compares patterns of `relay.git.globs`: does one match all that another matches (`covers`), is there a name that both match (`overlap`)?

Names have no empty segments. Both functions walk the patterns' automata together, and give up after `budget` steps with the answer that
leads to no warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

BUDGET: Final = 20_000
_OTHER: Final = "\ue000"  # stands for all characters that none of the patterns has


class _Pattern:
    """An automaton over characters. Each place has a literal character or one of three kinds of star."""

    def __init__(self, pattern: str) -> None:
        texts = pattern.split("/")
        segments = [one for number, one in enumerate(texts) if one != "**" or texts[number + 1 : number + 2] != ["**"]]
        self.parts: list[str] = []  # a character; *; **/ for any number of segments, ** for one or more at the end
        for number, segment in enumerate(segments):
            last = number == len(segments) - 1
            if segment == "**":
                self.parts.append("**" if last else "**/")
            else:
                self.parts += [*segment] if last else [*segment, "/"]
        self.end = len(self.parts)
        self.letters = {part for part in self.parts if len(part) == 1 and part != "*"}

    def rest(self, place: int) -> Iterator[int]:
        """`place`, and the places that are reached from it without consuming a character."""
        yield place
        while place < self.end and self.parts[place] in ("*", "**/"):
            place += 1
            yield place

    def after(self, place: int, letter: str, at_start: bool) -> Iterator[int]:
        """The places after `letter` was consumed at `place`. A negative place is within a segment that the **/ at ~place consumes."""
        if place < 0:  # within a segment that the **/ at ~place consumes
            yield ~place if letter == "/" else place
        elif place < self.end:
            part = self.parts[place]
            if part == "**/":
                if letter != "/" and at_start:
                    yield ~place
            elif part == "**":
                yield place
                yield self.end + 1
            elif part == "*":
                if letter != "/":
                    yield place
            elif part == letter:
                yield place + 1

    def accepts(self, place: int) -> bool:
        return place in (self.end, self.end + 1)


def covers(wider: Sequence[str], narrow: str, budget: int = BUDGET) -> bool:
    """Whether one of `wider` matches each name that `narrow` matches; False when that takes more than `budget` steps."""
    wider = [pattern for pattern in wider if _may_meet(pattern, narrow)]
    if not wider:
        return False
    inner, outer = _Pattern(narrow), [_Pattern(pattern) for pattern in wider]
    letters = _letters(inner, *outer)
    begin = frozenset((number, place) for number, one in enumerate(outer) for place in one.rest(0))
    pending = [(place, begin, True) for place in inner.rest(0)]
    seen = set(pending)
    steps = 0
    while pending:
        place, states, at_start = pending.pop()
        if inner.accepts(place) and not at_start and not any(outer[number].accepts(one) for number, one in states):
            return False
        for letter in letters:
            if letter == "/" and at_start:
                continue
            targets = {reached for one in inner.after(place, letter, at_start) for reached in _rest(inner, one)}
            if not targets:
                continue
            steps += 1 + len(states)
            if steps > budget:
                return False
            after = frozenset(
                (number, reached)
                for number, at in states
                for one in outer[number].after(at, letter, at_start)
                for reached in _rest(outer[number], one)
            )
            for target in targets:
                found = (target, after, letter == "/")
                if found not in seen:
                    seen.add(found)
                    pending.append(found)
    return True


def overlap(one: str, other: str, budget: int = BUDGET) -> bool:
    """Whether both match some name; True when that takes more than `budget` steps."""
    if not _may_meet(one, other):
        return False
    first, second = _Pattern(one), _Pattern(other)
    letters = _letters(first, second)
    pending = [(here, there, True) for here in first.rest(0) for there in second.rest(0)]
    seen = set(pending)
    steps = 0
    while pending:
        here, there, at_start = pending.pop()
        if first.accepts(here) and second.accepts(there) and not at_start:
            return True
        steps += 1
        if steps > budget:
            return True
        for letter in letters:
            if letter == "/" and at_start:
                continue
            for left in first.after(here, letter, at_start):
                for right in second.after(there, letter, at_start):
                    for found in ((a, b, letter == "/") for a in _rest(first, left) for b in _rest(second, right)):
                        if found not in seen:
                            seen.add(found)
                            pending.append(found)
    return False


def _rest(pattern: _Pattern, place: int) -> Iterator[int]:
    if place < 0 or place > pattern.end:
        yield place
    else:
        yield from pattern.rest(place)


def _letters(*patterns: _Pattern) -> list[str]:
    return sorted({"/", _OTHER}.union(*(one.letters for one in patterns)))


def _may_meet(one: str, other: str) -> bool:
    """A quick check of the text before the first star: False only if no name is matched by both."""
    left, right = one.partition("*")[0], other.partition("*")[0]
    return left.startswith(right) or right.startswith(left)
