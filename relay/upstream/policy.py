"""In which order the addresses of an upstream are tried for a session; decided without I/O.

* `first`: in the order of the configuration; the later ones serve while the first is down.
* `least_sessions`: the address with the fewest sessions of this worker; among equals the one used longest ago.
* `hash`: rendezvous hashing. Each address has a score for each repository, the same in every worker and after every restart, and the
  greatest wins. When an address is down, only its own repositories move, each to the address with the next score.

Addresses that are down are tried last, but they are tried: they may be up again.
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
        """None: not tried yet; counts as up."""

    @property
    def full(self) -> bool:
        """Whether connections_max connections are in use."""

    @property
    def sessions(self) -> int:
        """How many sessions it serves, or wait for it."""

    @property
    def used(self) -> int:
        """The number of the lease that last used it; grows with every lease."""


C = TypeVar("C", bound=Candidate)


def order(policy: Policy, candidates: Sequence[C], repository: str) -> list[C]:
    """All `candidates`, in the order to be tried. With `first` and `hash` a session waits for a full one, so that it keeps its place."""
    if policy == "least_sessions":
        return sorted(candidates, key=lambda one: (one.up is False, one.full, one.sessions, one.used))
    if policy == "hash":
        return sorted(candidates, key=lambda one: (one.up is False, -score(one.address, repository)))
    return sorted(candidates, key=lambda one: one.up is False)


def score(address: str, repository: str) -> int:
    """An address's score for a repository; the greatest wins."""
    return int.from_bytes(hashlib.blake2b(f"{address}\0{repository}".encode(), digest_size=8).digest(), "big")
