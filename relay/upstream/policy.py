"""Which address of an upstream a session is given first, and which after it: decided from what is known, without I/O.

* `first`: in the order of the configuration; the others are for when it is down.
* `least_sessions`: the one with the fewest sessions of this worker; among equals the one that was used longest ago.
* `hash`: rendezvous hashing. Each address has a score for each repository, the same in every worker and after every restart, and the
  greatest wins: so an address that is lost moves only its own repositories, to each one's second.

An address that is down comes after all others, but it comes: a relay that knows of nothing better tries, rather than refusing unseen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeVar

from relay.config import Policy


class Candidate(Protocol):
    """What is known of one address."""

    @property
    def address(self) -> str: ...

    @property
    def up(self) -> bool | None:
        """None: not tried yet, which is no reason against it."""

    @property
    def full(self) -> bool:
        """It has as many connections as it may, all in use."""

    @property
    def sessions(self) -> int:
        """That it serves, or that wait for it."""

    @property
    def used(self) -> int:
        """When it was last given to a session, as a number that grows."""


C = TypeVar("C", bound=Candidate)


def order(policy: Policy, candidates: Sequence[C], repository: str) -> list[C]:
    """All `candidates`, the one to be asked first in front. For `first` and `hash` a full one is waited for, so it keeps its place."""
    if policy == "least_sessions":
        return sorted(candidates, key=lambda one: (one.up is False, one.full, one.sessions, one.used))
    if policy == "hash":
        return sorted(candidates, key=lambda one: (one.up is False, -score(one.address, repository)))
    return sorted(candidates, key=lambda one: one.up is False)


def score(address: str, repository: str) -> int:
    """Of an address for a repository; the greatest wins."""
    return int.from_bytes(hashlib.blake2b(f"{address}\0{repository}".encode(), digest_size=8).digest(), "big")
