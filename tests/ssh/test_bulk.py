"""Large uploads are read past the loop's own buffer: complete, in order, with a key exchange in between, and up to EOF."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from relay.ssh.packets import REST_BYTES, Bulk
from tests.support.echo import client, echo

SIZE = 6_000_003
CIPHERS = ["aes128-gcm@openssh.com"]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """uvloop and asyncio differ in when they check whether a protocol is a BufferedProtocol."""

    def on_loop(work: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop if request.param == "uvloop" else None) as runner:
            runner.run(work)

    return on_loop


def test_an_upload_arrives_whole(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def upload() -> None:
        async with echo() as (port, connections), client(port, encryption_algs=CIPHERS) as connection:
            content = os.urandom(SIZE)
            done = await connection.run("out", input=content, encoding=None)
            assert done.stdout == content
            assert isinstance(connections[0]._socket.get_protocol(), Bulk)
            assert (await connection.run("out", input=b"small", encoding=None)).stdout == b"small"

    run(upload())


def test_a_small_session_is_not_read_into_the_shared_buffer(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def small() -> None:
        async with echo() as (port, connections), client(port, encryption_algs=CIPHERS) as connection:
            assert (await connection.run("out", input=b"x" * 1_000, encoding=None)).stdout == b"x" * 1_000
            assert connections[0]._socket.get_protocol() is connections[0]

    run(small())


def test_an_upload_arrives_whole_across_key_exchanges(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def rekeyed() -> None:
        options: dict[str, Any] = {"encryption_algs": CIPHERS, "rekey_bytes": 500_000}
        async with echo(rekey_bytes=700_000) as (port, connections), client(port, **options) as connection:
            content = os.urandom(SIZE)
            assert (await connection.run("out", input=content, encoding=None)).stdout == content
            assert connections[0]._bulk

    run(rekeyed())


def test_bytes_of_two_connections_are_not_mixed_in_the_shared_buffer(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def together() -> None:
        async with echo() as (port, connections):

            async def one() -> None:
                async with client(port, encryption_algs=CIPHERS) as connection:
                    content = os.urandom(SIZE)
                    assert (await connection.run("out", input=content, encoding=None)).stdout == content

            await asyncio.gather(*(one() for _ in range(4)))
            assert all(connection._bulk for connection in connections)

    run(together())


@pytest.mark.parametrize("how", ["close", "abort"])
def test_the_end_of_the_connection_is_passed_on(run: Callable[[Coroutine[Any, Any, None]], None], how: str) -> None:
    async def ends() -> None:
        async with echo() as (port, connections), client(port, encryption_algs=CIPHERS) as connection:
            process = await connection.create_process("err", encoding=None)  # the client does not read the echo, beyond its window
            process.stdin.write(os.urandom(SIZE))
            while not connections[0]._bulk:
                await asyncio.sleep(0)
            getattr(connection, how)()
            await connection.wait_closed()
            await connections[0].wait_closed()

    run(ends())


class Connection:
    """The part of a connection that Bulk uses."""

    def __init__(self) -> None:
        self.rest = b""
        self.heard: list[Any] = []

    def data_received(self, data: memoryview) -> None:
        self.heard.append(bytes(data))

    def eof_received(self) -> None:
        self.heard.append("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        self.heard.append(exc)

    def pause_writing(self) -> None:
        self.heard.append("pause")

    def resume_writing(self) -> None:
        self.heard.append("resume")


@pytest.mark.parametrize("rest", [b"", b"rest", bytes(REST_BYTES)])
def test_the_unfinished_packet_comes_before_the_next_read(rest: bytes) -> None:
    connection: Any = Connection()
    connection.rest = rest
    bulk = Bulk(connection)
    room = bulk.get_buffer(-1)
    room[:5] = b"bytes"
    bulk.buffer_updated(5)
    assert connection.heard == [rest + b"bytes"]
    assert connection.rest == b""


def test_everything_else_is_passed_on() -> None:
    """Also to a method that was replaced after the connection was made (as relay.ssh.backpressure.Flow does)."""
    connection: Any = Connection()
    bulk = Bulk(connection)
    connection.resume_writing = lambda: connection.heard.append("flows")
    error = ConnectionResetError()
    bulk.pause_writing()
    bulk.resume_writing()
    bulk.eof_received()
    bulk.connection_lost(error)
    assert connection.heard == ["pause", "flows", "eof", error]
