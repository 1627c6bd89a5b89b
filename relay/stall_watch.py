"""Ends a session in which bytes wait and do not move, whose client owes its next word for too long, or whose git host does not exit."""

from __future__ import annotations

import asyncio
from typing import Protocol

from relay.errors import ClientIdle, NoExit, RelayError, Stalled


class Watched(Protocol):
    """What carries a session."""

    @property
    def owed(self) -> float | None:
        """For how many seconds the client has owed its next word; None if something else is awaited."""

    def progress(self) -> tuple[tuple[int, int] | None, ...]:
        """Progress so far, each None where nothing is awaited: to the client, to the git host, and of a host that has yet to exit."""

    def stop(self, error: RelayError) -> bool:
        """Ends the session with `error`."""

    def host_hangs(self, error: NoExit) -> None:
        """The git host has ended its output and does not exit."""


class StallWatch:
    """Ends a session when bytes wait in one direction and none of them moved for stall_seconds. A quiet session is not stalled.

    After the git host has ended its output it must exit, or take input, within the same time.
    """

    def __init__(self, watched: Watched, seconds: float, idle_seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self._watched = watched
        self._seconds = seconds
        self._idle_seconds = idle_seconds
        self._loop = loop
        self._seen = watched.progress()
        now = loop.time()
        self._since = [now] * len(self._seen)
        self._timer = loop.call_later(min(seconds, idle_seconds) / 4, self._look)

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        owed = self._watched.owed
        if owed is not None and owed >= self._idle_seconds:
            self._watched.stop(ClientIdle(f"the client owed the git host a word for {owed:.0f} s"))
            return
        now = self._loop.time()
        progress = self._watched.progress()
        for side, (before, after) in enumerate(zip(self._seen, progress, strict=True)):
            if after is None or after != before:
                self._since[side] = now
            elif now - self._since[side] >= self._seconds:
                why = _why_stalled(side, now - self._since[side])
                if isinstance(why, NoExit):
                    self._watched.host_hangs(why)
                else:
                    self._watched.stop(why)
                return
        self._seen = progress
        self._timer = self._loop.call_later(min(self._seconds, self._idle_seconds) / 4, self._look)


def _why_stalled(side: int, seconds: float) -> RelayError:
    """`side`: the place in Watched.progress."""
    if side == 2:
        return NoExit(f"the git host ended its output, and for {seconds:.0f} s it neither exited nor took input")
    whom = ("client", "git host")[side]
    error = Stalled(f"no byte moved to the {whom} for {seconds:.0f} s though bytes waited")
    error.fault = "client" if side == 0 else "upstream"
    return error
