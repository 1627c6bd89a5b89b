"""A session's way through an entry, from its first byte to its last, at the session's own pace."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Final

from relay.packs.disk import Closed, Outcome
from relay.packs.entry import HEADER_BYTES, EntryFailed
from relay.packs.opened import Opened

READ_BYTES: Final = 256 << 10
FETCH_BYTES: Final = 1 << 20  # that a thread reads ahead when the bytes are not in the page cache

_buffer = bytearray(READ_BYTES)  # of all readers of this process; what read() returned is valid until the next read() of any reader
_whole_buffer = memoryview(_buffer)
_pieces = [_buffer]
NOTHING: Final = memoryview(b"")


class Reader:
    """Reads an entry that is whole, or still grows."""

    def __init__(self, opened: Opened, *, in_memory: bool = False) -> None:
        self.position = 0  # how many bytes of the body were returned
        self._entry = opened
        self._in_memory = in_memory  # a file system whose bytes are always in the page cache
        self._call: Callable[[], None] | None = None
        self._fetching = False
        self._fetched = NOTHING
        self._closed = False
        opened.join(self)

    def __repr__(self) -> str:
        return f"<Reader at {self.position} of {self._entry!r}>"

    @property
    def whole_read(self) -> bool:
        """Whether all bytes of a published entry were returned."""
        return self._entry.whole and not self._entry.failed and self.position == self._entry.size

    def read(self) -> memoryview:
        """The next bytes, at most READ_BYTES, valid until the next read of this worker; empty when there are none now, or no more.

        Raises EntryFailed.
        """
        entry = self._entry
        if entry.failed:
            raise EntryFailed(entry.failed)
        if self._fetched:
            data, self._fetched = self._fetched[:READ_BYTES], self._fetched[READ_BYTES:]
        else:
            most = entry.size - self.position
            if most <= 0 or self._fetching or self._closed:
                return NOTHING
            rest = entry.rest
            if rest is not None and self.position >= rest.begin:
                data = rest.read(self.position, READ_BYTES)
            else:
                count = self._read_now(most if rest is None else rest.begin - self.position)
                if not count:
                    return NOTHING
                data = _whole_buffer[:count]
        self.position += len(data)
        if not entry.whole:
            entry.moved()
        return data

    def _read_now(self, most: int) -> int:
        """Reads what is in the page cache; 0 when a thread reads it now."""
        pieces = _pieces if most >= READ_BYTES else [_whole_buffer[:most]]
        flags = 0 if self._in_memory else os.RWF_NOWAIT
        try:
            count = os.preadv(self._entry.fd, pieces, HEADER_BYTES + self.position, flags)
        except BlockingIOError:
            self._fetch(most)
            return 0
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                self._entry.fail(f"it cannot be read: {error.strerror}", damage=True)
                raise EntryFailed(self._entry.failed) from None
            self._fetch(most)  # a file system that cannot tell whether a read would wait
            return 0
        if not count:
            self._was_cut()
        return count

    def _was_cut(self) -> None:
        self._entry.fail(f"it ends after {self.position} bytes, must have {self._entry.size}", damage=True)
        raise EntryFailed(self._entry.failed)

    def _fetch(self, most: int) -> None:
        fd, count, offset = self._entry.fd, min(most, FETCH_BYTES), HEADER_BYTES + self.position
        self._fetching = True
        self._entry.hold()
        self._entry.disk.run(lambda: os.pread(fd, count, offset), self._was_fetched)

    def _was_fetched(self, result: Outcome[bytes]) -> None:
        self._fetching = False
        entry = self._entry
        if isinstance(result.error, Closed):
            entry.fail(str(result.error))
        elif result.error is not None:
            entry.fail(f"it cannot be read: {result.why}", damage=True)
        elif not result.value:
            entry.fail(f"it ends after {self.position} bytes, must have {entry.size}", damage=True)
        elif not self._closed:
            self._fetched = memoryview(result.value)
            self.news()
        entry.drop()

    def on_news(self, call: Callable[[], None]) -> None:
        """Calls `call` once, from the loop, when read() has something new: bytes, the end, a failure. For use after an empty read."""
        self._call = call
        if self._has_news():
            self.news()

    def _has_news(self) -> bool:
        return bool(self._entry.failed or self._fetched or (not self._fetching and (self._entry.whole or self.position < self._entry.size)))

    def news(self) -> None:
        if self._call is not None and self._has_news():
            asyncio.get_running_loop().call_soon(self._notify, self._call)
            self._call = None

    def _notify(self, call: Callable[[], None]) -> None:
        if not self._closed:
            call()

    def close(self) -> None:
        """The session does not read on. May be called twice."""
        if not self._closed:
            self._closed = True
            self._call = None
            self._fetched = NOTHING
            self._entry.leave(self)
