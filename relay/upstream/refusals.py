"""Logins that a git host refused, by identity ("" for the upstream's private_key): no worker tries them again for a while.

A refused login costs the relay's address a penalty at the git host (OpenSSH's PerSourcePenalties: 5 s for each by default, and from 15 s
together it turns every connection away), so one identity's bad certificate would shut out everybody.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from relay.errors import Unavailable

REMEMBERED_MOST = 10_000


class Refusals:
    """One upstream's refused logins, each remembered for `seconds`; with 0 none is."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._until: OrderedDict[tuple[str, str], tuple[float, str]] = OrderedDict()  # by identity and address

    def add(self, identity: str, address: str, detail: str, seconds: float | None = None) -> None:
        seconds = self.seconds if seconds is None else seconds
        if seconds <= 0:
            return
        self._until[identity, address] = (self._clock() + seconds, detail)
        self._until.move_to_end((identity, address))
        if len(self._until) > REMEMBERED_MOST:
            self._until.popitem(last=False)

    def left(self, identity: str, address: str) -> float:
        """For how many more seconds the login is not to be tried."""
        until, _ = self._until.get((identity, address), (0.0, ""))
        return max(until - self._clock(), 0.0)

    def forget(self, identity: str, address: str) -> None:
        """A login was accepted."""
        self._until.pop((identity, address), None)

    def check(self, identity: str, address: str) -> None:
        """Raises Unavailable("auth") while the login is not to be tried."""
        until, detail = self._until.get((identity, address), (0.0, ""))
        left = until - self._clock()
        if left > 0:
            raise Unavailable(f"{detail}; not tried again for {left:.0f} s", reason="auth")
        self._until.pop((identity, address), None)
