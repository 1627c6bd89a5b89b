"""Reads and writes of a libssh2 channel in place, without the binding's copies."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from relay.upstream.libssh2.library import Library, channel_pointer

STDOUT = 0
STDERR = 1  # SSH_EXTENDED_DATA_STDERR, RFC 4254 section 5.2
_NO_STREAM = 2  # extended data of a type that no SSH server sends


class Reading:
    """Every read asks for `size` bytes: any read may retry a WINDOW_ADJUST that met EAGAIN, and must ask for the same amount.

    `again` is libssh2's code for "no data yet"; `fail` raises the binding's exception for any other negative one.
    """

    def __init__(self, library: Library, size: int, again: int, fail: Callable[[int], int]) -> None:
        self._size = size
        self._again = again
        self._fail = fail
        buffer = bytearray(size)
        self._view = memoryview(buffer)
        self._nothing = self._view[:0]
        self._keep = (ctypes.c_char * size).from_buffer(buffer)
        self._address = ctypes.addressof(self._keep)
        self._read = library.c.libssh2_channel_read_ex
        self._read.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        self._read.restype = ctypes.c_ssize_t
        self._window = library.c.libssh2_channel_window_read_ex
        self._window.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        self._window.restype = ctypes.c_ulong
        self._available = ctypes.c_ulong()
        self._until_eof, self._until_closed = library.c.libssh2_channel_wait_eof, library.c.libssh2_channel_wait_closed
        for call in (self._until_eof, self._until_closed):
            call.argtypes = [ctypes.c_void_p]
            call.restype = ctypes.c_int

    def pointer(self, channel: Any) -> int:
        """The pointer to pass to `read`; valid while the channel object lives."""
        return channel_pointer(channel)

    def queued(self, pointer: int) -> int:
        """Bytes of both streams that libssh2 has received and that were not read yet."""
        self._window(pointer, ctypes.byref(self._available), None)
        return self._available.value

    def receive(self, pointer: int) -> int:
        """Lets libssh2 process the packets in the socket without taking data: requests, keepalives and key exchanges are answered.

        The data stays in libssh2, as much as the window allows: only a read that takes some opens the window again. libssh2 has no
        call for this, but three that process packets on the way: waiting for EOF, which returns at once after one; waiting for the
        close, likewise; then a read of a stream that is never used. Returns `again`, or 0 once the channel is closed. Raises what
        `fail` raises.
        """
        got = self._until_eof(pointer) or self._until_closed(pointer) or self._read(pointer, _NO_STREAM, self._address, self._size)
        if got < 0 and got != self._again:
            self._fail(got)
        return int(got)

    def read(self, pointer: int, stream: int) -> tuple[int, memoryview]:
        """(bytes, view), (0, empty) at the end or without data, (again, empty). Raises what `fail` raises."""
        got = self._read(pointer, stream, self._address, self._size)
        if got > 0:
            return got, self._view[:got]
        if got < 0 and got != self._again:
            self._fail(got)
        return got, self._nothing


_HEAD = bytes.__basicsize__ - 1  # bytes before the data in a CPython bytes object; __basicsize__ includes the terminating zero
if ctypes.string_at(id(b"layout") + _HEAD, 7) != b"layout\0":
    raise ImportError("bytes objects are not laid out as CPython lays them out")


class Chunk:
    """`size` bytes of `data` from `begin` on, at an address that is valid as long as this object lives."""

    __slots__ = ("_data", "address", "size")

    def __init__(self, data: bytes, begin: int, size: int) -> None:
        assert 0 <= begin <= begin + size <= len(data)
        self._data = data
        self.address = id(data) + _HEAD + begin
        self.size = size

    def forget(self, count: int) -> None:
        """The first `count` bytes are written."""
        self.address += count
        self.size -= count


class Writing:
    """`again` is libssh2's code for "not now"; `fail` raises the binding's exception for any other negative one."""

    def __init__(self, library: Library, again: int, fail: Callable[[int], int]) -> None:
        self._again = again
        self._fail = fail
        self._write = library.c.libssh2_channel_write_ex
        self._write.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        self._write.restype = ctypes.c_ssize_t

    def write(self, pointer: int, chunk: Chunk) -> tuple[int, int]:
        """(0 or `again`, bytes that were taken); the chunk is not changed. Raises what `fail` raises."""
        taken = 0
        while taken < chunk.size:
            done = self._write(pointer, 0, chunk.address + taken, chunk.size - taken)
            if done in (0, self._again):  # 0: the window is full
                return self._again, taken
            if done < 0:
                self._fail(done)
            taken += done
        return 0, taken
