"""The forms of the expected bytes (data, hash) agree, so that tests may use any of them."""

from __future__ import annotations

import hashlib
import zlib

import pytest

from tests.support.pattern import PATTERN_BYTES, pattern, stub_bytes, stub_sha256, stub_stderr


@pytest.mark.parametrize("size", [0, 1, 65536, PATTERN_BYTES - 1, PATTERN_BYTES, PATTERN_BYTES + 1, 3 * PATTERN_BYTES + 7])
def test_digest_and_bytes_agree(size: int) -> None:
    data = stub_bytes(size)
    assert len(data) == size
    assert hashlib.sha256(data).hexdigest() == stub_sha256(size)


def test_it_is_incompressible_and_no_buffer_size_divides_its_period() -> None:
    assert len(pattern()) == PATTERN_BYTES
    assert len(zlib.compress(pattern()[: 1 << 20], 1)) > 1 << 20
    assert PATTERN_BYTES % 2 == 1


@pytest.mark.parametrize(("size", "chunks"), [(0, 0), (1, 1), (65536, 1), (65537, 2), (10 * 65536, 10)])
def test_stderr_has_a_chunk_for_each_64_kib(size: int, chunks: int) -> None:
    data = stub_stderr(size)
    assert len(data) == chunks * 1024
    assert [line.split()[1] for line in data.splitlines()] == [b"%08d" % number for number in range(chunks)]
