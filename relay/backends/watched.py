"""A value read from files and read again when they changed: without a signal or a client's coming, and never on the loop's own time."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

from relay.tasks import Tasks

LOOK_SECONDS = 1.0  # an answer is at most this old, or this many times as old as looking takes, whichever is more:
LOOK_SHARE = 20  # a folder that takes 0.3 s to look through is looked through every 6 s
WATCH_SHARE = 5  # without a client that asks, files are looked at this many times as seldom: every 5 s, at 1 % of a core at most
WATCH_LEAST_SECONDS = 0.05
WAIT_SECONDS = 5.0  # for a look that hangs, as on a dead network file system; then the old value answers
RACY_SECONDS = 0.05  # a file changed so recently may change again within the same tick of its timestamp

T = TypeVar("T")
S = TypeVar("S")

Tell = Callable[[str, list[str]], None]  # what was read ("keys", "access", ...), and why not all of it is in force; [] when all of it is

_log = logging.getLogger("relay.watch")


@runtime_checkable
class Watching(Protocol):
    """A backend that reads files."""

    def watch(self, tell: Tell) -> None:
        """Looks at the files from now on although no client asks, and tells whenever a fault in them comes, changes or is mended."""
        ...


class Watched(Generic[T, S]):
    """`value` belongs to what `stamp` saw last; a change in which `read` finds problems is not taken, and logged once.

    With `in_parts` the value is taken all the same: `read` has decided what stays in force of what cannot be read.

    `stamp` is cheap, equal as long as nothing changed, and raises nothing; `read` gets the stamp and returns the value and its
    problems. Both run in a thread. Nothing runs unless `current` is asked or `watch` was called; there is one look at a time.
    """

    def __init__(
        self,
        name: str,
        stamp: Callable[[], S],
        read: Callable[[S], tuple[T, list[str]]],
        *,
        look_seconds: float = LOOK_SECONDS,
        in_parts: bool = False,
    ) -> None:
        self._name = name
        self._in_parts = in_parts
        self._stamp_of = stamp
        self._read = read
        self._look_seconds = look_seconds
        self._tasks = Tasks()
        self._looking: asyncio.Task[None] | None = None
        self._told: list[str] = []
        self._broken = False  # the last look raised: a fault of the relay, which is in the log
        started = time.monotonic()
        self._stamp = stamp()
        self.value, self.problems = read(self._stamp)
        self._looked(started)

    async def current(self) -> T:
        """The value; waits for a look only when none has begun for too long. Past half that time the look runs beside the answer."""
        age = time.monotonic() - self._since
        if age >= self._fresh_seconds / 2:
            self._begin()
        if age >= self._fresh_seconds and self._looking is not None:
            await asyncio.wait((self._looking,), timeout=WAIT_SECONDS)
        return self.value

    def watch(self, what: str, tell: Tell) -> None:
        """As `Watching.watch`; the loop must be running."""
        self._tasks.start(self._watch(what, tell), f"watch {self._name}")

    async def close(self) -> None:
        await self._tasks.cancel()

    async def _watch(self, what: str, tell: Tell) -> None:
        while True:
            looking = self._begin()
            await asyncio.wait((looking,), timeout=WAIT_SECONDS)
            problems = self.problems
            if not looking.done():
                problems = [f"{self._name}: cannot be looked at, the file system does not answer", *problems]
            elif self._broken:
                problems = [f"{self._name}: reading failed by a fault of the relay, which its log describes", *problems]
            if problems != self._told:
                self._told = problems
                tell(what, problems)
            await asyncio.sleep(max(WATCH_LEAST_SECONDS, WATCH_SHARE * self._fresh_seconds))

    def _begin(self) -> asyncio.Task[None]:
        """The look that is under way, or a new one."""
        if self._looking is None:
            self._looking = self._tasks.start(self._look(), f"look at {self._name}")
        return self._looking

    def _looked(self, started: float) -> None:
        self._since = started
        self._fresh_seconds = max(self._look_seconds, LOOK_SHARE * (time.monotonic() - started)) if self._look_seconds else 0.0

    async def _look(self) -> None:
        started, self._broken = time.monotonic(), True
        try:
            await asyncio.to_thread(self._look_now)
            self._broken = False
        finally:
            self._looking = None
            self._looked(started)

    def _look_now(self) -> None:
        """In a thread, comparisons too: they are not short for 100,000 files. The value is replaced in one assignment."""
        stamp = self._stamp_of()
        if stamp == self._stamp:
            return
        value, problems = self._read(stamp)
        if problems:
            if problems != self.problems:
                more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
                which = "a change in part" if self._in_parts and value != self.value else "a change"
                _log.error("%s: %s is not taken, what was read before stays in force: %s%s", self._name, which, problems[0], more)
        elif self.problems or value != self.value:
            _log.info("%s: read again after a change", self._name)
        if self._in_parts or not problems:
            self.value = value
        self._stamp, self.problems = stamp, problems


def stamp_of(status: os.stat_result) -> tuple[object, ...]:
    """Equal only for the same file with the same content; unequal to itself while the file is too young to tell."""
    young = time.time() - status.st_ctime < RACY_SECONDS
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode, object() if young else None


def stamp_file(path: Path) -> tuple[object, ...] | str:
    """Follows symbolic links; the error's text where there is no such file."""
    try:
        return stamp_of(path.stat())
    except OSError as error:
        return str(error)
