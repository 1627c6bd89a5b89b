"""Rules that name refs, brought into the order in which they decide for one person; the table is in docs/backends.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, get_args

from relay.model import Change, Grant, RefRule

CHANGES: tuple[Change, ...] = get_args(Change)


class Said(NamedTuple):
    """One rule for the repository, as it is about one person; it denies when it does not allow."""

    refs: tuple[str, ...]
    changes: tuple[Change, ...]
    allows: bool
    names_them: bool


def in_order(rules: Iterable[Said]) -> tuple[RefRule, ...]:
    """What denies, what allows, and then what allows others only: naming refs protects them."""
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
    """For one who may `write` the repository as such, or only what rules with refs allow them; None when there is nothing."""
    if write:
        return Grant(access="write", refs=refs)
    if any(rule.write for rule in refs):
        return Grant(access="write", refs=(*refs, RefRule(refs=("**",), write=False)))
    return None
