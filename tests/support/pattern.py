"""The deterministic bytes that stub services emit, and their expected hashes and stderr."""

from __future__ import annotations

import hashlib
import random
from functools import cache
from pathlib import Path

from tests.support.service import STDOUT_CHUNK, stderr_chunk

PATTERN_BYTES = (16 << 20) - 3  # odd, so that no buffer size divides the period; incompressible
_SEED = 20260101


@cache
def pattern() -> bytes:
    return random.Random(_SEED).randbytes(PATTERN_BYTES)


def write_pattern(path: Path) -> None:
    path.write_bytes(pattern())


def stub_bytes(size: int) -> bytes:
    """What `stub/emit/<size>` puts on stdout: the pattern, repeated."""
    whole, rest = divmod(size, PATTERN_BYTES)
    return pattern() * whole + pattern()[:rest]


def stub_sha256(size: int) -> str:
    """The hex SHA-256 of `stub_bytes(size)`, without holding it in memory."""
    whole, rest = divmod(size, PATTERN_BYTES)
    digest = hashlib.sha256()
    for _ in range(whole):
        digest.update(pattern())
    digest.update(memoryview(pattern())[:rest])
    return digest.hexdigest()


def stub_stderr(size: int) -> bytes:
    """What `stub/mixed/<size>` puts on stderr."""
    return b"".join(stderr_chunk(number) for number in range(-(-size // STDOUT_CHUNK)))
