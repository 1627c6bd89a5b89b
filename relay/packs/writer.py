"""Filling an entry: what a git host answers goes to the disk in threads, not much faster than the fastest of those that read along."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from relay.packs import entry
from relay.packs.disk import Closed, Outcome
from relay.packs.entry import HEADER_BYTES, Damaged, Header
from relay.packs.opened import Opened
from relay.packs.rest import Rest

AHEAD_BYTES: Final = 64 << 20  # of the fastest reader, in any worker
AHEAD_LOW_BYTES: Final = 48 << 20  # there is room again when it is no more than so far behind
UNWRITTEN_BYTES: Final = 8 << 20  # that may wait for the disk
UNWRITTEN_LOW_BYTES: Final = 4 << 20
LOOK_SECONDS: Final = 0.2  # between two looks at the readers of other workers
LOOK_WAITING_SECONDS: Final = 0.02  # while the git host waits for them
PIECES: Final = 512  # in one call of pwritev; IOV_MAX is 1024


class Short(Exception):
    """The file system has fewer free bytes than free_bytes: so many too few."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


class Keeper(Protocol):
    """Who has the folder."""

    max_bytes: int
    free_bytes: int

    def take_room(self, count: int) -> bool:
        """Whether an entry may grow by `count` bytes; `return_room` follows if so."""

    def return_room(self, count: int, *, written: bool) -> None:
        """The entry has grown by `count` bytes, or it has not."""

    def make_room(self, count: int, short: int, call: Callable[[bool], None]) -> None:
        """Removes entries that are longest unused, so that others may grow by `count` bytes and the file system gets `short` bytes back;
        then calls `call`, from the loop, with whether there is room for `count` bytes."""

    def now(self) -> float:
        """Seconds since the epoch."""

    def given_up(self, opened: Opened, why: str, blame: str) -> None:
        """A fill has failed; `blame`: max_bytes, free_bytes, disk, damage by somebody else, or empty. The entry must be removed."""


