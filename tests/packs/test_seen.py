"""Which fetches were asked for once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.packs import seen
from tests.packs.helpers import key_of


@pytest.fixture
def table(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "seen", os.O_RDWR | os.O_CREAT, 0o600)
    yield fd
    os.close(fd)


def test_a_key_is_known_for_some_seconds(table: int) -> None:
    one, two = key_of("one"), key_of("two")
    assert not seen.mark(table, one, 1000.0, 10)
    assert not seen.mark(table, two, 1000.0, 10)
    assert seen.mark(table, one, 1009.0, 10), "each mark counts anew"
    assert seen.mark(table, one, 1018.0, 10)
    assert not seen.mark(table, two, 1018.0, 10)
    assert not seen.mark(table, one, 900.0, 10), "the clock was set back"


def test_a_key_takes_the_place_of_another(table: int) -> None:
    one = bytes(16) + b"same" + b"1" * 12
    two = b"2" * 16 + b"same" + b"1" * 12
    assert not seen.mark(table, one, 0.0, 10)
    assert not seen.mark(table, two, 0.0, 10)
    assert not seen.mark(table, one, 0.0, 10)


def test_what_could_not_be_kept_is_remembered_apart(table: int) -> None:
    one, two = key_of("one"), key_of("two")
    seen.mark(table, one, 1000.0, 10)
    assert not seen.is_refused(table, one, 1000.0, 10)
    seen.refuse(table, one, 1000.0)
    assert seen.is_refused(table, one, 1009.0, 10) and not seen.is_refused(table, two, 1000.0, 10)
    assert not seen.is_refused(table, one, 1010.0, 10)
    assert not seen.mark(table, two, 1000.0, 10)


@given(keys=st.lists(st.binary(min_size=32, max_size=32), max_size=50))
def test_the_table_has_a_limit(keys: list[bytes]) -> None:
    table = os.memfd_create("seen")
    try:
        for key in [b"\xff" * 32, *keys]:
            seen.mark(table, key, 0.0, 10)
            seen.refuse(table, key, 0.0)
        assert os.fstat(table).st_size <= 2 * seen.PLACES * 24
    finally:
        os.close(table)
