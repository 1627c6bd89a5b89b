"""Writes to a libssh2 channel from where the bytes are, without a copy for each packet."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from relay.upstream.exit_status import Library

_HEAD = bytes.__basicsize__ - 1  # what precedes the bytes in a CPython object; __basicsize__ counts the zero after them too
if ctypes.string_at(id(b"layout") + _HEAD, 7) != b"layout\0":
    raise ImportError("bytes objects are not laid out as CPython lays them out")


class Chunk:
    """`size` bytes of `data` from `begin` on, at an address that is good as long as this lives."""

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
        """(0 or `again`, bytes that were taken); the chunk is left as it was. Raises what `fail` raises."""
        taken = 0
        while taken < chunk.size:
            done = self._write(pointer, 0, chunk.address + taken, chunk.size - taken)
            if done in (0, self._again):  # 0: no window, and a read that was not refused
                return self._again, taken
            if done < 0:
                self._fail(done)
            taken += done
        return 0, taken
