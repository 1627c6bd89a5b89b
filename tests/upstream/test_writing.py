"""Chunks of a bytes object and what libssh2 takes of them."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
from ssh2.error_codes import LIBSSH2_ERROR_EAGAIN as AGAIN
from ssh2.exceptions import SocketSendError
from ssh2.utils import handle_error_codes

from relay.upstream.writing import Chunk, Writing

CONTENT = bytes(range(256)) * 4


class Host:
    """In libssh2's place: takes as told, and keeps what it was given to read."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.read = b""

    def __call__(self, pointer: int, stream: int, address: int, size: int) -> int:
        assert (pointer, stream) == (99, 0)
        answer = self.answers.pop(0)
        self.read += ctypes.string_at(address, min(answer, size)) if answer > 0 else b""
        return min(answer, size)


def writing(host: Host) -> Writing:
    library: Any = SimpleNamespace(c=SimpleNamespace(libssh2_channel_write_ex=host))
    return Writing(library, AGAIN, handle_error_codes)


def test_a_chunk_is_where_its_bytes_are() -> None:
    chunk = Chunk(CONTENT, 100, 50)
    assert ctypes.string_at(chunk.address, chunk.size) == CONTENT[100:150]
    chunk.forget(20)
    assert ctypes.string_at(chunk.address, chunk.size) == CONTENT[120:150]
    assert ctypes.string_at(Chunk(CONTENT, 0, len(CONTENT)).address, len(CONTENT)) == CONTENT
    assert Chunk(b"", 0, 0).size == 0


@pytest.mark.parametrize(("begin", "size"), [(-1, 1), (0, 1025), (1024, 1), (5, -1)])
def test_a_chunk_lies_within_its_bytes(begin: int, size: int) -> None:
    with pytest.raises(AssertionError):
        Chunk(CONTENT, begin, size)


def test_it_is_offered_until_it_is_taken() -> None:
    host = Host(10, 1, 1_000)
    assert writing(host).write(99, Chunk(CONTENT, 5, 100)) == (0, 100)
    assert host.read == CONTENT[5:105]


@pytest.mark.parametrize("answer", [AGAIN, 0])
def test_what_is_not_taken_is_told(answer: int) -> None:
    """0 is what libssh2 says without a window when nothing kept it from reading."""
    chunk = Chunk(CONTENT, 0, 100)
    host = Host(30, answer)
    assert writing(host).write(99, chunk) == (AGAIN, 30)
    assert (host.read, chunk.size) == (CONTENT[:30], 100)


def test_an_error_is_the_bindings_exception() -> None:
    with pytest.raises(SocketSendError):
        writing(Host(30, -7)).write(99, Chunk(CONTENT, 0, 100))
