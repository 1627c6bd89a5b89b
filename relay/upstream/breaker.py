"""A circuit breaker: after several failed dials in a row no dial is made to an address for a growing pause; then one trial dial decides.

    closed --failures in a row--> open --the pause is over--> half-open --the trial's dial: ok--> closed
                                   ^-----------------------------------/ failed: a pause twice as long

It has neither clock nor timer. Its owner asks for the pause, waits, and calls `try_again` when the trial begins.
"""

from __future__ import annotations

from typing import Literal

FIRST_PAUSE_SECONDS = 0.25
MOST_PAUSE_SECONDS = 15.0

BreakerState = Literal["closed", "open", "half-open"]


class Breaker:
    """The breaker of one address. Until a dial has succeeded once it opens at the first failure."""

    def __init__(self, failures: int) -> None:
        self.state: BreakerState = "closed"
        self.proven = False  # whether a dial has ever succeeded
        self._limit = failures
        self._failures = 0
        self._pause = 0.0

    def __repr__(self) -> str:
        return f"<breaker {self.state} failures={self._failures}>"

    def failed(self, *, at_once: bool = False) -> None:
        """A dial failed. `at_once`: another dial would fail too (host key mismatch), so the breaker opens."""
        self._failures += 1
        if at_once or not self.proven or self._failures >= self._limit or self.state == "half-open":
            self.state = "open"

    def succeeded(self) -> None:
        self.state = "closed"
        self.proven = True
        self._failures = 0
        self._pause = 0.0

    def pause(self) -> float:
        """Seconds until the next trial dial; twice as long each time, until a dial succeeds."""
        self._pause = min(self._pause * 2, MOST_PAUSE_SECONDS) if self._pause else FIRST_PAUSE_SECONDS
        return self._pause

    def try_again(self) -> None:
        """The pause is over and the trial dial begins."""
        if self.state == "open":
            self.state = "half-open"
