"""The data types of RFC 4251 section 5."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.openssh.fields import Fields, string


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_strings_that_were_written_are_read(values: list[bytes]) -> None:
    blob = b"".join(map(string, values))
    fields = Fields(blob)
    assert list(fields.strings()) == values
    assert not fields
    assert fields.before == blob


@given(st.binary(max_size=60))
def test_a_field_that_reaches_beyond_the_end_is_refused(blob: bytes) -> None:
    fields, read = Fields(blob), b""
    try:
        while fields:
            read += string(fields.string())
    except ValueError:
        assert blob.startswith(read)
    else:
        assert read == blob


def test_numbers_are_unsigned_and_big_endian() -> None:
    fields = Fields(bytes.fromhex("ff00000102fffffffffffffffe"))
    assert (fields.number(1), fields.number(4), fields.number(8)) == (255, 258, 2**64 - 2)


@pytest.mark.parametrize("blob", [b"", b"\x00\x00\x00", b"\x00\x00\x00\x02a"])
def test_a_field_that_is_cut_off_raises_what_the_format_wants(blob: bytes) -> None:
    with pytest.raises(LookupError, match="the list is cut off"):
        Fields(blob, lambda: LookupError("the list is cut off")).string()
