"""A clock that the test moves, for timers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast


class Timer:
    """A call that waits, as asyncio.TimerHandle."""

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when, self.call = when, call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """A loop whose clock the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + delay, call))
        return self.timers[-1]

    @property
    def waiting(self) -> list[Timer]:
        return sorted((timer for timer in self.timers if not timer.cancelled), key=lambda timer: timer.when)

    def run_until(self, until: float, each: Callable[[], None] = lambda: None) -> None:
        """Runs what is due by `until`, in order; `each` is called before each call."""
        while (due := self.waiting) and due[0].when <= until:
            self.timers.remove(due[0])
            self.now = due[0].when
            each()
            due[0].call()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """For code that uses only the loop's clock and its `call_later`."""
        return cast(asyncio.AbstractEventLoop, self)
