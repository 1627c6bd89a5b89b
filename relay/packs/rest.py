"""The rest of an answer that the disk does not take: in memory, for the readers of this worker, behind the end of the file."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class Rest:
    """The bytes of the body from `begin` on, as far as some reader still needs them."""

    def __init__(self, begin: int, pieces: Iterable[bytes]) -> None:
        self.begin = begin  # of the body; what is before lies in the file
        self._pieces = deque(pieces)
        self._first = begin  # where the first piece begins
        self.end = begin + sum(map(len, self._pieces))

    def __len__(self) -> int:
        """How many bytes are held."""
        return self.end - self._first

    def add(self, data: bytes) -> None:
        self._pieces.append(data)
        self.end += len(data)

    def read(self, position: int, most: int) -> memoryview:
        """Some bytes at this place of the body, at most `most`; it must not be forgotten."""
        begin = self._first
        assert begin <= position < self.end
        for piece in self._pieces:
            if position < begin + len(piece):
                return memoryview(piece)[position - begin :][:most]
            begin += len(piece)
        raise AssertionError("the lengths do not add up")

    def forget(self, position: int) -> None:
        """Nobody reads what is before `position` any more."""
        while self._pieces and self._first + len(self._pieces[0]) <= position:
            self._first += len(self._pieces.popleft())
