"""Reads a libssh2 channel into one buffer that all connections of a process share, without the binding's malloc and two copies.

The bytes are good until the next read: whoever is given them sends or copies them before it returns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from relay.upstream.exit_status import Library, channel_pointer

STDOUT = 0
STDERR = 1  # SSH_EXTENDED_DATA_STDERR, RFC 4254 section 5.2


class Reading:
    """`size` is the one size that every read asks for: a window adjust that met EAGAIN is retried by any read, and must be the same.

    `again` is libssh2's code for "no data yet"; `fail` raises the binding's exception for any other negative one.
    """

    def __init__(self, library: Library, size: int, again: int, fail: Callable[[int], int]) -> None:
        self._size = size
        self._again = again
        self._fail = fail
        buffer = bytearray(size)
        self._view = memoryview(buffer)
        self._keep = (ctypes.c_char * size).from_buffer(buffer)
        self._address = ctypes.addressof(self._keep)
        self._read = library.c.libssh2_channel_read_ex
        self._read.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        self._read.restype = ctypes.c_ssize_t
        self._window = library.c.libssh2_channel_window_read_ex
        self._window.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        self._window.restype = ctypes.c_ulong
        self._available = ctypes.c_ulong()

    def pointer(self, channel: Any) -> int:
        """What `read` wants; valid while the channel object lives."""
        return channel_pointer(channel)

    def queued(self, pointer: int) -> bool:
        """Whether libssh2 holds data of either stream that it has read from the socket and nobody has taken."""
        self._window(pointer, ctypes.byref(self._available), None)
        return self._available.value > 0

    def read(self, pointer: int, stream: int) -> tuple[int, memoryview]:
        """(bytes, view), (0, empty) at the end or without data, (again, empty). Raises what `fail` raises."""
        got = self._read(pointer, stream, self._address, self._size)
        if got < 0 and got != self._again:
            self._fail(got)
        return got, self._view[: max(got, 0)]
