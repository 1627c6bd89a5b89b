"""Puts rules for refs into the order in which they decide for one identity; docs/backends.md explains the order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, get_args

from relay.git.namespaces import anybodys, own_ref
from relay.model import Change, Grant, RefRule

CHANGES: tuple[Change, ...] = get_args(Change)


class ApplicableRule(NamedTuple):
    """One rule for the repository, with whether it names the identity in question; a rule that does not allow denies."""

    refs: tuple[str, ...]
    changes: tuple[Change, ...]
    allows: bool
    names_them: bool


def applicable(
    refs: Sequence[str], changes: tuple[Change, ...], allows: bool, names_them: bool, who: str, *, folded: bool = False
) -> Iterator[ApplicableRule]:
    """A rule as it is for `who`: {identity} in a ref is their name. What such a rule allows is theirs alone, so everybody else's refs that
    its patterns could match are protected from them."""
    mine = tuple(pattern for pattern in (own_ref(ref, who, folded=folded) for ref in refs) if pattern is not None)
    if mine:
        yield ApplicableRule(mine, changes, allows, names_them)
    others = tuple(everybodys for ref in refs if (everybodys := anybodys(ref)) != ref)
    if others and allows:
        yield ApplicableRule(others, changes, allows=True, names_them=False)


def in_order(rules: Iterable[ApplicableRule]) -> tuple[RefRule, ...]:
    """First the rules that deny, then those that allow, then those that allow others only: they protect their refs from this identity."""
    denied: list[RefRule] = []
    allowed: list[RefRule] = []
    protected: list[RefRule] = []
    for rule in rules:
        decided = RefRule(refs=rule.refs, write=rule.allows and rule.names_them, changes=rule.changes)
        if rule.names_them:
            (allowed if rule.allows else denied).append(decided)
        elif rule.allows:
            protected.append(decided)
    return (*denied, *allowed, *protected)


def push_grant(write: bool, refs: tuple[RefRule, ...]) -> Grant | None:
    """The grant for an identity that may write the repository (`write`), or only the refs that rules allow it; None if there are none."""
    if write:
        return Grant(access="write", refs=refs)
    if any(rule.write for rule in refs):
        return Grant(access="write", refs=(*refs, RefRule(refs=("**",), write=False)))
    return None