class Writer:
    """Who fills an entry. Ends with `publish` or `fail`; trouble with the disk is a `fail` too."""

    def __init__(self, opened: Opened, header: Header, keeper: Keeper) -> None:
        self.failed: str | None = None  # why
        self.unkept = ""  # why the disk takes no more of it: it is not kept, and the readers of this worker read the rest from memory
        self.length = 0  # bytes of the body that were given to `write`
        self._entry = opened
        self._header = header
        self._keeper = keeper
        self._waiting: list[bytes] = []  # for the disk
        self._waiting_bytes = 0
        self._writing = False  # a thread does
        self._publishing = False
        self._made_room = False  # as the file system was short, for what waits first
        self._elsewhere: int | None = None  # how far the fastest reader of other workers is
        self._room_call: Callable[[], None] | None = None
        self._unwanted_call: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        opened.hold()
        opened.filler = self
        self._look_later()

    def __repr__(self) -> str:
        return f"<Writer of {self.length} bytes, {self._waiting_bytes} wait, {self._entry!r}>"

    @property
    def over(self) -> bool:
        return self.failed is not None or self._entry.whole

    # -- what comes from the git host ----------------------------------------------------------------------------------------

    def write(self, data: bytes | memoryview) -> None:
        """Copies `data`, which goes to the disk soon. Ignored after a failure."""
        if self.failed is not None:
            return
        assert not self._publishing, "written after it was published"
        self.length += len(data)
        rest = self._entry.rest
        if rest is not None:
            rest.add(bytes(data))
            self._entry.grew(rest.end)
            return
        self._waiting.append(bytes(data))
        self._waiting_bytes += len(data)
        self._flush()

    @property
    def full(self) -> bool:
        """Whether the git host must wait: for the disk, or for readers."""
        return not self._has_room(UNWRITTEN_BYTES, AHEAD_BYTES)

    def _has_room(self, unwritten: int, ahead: int) -> bool:
        if self.failed is not None:
            return True  # what comes goes nowhere
        if self._entry.rest is not None:
            return len(self._entry.rest) <= unwritten
        fastest = self._fastest()
        return self.length - self._entry.size <= unwritten and fastest is not None and self.length - fastest <= ahead

    def on_room(self, call: Callable[[], None]) -> None:
        """Calls `call` once, from the loop, when there is room again."""
        self._room_call = call
        self._look_later()
        self._check_room()

    def publish(self) -> None:
        """All was written: the entry becomes whole as soon as it is on the disk, and may be read by those that come later."""
        if self.failed is not None:
            return
        self._publishing = True
        if self._entry.rest is None:
            self._flush()
        else:
            self._end()
            self._entry.became_whole()  # for those who read it; nobody else finds it
            self._let_go()

    def fail(self, why: str) -> None:
        """The entry is gone; its readers get EntryFailed. Ignored once it is over."""
        self._fail(why, blame="")

    def _fail(self, why: str, blame: str) -> None:
        if self.over:
            return
        self.failed = why
        self._waiting.clear()
        self._end()
        self._entry.fail(why)
        if not self.unkept:
            self._take_back(why, blame)
        if not self._writing:  # else its thread has the descriptor
            self._let_go()

    def _take_back(self, why: str, blame: str) -> None:
        """No other session finds it from now on, and those of other workers that read it hear that it has failed."""
        try:
            entry.write_header(self._entry.fd, self._failed_header())
        except OSError:
            pass  # when its lock is free and it is not whole, readers of other workers know
        self._keeper.given_up(self._entry, why, blame)

    def _leave_disk(self, why: str, blame: str, pieces: Sequence[bytes] = ()) -> None:
        """The disk takes no more, `pieces` to begin with. A full disk must fail no session of this worker, so the rest stays in memory."""
        assert not self._writing
        opened = self._entry
        if not opened.readers:
            self._fail(why, blame)
            return
        self.unkept = why
        opened.rest = Rest(opened.size, [*pieces, *self._waiting])
        self._waiting.clear()
        self._waiting_bytes = 0
        self._elsewhere = None
        self._take_back(why, blame)
        opened.grew(opened.rest.end)
        if self._publishing:
            self.publish()
        else:
            self._check_room()

    def _failed_header(self) -> Header:
        header = self._header
        return Header(header.key, "failed", 0, header.made, header.about, header.boot)

    def _let_go(self) -> None:
        entry.release(self._entry.fd)
        self._entry.drop()

    def _end(self) -> None:
        """Nobody has to wait any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._unwanted_call = None
        if self._room_call is not None:
            self._call(self._room_call)
            self._room_call = None

    # -- to the disk ---------------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        if self._writing or self.over or self.unkept or not (self._waiting or self._publishing):
            return
        if HEADER_BYTES + self.length > self._keeper.max_bytes:
            self._leave_disk(f"it is larger than packs.max_bytes ({self._keeper.max_bytes})", "max_bytes")
            return
        if not self._keeper.take_room(self._waiting_bytes):
            self._make_room(self._waiting_bytes, 0)
            return
        pieces, self._waiting = self._waiting, []
        count, self._waiting_bytes = self._waiting_bytes, 0
        fd, offset, publishing = self._entry.fd, HEADER_BYTES + self._entry.size, self._publishing
        header, made, free_bytes = self._header, self._keeper.now(), self._keeper.free_bytes
        whole = Header(header.key, "whole", self.length, made, header.about, header.boot)

        def work() -> None:
            if (size := os.fstat(fd).st_size) != offset:  # else bytes that are gone would be read as zeros
                raise Damaged(f"somebody else has changed it: it has {size} bytes, must have {offset}")
            if pieces and free_bytes:
                file_system = os.fstatvfs(fd)
                if (short := free_bytes + count - file_system.f_bavail * file_system.f_frsize) > 0:
                    raise Short(short)
            write_all(fd, pieces, offset)
            if publishing:
                entry.write_header(fd, whole)
                entry.release(fd)

        self._writing = True
        self._entry.disk.run(work, lambda result: self._written(result, pieces, count, made if publishing else None))

    def _make_room(self, count: int, short: int) -> None:
        self._writing = True  # nothing else is written meanwhile
        self._keeper.make_room(count, short, self._room_made)

    def _room_made(self, enough: bool) -> None:
        self._writing = False
        if self.failed is not None:
            self._let_go()
        elif not enough:
            self._leave_disk("packs.max_bytes is used up by entries that are being filled", "max_bytes")
        else:
            self._flush()

    def _written(self, result: Outcome[None], pieces: list[bytes], count: int, published: float | None) -> None:
        self._writing = False
        error = result.error
        self._keeper.return_room(count, written=error is None)
        if self.failed is not None:
            if published is not None and error is None:
                self._undo_publish()
            self._let_go()
        elif isinstance(error, Closed):
            self._fail(str(error), blame="")
        elif isinstance(error, Short) and not self._made_room:
            self._waiting = pieces + self._waiting
            self._waiting_bytes += count
            self._made_room = True
            self._make_room(0, error.count)
        elif isinstance(error, Short):
            self._leave_disk("the file system has less than packs.free_bytes", "free_bytes", pieces)
        elif isinstance(error, Damaged):
            self._fail(str(error), blame="damage")
        elif error is not None:
            self._leave_disk(f"it cannot be written: {result.why}", "disk", pieces)
        else:
            self._made_room = False
            self._landed(count, published)

    def _landed(self, count: int, published: float | None) -> None:
        if published is not None:
            self._end()
            self._entry.made = published
            self._entry.size += count
            self._entry.became_whole()
            self._entry.drop()
            return
        if count:
            self._entry.grew(self._entry.size + count)
        self._flush()
        self._check_room()

    def _undo_publish(self) -> None:
        try:
            entry.write_header(self._entry.fd, self._failed_header())
        except OSError:
            pass  # its name was taken away, so nobody finds it

    # -- who reads -----------------------------------------------------------------------------------------------------------

    @property
    def wanted(self) -> bool:
        """Whether anybody reads it, in any worker; what is known of others is at most LOOK_SECONDS old."""
        return self._fastest() is not None

    def _fastest(self) -> int | None:
        here = self._entry.fastest()
        return self._elsewhere if here is None else here if self._elsewhere is None else max(here, self._elsewhere)

    def on_unwanted(self, call: Callable[[], None]) -> None:
        """Calls `call` once, from the loop, when nobody reads it any more."""
        self._unwanted_call = call
        self._check_wanted()

    def broke(self, why: str) -> None:
        """A reader could not read it."""
        self._fail(why, blame="disk")

    def moved(self) -> None:
        """A reader of this worker has read on, or has left."""
        if self._entry.rest is not None and (slowest := self._entry.slowest()) is not None:
            self._entry.rest.forget(slowest)
        if self._room_call is not None:
            self._check_room()
        if not self._entry.readers:
            self._look()

    def _check_room(self) -> None:
        if self._room_call is not None and self._has_room(UNWRITTEN_LOW_BYTES, AHEAD_LOW_BYTES):
            self._call(self._room_call)
            self._room_call = None

    def _check_wanted(self) -> None:
        if self._unwanted_call is not None and not self.over and not self.wanted:
            asyncio.get_running_loop().call_soon(self._tell_unwanted)

    def _tell_unwanted(self) -> None:
        call = self._unwanted_call
        if call is not None and not self.over and not self.wanted:  # nobody has come since
            self._unwanted_call = None
            call()

    @staticmethod
    def _call(call: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(call)

    def _look_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        seconds = LOOK_WAITING_SECONDS if self._room_call is not None else LOOK_SECONDS
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        if self.over:
            return
        self._look_later()
        if self.unkept:
            self._check_wanted()
            return
        try:
            self._elsewhere = entry.fastest_slot(self._entry.fd)
        except OSError as error:
            self._fail(f"it cannot be read: {error.strerror}", blame="disk")
            return
        self._check_room()
        self._check_wanted()


def write_all(fd: int, pieces: Sequence[bytes], offset: int) -> None:
    """Writes all of `pieces`. Raises OSError; then some may be written."""
    left: list[bytes | memoryview] = list(pieces)
    while left:
        count = os.pwritev(fd, left[:PIECES], offset)
        offset += count
        gone = 0
        while gone < len(left) and count >= len(left[gone]):
            count -= len(left[gone])
            gone += 1
        del left[:gone]
        if count:
            left[0] = memoryview(left[0])[count:]
