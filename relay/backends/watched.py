"""A value read from files, and read again in a thread when they changed; no signal and no client is needed."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

from relay.tasks import Tasks

LOOK_SECONDS = 1.0  # a value was checked against the files at most this long ago
LOOK_SHARE = 20  # or at most 20 times as long ago as the check takes: a folder that takes 0.3 s is checked every 6 s
WATCH_SHARE = 5  # while no client asks, files are checked 5 times less often: every 5 s, at most 1 % of a core
WATCH_LEAST_SECONDS = 0.05
HUNG_SECONDS = 5.0  # a check that takes longer hangs, as on a dead network file system: the old value is used meanwhile
RACY_SECONDS = 0.05  # a file that changed this recently may change again without a new timestamp

T = TypeVar("T")
S = TypeVar("S")

Tell = Callable[[str, list[str]], None]  # what was read ("keys", "access", ...), and its problems; [] when all of it is in force

_log = logging.getLogger("relay.watch")


@runtime_checkable
class Watching(Protocol):
    """A backend that reads files."""

    def watch(self, tell: Tell) -> None:
        """Checks the files from now on, also while no client asks, and calls `tell` whenever their problems change."""
        ...


class Watched(Generic[T, S]):
    """Keeps `value` up to date with the files. A change in which `read` finds problems is logged once and not accepted.

    With `in_parts` it is accepted all the same: then `read` decides what stays in force in place of the faulty parts.

    `stamp` is cheap, returns equal values as long as nothing changed, and never raises. `read` gets the stamp and returns the value and its
    problems. Both run in a thread, in one check at a time, and only after `current` or `watch` was called.
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
        self._check: asyncio.Task[None] | None = None
        self._told: list[str] = []
        self._broken = False  # the last check raised: a fault of the relay, which is logged
        started = time.monotonic()
        self._stamp = stamp()
        self.value, self.problems = read(self._stamp)
        self._checked(started)

    async def current(self) -> T:
        """The value. When the last check is too long ago, waits for a new one; after half that time starts one without waiting for it."""
        age = time.monotonic() - self._since
        if age >= self._fresh_seconds / 2:
            self._start_check()
        if age >= self._fresh_seconds and self._check is not None:
            await asyncio.wait((self._check,), timeout=HUNG_SECONDS)
        return self.value

    def watch(self, what: str, tell: Tell) -> None:
        """As `Watching.watch`; the loop must be running."""
        self._tasks.start(self._watch(what, tell), f"watch {self._name}")

    async def close(self) -> None:
        await self._tasks.cancel()

    async def _watch(self, what: str, tell: Tell) -> None:
        while True:
            checking = self._start_check()
            await asyncio.wait((checking,), timeout=HUNG_SECONDS)
            problems = self.problems
            if not checking.done():
                problems = [f"{self._name}: cannot be looked at, the file system does not answer", *problems]
            elif self._broken:
                problems = [f"{self._name}: reading failed by a fault of the relay, which its log describes", *problems]
            if problems != self._told:
                self._told = problems
                tell(what, problems)
            await asyncio.sleep(max(WATCH_LEAST_SECONDS, WATCH_SHARE * self._fresh_seconds))

    def _start_check(self) -> asyncio.Task[None]:
        """The check that runs, or a new one."""
        if self._check is None:
            self._check = self._tasks.start(self._check_files(), f"look at {self._name}")
        return self._check

    def _checked(self, started: float) -> None:
        self._since = started
        self._fresh_seconds = max(self._look_seconds, LOOK_SHARE * (time.monotonic() - started)) if self._look_seconds else 0.0

    async def _check_files(self) -> None:
        started, self._broken = time.monotonic(), True
        try:
            await asyncio.to_thread(self._check_now)
            self._broken = False
        finally:
            self._check = None
            self._checked(started)

    def _check_now(self) -> None:
        """Runs in a thread, with the comparisons, which take long for 100,000 files. The value is replaced by one assignment."""
        stamp = self._stamp_of()
        if stamp == self._stamp:
            return
        value, problems = self._read(stamp)
        if problems:
            if problems != self.problems:
                more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
                which = "a change in part" if self._in_parts and value != self.value else "a change"
                _log.error("%s: %s is not accepted, what was read before stays in force: %s%s", self._name, which, problems[0], more)
        elif self.problems or value != self.value:
            _log.info("%s: read again after a change", self._name)
        if self._in_parts or not problems:
            self.value = value
        self._stamp, self.problems = stamp, problems


def stamp_of(status: os.stat_result) -> tuple[object, ...]:
    """Equal only for the same file with the same content. For a file that changed just now each stamp differs, so that it is read again."""
    young = time.time() - status.st_ctime < RACY_SECONDS
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode, object() if young else None


def stamp_file(path: Path) -> tuple[object, ...] | str:
    """The stamp of the file at `path`, through symbolic links; the text of the error when it cannot be found."""
    try:
        return stamp_of(path.stat())
    except OSError as error:
        return str(error)
