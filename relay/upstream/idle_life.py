"""How long idle connections live at an address, learned from those that the git host closed, and what they cost.

sshd closes a connection that ran no command for its UnusedConnectionTimeout, and a firewall or a balancer may have a limit too; no protocol
announces it. Connections that are replaced a little earlier are never handed to a session while the git host closes them.

Pure: it is given the clock, and the member does what it advises.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

LEARN_FROM = 3  # closes in a row that agree; a host that was restarted closes connections of any age
TOGETHER_SECONDS = 0.5  # closes within so long of each other are one: connections that were opened together, or a restart
AGREE_SECONDS, AGREE_SHARE = 2.0, 0.25  # how far lifetimes that agree are apart at most: sshd counts in whole seconds
MARGIN_SECONDS, MARGIN_SHARE = 1.0, 0.05  # how long before the shortest lifetime a connection is replaced; half of it at most
LEAST_SECONDS = 0.5  # sooner no connection is replaced: each costs a login
FORGET_SECONDS = 3600.0  # then one connection is left idle again, for the git host may have been configured otherwise
FORGET_LIVES = 4.0  # but not within so many lifetimes
TOLD_SECONDS = 60.0  # between two lines of the log


class IdleLives:
    """Of all addresses of an upstream, which the pools of its identities share."""

    def __init__(self) -> None:
        self._lives: dict[str, IdleLife] = {}

    def of(self, address: str) -> IdleLife:
        return self._lives.setdefault(address, IdleLife())


class IdleLife:
    """Of one address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lives: deque[float] = deque(maxlen=LEARN_FROM)  # in seconds; those closed together are one, the shortest
        self._closed_at = float("-inf")  # when the last one was closed
        self._told_at = float("-inf")
        self._closed: list[float] = []  # since the last line: lifetimes, the shortest and the longest
        self._closes = self._replaced = 0  # since the last line

    def __repr__(self) -> str:
        return f"<idle life {' '.join(f'{life:.1f}' for life in self._lives)}>"

    def closed(self, seconds: float) -> str:
        """The git host closed a connection that had been idle for so long; returns what the log is told, nothing most of the time."""
        now = self._clock()
        if now - self._closed_at < TOGETHER_SECONDS and self._lives:
            self._lives[-1] = min(self._lives[-1], seconds)
        else:
            self._lives.append(seconds)
        self._closed_at = now
        self._closes += 1
        self._closed = [min([seconds, *self._closed]), max([seconds, *self._closed])]
        return self._tell(now)

    def replaced(self) -> str:
        """A connection was closed because `replace_after` was over; returns as `closed`."""
        self._replaced += 1
        return self._tell(self._clock())

    def replace_after(self) -> float | None:
        """For how many seconds a connection may be idle before it is to be replaced; None: no limit is known."""
        if len(self._lives) < LEARN_FROM:
            return None
        least, most = min(self._lives), max(self._lives)
        if most - least > max(AGREE_SECONDS, AGREE_SHARE * most):
            return None
        if self._clock() - self._closed_at > max(FORGET_SECONDS, FORGET_LIVES * most):
            self._lives.clear()
            return None
        return max(least - min(max(MARGIN_SECONDS, MARGIN_SHARE * least), least / 2), LEAST_SECONDS)

    def _tell(self, now: float) -> str:
        """The first at once, those of the following minute in one line."""
        passed = now - self._told_at
        if passed < TOLD_SECONDS:
            return ""
        said = []
        if self._closes:
            least, most = self._closed
            ages = f"{least:.1f} s" if least == most else f"{least:.1f} to {most:.1f} s"
            said.append(f"the git host closed {self._closes} after {ages}")
        if self._replaced:
            said.append(f"{self._replaced} were replaced before it would")
        period = f" in {passed:.0f} s" if passed < float("inf") else ""
        count = self._closes + self._replaced
        self._told_at = now
        self._closes = self._replaced = 0
        self._closed = []
        return f"idle connections{period}: {', '.join(said)}; {count} more {'login' if count == 1 else 'logins'} (UnusedConnectionTimeout?)"
