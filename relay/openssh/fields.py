"""The data types of RFC 4251 section 5, read one after another from a blob and written; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator


def string(data: bytes) -> bytes:
    """`data` as a string: a length of four bytes, then the bytes."""
    return len(data).to_bytes(4, "big") + data


def _truncated() -> Exception:
    return ValueError("a field reaches beyond the end")


class Fields:
    """A cursor over one blob; true while something is left. A field that reaches beyond the end raises what `cut_off` makes."""

    def __init__(self, data: bytes, cut_off: Callable[[], Exception] = _truncated) -> None:
        self._data = data
        self._at = 0
        self._cut_off = cut_off

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    @property
    def before(self) -> bytes:
        """Everything that was read so far, which is what a signature at this place covers."""
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
        """All that is left, as strings."""
        while self:
            yield self.string()
