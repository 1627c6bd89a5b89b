"""Reads of a channel into the shared buffer, from a real sshd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from ssh2.error_codes import LIBSSH2_ERROR_EAGAIN as AGAIN
from ssh2.exceptions import SSH2Error
from ssh2.utils import handle_error_codes

from relay.upstream.libssh2 import Connection, library
from relay.upstream.reading import STDERR, STDOUT, Reading
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
    return Reading(library(), SIZE, AGAIN, handle_error_codes)


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
    assert reading.read(pointer, STDOUT) == (0, memoryview(b""))  # the end


async def test_what_was_read_is_good_until_the_next_read(connection: Connection, sshd: Sshd) -> None:
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
    connection._deafen()
    connection._descriptor.bury()
    with pytest.raises(SSH2Error):
        reading.read(pointer, STDOUT)
