"""How many sessions an upstream takes over in a second after their connections were lost, so that a restart is not followed by a storm."""

from __future__ import annotations

import time
from collections.abc import Callable


class ReplayBudget:
    """`per_second` replays at once, then as many in each second; those beyond wait their turn. With 0 there is none."""

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second = per_second
        self._clock = clock
        self._next = 0.0  # on the clock: when the whole second's budget is there again (GCRA's theoretical arrival time)

    def reserve(self, patience: float) -> float | None:
        """How many seconds the next replay must wait for its turn; None, and nothing is reserved, when that is more than `patience`."""
        if not self.per_second:
            return None
        now, interval = self._clock(), 1 / self.per_second
        wait = max(0.0, self._next - (1 - interval) - now)
        if wait > patience:
            return None
        self._next = max(self._next, now) + interval
        return wait
