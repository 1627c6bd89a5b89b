"""The rest of an answer in memory: every reader gets its bytes, and what all have read is let go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.packs.rest import Rest


@given(
    before=st.lists(st.binary(max_size=9), max_size=6),
    after=st.lists(st.binary(max_size=9), max_size=6),
    most=st.integers(1, 20),
    positions=st.lists(st.integers(0, 100), max_size=5),
)
def test_it_reads_as_one_row_of_bytes(before: list[bytes], after: list[bytes], most: int, positions: list[int]) -> None:
    whole, begin = b"".join(before + after), 1000
    rest = Rest(begin, before)
    for piece in after:
        rest.add(piece)
    assert rest.end == begin + len(whole) and len(rest) == len(whole)
    forgotten = 0
    for position in sorted({0, *positions}):
        if position > len(whole):
            break
        rest.forget(begin + position)
        forgotten = position
        assert len(rest) >= len(whole) - forgotten
        got, place = b"", position
        while place < len(whole):
            piece = bytes(rest.read(begin + place, most))
            assert 0 < len(piece) <= most
            got, place = got + piece, place + len(piece)
        assert got == whole[position:]
    rest.forget(rest.end)
    assert len(rest) == 0 and rest.begin == begin


def test_what_is_before_it_in_the_file_is_not_forgotten() -> None:
    rest = Rest(1000, [b"abc"])
    rest.forget(10)
    assert bytes(rest.read(1000, 10)) == b"abc"
