"""Backpressure towards clients: the socket buffer of one connection, and the bytes that all sessions of a worker may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

FREE_BYTES: Final = 64 * 1024  # a session may hold this much even when stalled sessions have spent the budget
RESUME_FRACTION: Final = 0.875  # of the budget; paused sessions go on below it


class Budget:
    """The bytes that all sessions of a worker may hold together. `used` is never negative. Bytes are counted when they are already held, so
    `used` may exceed the total by one chunk, and FREE_BYTES, for each session."""

    def __init__(self, total_bytes: int) -> None:
        self.total = total_bytes
        self.used = 0
        self.peak = 0
        self._paused: dict[Share, None] = {}  # in the order in which they were paused

    @property
    def over(self) -> bool:
        return self.used > self.total

    def take(self, count: int) -> bool:
        """Counts bytes that are held now; True when the budget is exceeded and readers must pause."""
        if count < 0:
            raise ValueError(f"{count} bytes cannot be taken")
        self.used += count
        self.peak = max(self.peak, self.used)
        return self.over

    def give(self, count: int) -> bool:
        """Counts bytes that were released; True when the budget is still exceeded. Raises ValueError for more than was taken."""
        if not 0 <= count <= self.used:
            raise ValueError(f"{count} bytes cannot be given back, {self.used} are held")
        self.used -= count
        while self._paused and self.used <= self.total * RESUME_FRACTION:  # resume one at a time: each may spend the budget again at once
            share = next(iter(self._paused))
            del self._paused[share]
            share._resume()
        return self.over

    def share(self, resume: Callable[[], None]) -> Share:
        """One session's share. `resume` is called when a paused session may continue, from within another session's `hold` or `close`."""
        return Share(self, resume)


class Share:
    """The bytes that one session holds. `close` releases them; a later `hold` counts nothing."""

    __slots__ = ("_budget", "_open", "_resume", "held")

    def __init__(self, budget: Budget, resume: Callable[[], None]) -> None:
        self.held = 0
        self._budget = budget
        self._open = True
        self._resume = resume

    def hold(self, count: int) -> bool:
        """Sets how many bytes the session holds. True: read no more until `resume` is called or `hold` returns False.

        A session that holds at most FREE_BYTES is never paused, so stalled sessions that spent the budget stop only themselves.
        """
        if count < 0:
            raise ValueError(f"{count} bytes cannot be held")
        if not self._open or (not count and not self.held):
            return False
        budget, before, self.held = self._budget, self.held, count
        budget._paused.pop(self, None)
        over = budget.take(count - before) if count >= before else budget.give(before - count)
        if not over or count <= FREE_BYTES:
            return False
        budget._paused[self] = None
        return True

    def close(self) -> None:
        self._open = False
        self._budget._paused.pop(self, None)
        held, self.held = self.held, 0
        if held:
            self._budget.give(held)


class Drainable(Protocol):
    """What Flow needs of a channel."""

    def drained(self) -> None:
        """The socket has room again."""
        ...


class Flow:
    """One client connection's outgoing socket buffer, as its channels see it; relay.ssh.packets reports the transport's pauses to it."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.transport_full = False
        self._waiting: set[Drainable] = set()

    def pause_writing(self) -> None:
        self.transport_full = True

    def resume_writing(self) -> None:
        self.transport_full = False
        self.wake()

    def wake(self) -> None:
        """Tells each channel that waits to look again: the socket takes more, or a key exchange has ended."""
        waiting, self._waiting = self._waiting, set()
        for channel in waiting:
            channel.drained()

    def wait(self, channel: Drainable) -> None:
        self._waiting.add(channel)

    def forget(self, channel: Drainable) -> None:
        self._waiting.discard(channel)
