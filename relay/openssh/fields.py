"""Reads and writes the data types of RFC 4251 section 5; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator


def string(data: bytes) -> bytes:
    """`data` encoded as a string: four bytes of length, then the bytes."""
    return len(data).to_bytes(4, "big") + data


def _truncated() -> Exception:
    return ValueError("a field reaches beyond the end")


class Fields:
    """Reads the fields of one blob in order; true while bytes are left. A field that reaches beyond the end raises `cut_off()`."""

    def __init__(self, data: bytes, cut_off: Callable[[], Exception] = _truncated) -> None:
        self._data = data
        self._at = 0
        self._cut_off = cut_off

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    @property
    def before(self) -> bytes:
        """All bytes read so far: what a signature in the next field covers."""
        return self._data[: self._at]

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self._at + size
        if end > len(self._data):
            raise self._cut_off()
        taken, self._at = self._data[self._at : end], end
        return taken

    def number(self, size: int) -> int:
        """An unsigned integer of `size` bytes: byte 1, uint32 4, uint64 8."""
        return int.from_bytes(self.take(size), "big")

    def string(self) -> bytes:
        return self.take(self.number(4))

    def strings(self) -> Iterator[bytes]:
        """The remaining bytes, as strings."""
        while self:
            yield self.string()
