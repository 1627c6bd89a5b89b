"""Reads of a channel into the shared buffer, and writes without a copy."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from relay.upstream.libssh2 import Connection, loaded_library
from relay.upstream.libssh2.binding import LIBSSH2_ERROR_EAGAIN as AGAIN
from relay.upstream.libssh2.binding import SocketSendError, SSH2Error, handle_error_codes
from relay.upstream.libssh2.channel_io import STDERR, STDOUT, Chunk, Reading, Writing
from tests.support.pattern import stub_bytes, stub_stderr
from tests.support.sshd import Sshd
from tests.upstream.peers import login

SIZE = 5000


@pytest.fixture
async def connection(sshd: Sshd) -> AsyncIterator[Connection]:
    made = await Connection.dial(sshd.address, sshd.port, login(sshd), 15)
    yield made
    made.close()


def make() -> Reading:
    return Reading(loaded_library(), SIZE, AGAIN, handle_error_codes)


async def test_both_streams_are_read_apart_never_more_than_the_size_at_once(connection: Connection, sshd: Sshd) -> None:
    await connection.run(sshd.stub("mixed/200000"), [])
    reading, got = make(), {STDOUT: bytearray(), STDERR: bytearray()}
    pointer = reading.pointer(connection._channel)
    rests = 0
    async with asyncio.timeout(60):
        while not connection._channel.eof():
            for stream, into in got.items():
                count, view = reading.read(pointer, stream)
                assert count == AGAIN or 0 <= count <= SIZE
                assert len(view) == max(count, 0)
                into += view
                rests += count == AGAIN
            await asyncio.sleep(0)
    assert got == {STDOUT: stub_bytes(200_000), STDERR: stub_stderr(200_000)}
    assert rests > 0
    assert reading.read(pointer, STDOUT) == (0, memoryview(b""))  # the end of the stream


async def test_a_read_buffer_is_valid_until_the_next_read(connection: Connection, sshd: Sshd) -> None:
    await connection.run(sshd.stub(f"emit/{2 * SIZE}"), [])
    reading, views = make(), list[memoryview]()
    pointer = reading.pointer(connection._channel)
    async with asyncio.timeout(60):
        while sum(map(len, views)) < 2 * SIZE:
            count, view = reading.read(pointer, STDOUT)
            if count > 0:
                views.append(view)
            await asyncio.sleep(0)
    assert views[0][: len(views[-1])] == views[-1][: len(views[0])]  # one buffer
    assert bytes(views[-1]) == stub_bytes(2 * SIZE)[-len(views[-1]) :]


async def test_a_broken_transport_raises_what_it_was_told_to(connection: Connection, sshd: Sshd) -> None:
    await connection.run(sshd.stub("hang"), [])
    reading = make()
    pointer = reading.pointer(connection._channel)
    assert reading.read(pointer, STDOUT) == (AGAIN, memoryview(b""))
    connection._stop_watching()
    connection._descriptor.bury()
    with pytest.raises(SSH2Error):
        reading.read(pointer, STDOUT)


CONTENT = bytes(range(256)) * 4


class Host:
    """Stands for libssh2: accepts as many bytes as the test says, and keeps them."""

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


def test_a_chunk_is_offered_until_it_is_taken() -> None:
    host = Host(10, 1, 1_000)
    assert writing(host).write(99, Chunk(CONTENT, 5, 100)) == (0, 100)
    assert host.read == CONTENT[5:105]


@pytest.mark.parametrize("answer", [AGAIN, 0])
def test_a_write_returns_how_much_was_taken(answer: int) -> None:
    """libssh2 returns 0 if the window is used up and nothing kept it from reading."""
    chunk = Chunk(CONTENT, 0, 100)
    host = Host(30, answer)
    assert writing(host).write(99, chunk) == (AGAIN, 30)
    assert (host.read, chunk.size) == (CONTENT[:30], 100)


def test_an_error_is_the_bindings_exception() -> None:
    with pytest.raises(SocketSendError):
        writing(Host(30, -7)).write(99, Chunk(CONTENT, 0, 100))
