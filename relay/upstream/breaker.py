"""A circuit breaker: after several dials in a row that failed an address is left alone for a growing pause, then tried by one dial.

    closed --failures in a row--> open --the pause is over--> half-open --the trial's dial: ok--> closed
                                   ^-----------------------------------/ failed: a pause twice as long

Pure: it has neither clock nor timer. Who owns it asks for the pause, waits, and says when the trial begins.
"""

from __future__ import annotations

from typing import Literal

FIRST_PAUSE_SECONDS = 0.25
MOST_PAUSE_SECONDS = 15.0

BreakerState = Literal["closed", "open", "half-open"]


class Breaker:
    """Of one address; it opens at the first failure as long as no dial has ever succeeded, for then there is nothing to shield."""

    def __init__(self, failures: int) -> None:
        self.state: BreakerState = "closed"
        self.proven = False  # a dial succeeded once
        self._limit = failures
        self._failures = 0
        self._pause = 0.0

    def __repr__(self) -> str:
        return f"<breaker {self.state} failures={self._failures}>"

    def failed(self, *, at_once: bool = False) -> None:
        """A dial failed; `at_once`: in a way that no further dial can mend."""
        self._failures += 1
        if at_once or not self.proven or self._failures >= self._limit or self.state == "half-open":
            self.state = "open"

    def succeeded(self) -> None:
        self.state = "closed"
        self.proven = True
        self._failures = 0
        self._pause = 0.0

    def pause(self) -> float:
        """Seconds until the next dial that no session asked for; twice as long each time, until one succeeds."""
        self._pause = min(self._pause * 2, MOST_PAUSE_SECONDS) if self._pause else FIRST_PAUSE_SECONDS
        return self._pause

    def try_again(self) -> None:
        """The pause is over: one dial is on its way."""
        if self.state == "open":
            self.state = "half-open"
