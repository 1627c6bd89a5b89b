"""Each fault of the fault proxy between a plain client and a plain server, seen from both sides."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

import psutil
import pytest

from tests.support.faultproxy import FaultProxy, ThreadedFaultProxy
from tests.support.pattern import stub_bytes
from tests.support.wait import wait_until, wait_until_async

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Server:
    """Accepts connections and gives them to the test."""

    port: int = 0
    accepted: asyncio.Queue[Streams] = field(default_factory=asyncio.Queue)


@asynccontextmanager
async def listening() -> AsyncIterator[Server]:
    server, writers = Server(), list[asyncio.StreamWriter]()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        server.accepted.put_nowait((reader, writer))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        for writer in writers:
            writer.transport.abort()
        listener.close()
        await listener.wait_closed()


@asynccontextmanager
async def pair(server: Server, proxy: FaultProxy) -> AsyncIterator[tuple[Streams, Streams]]:
    """The client's and the server's end of one connection through the proxy."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield (reader, writer), await server.accepted.get()
    finally:
        writer.transport.abort()


async def exchange(source: Streams, sink: Streams, data: bytes) -> None:
    source[1].write(data)
    assert await sink[0].readexactly(len(data)) == data


async def _unmoving(value: Callable[[], int]) -> int:
    """The value once it was the same 20 times in a row: the kernel takes no more."""
    seen: list[int] = []

    def settled() -> bool:
        seen.append(value())
        return len(seen) >= 20 and len(set(seen[-20:])) == 1

    await wait_until_async(settled)
    return seen[-1]


def _abort_by_rst(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _connects(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _descriptors() -> int:
    return psutil.Process().num_fds()


async def test_a_perfect_link_carries_both_ways_and_counts() -> None:
    up, down = stub_bytes(3_000_000), stub_bytes(2_000_001)
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy, pair(server, proxy) as (client, host):
        await asyncio.gather(exchange(client, host, up), exchange(host, client, down))
        assert (proxy.accepted, len(proxy.links), proxy.bytes_up, proxy.bytes_down) == (1, 1, len(up), len(down))


async def test_half_close_is_carried_each_way() -> None:
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy, pair(server, proxy) as (client, host):
        client[1].write_eof()
        assert await host[0].read() == b""
        await exchange(host, client, b"still open")
        host[1].write_eof()
        assert await client[0].read() == b""
        await wait_until_async(lambda: not proxy.links)
        assert proxy.bytes_down == 10  # counters outlive their connection


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_stall_and_resume_lose_nothing(direction: str) -> None:
    data = stub_bytes(8_000_000)
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy, pair(server, proxy) as (client, host):
        source, sink = (client, host) if direction == "up" else (host, client)
        proxy.stall("up" if direction == "up" else "down")
        source[1].write(data)
        await exchange(sink, source, b"the other way is free")
        drained = asyncio.create_task(source[1].drain())
        buffered = await _unmoving(lambda: source[1].transport.get_write_buffer_size())
        assert buffered > 0, "the source feels the stall"
        assert not drained.done()
        assert (proxy.bytes_up if direction == "up" else proxy.bytes_down) == 0
        proxy.resume()
        assert await sink[0].readexactly(len(data)) == data
        await drained


async def test_an_eof_waits_behind_a_stall() -> None:
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy, pair(server, proxy) as (client, host):
        proxy.stall("up")
        client[1].write(b"last words")
        client[1].write_eof()
        await exchange(host, client, b"x")
        assert not host[0].at_eof()
        proxy.resume("up")
        assert await host[0].read() == b"last words"


async def test_split_delivers_small_writes() -> None:
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy:
        proxy.split(3, "up")
        async with pair(server, proxy) as (client, host):
            seen: list[bytes] = []
            client[1].write(stub_bytes(30))
            while sum(map(len, seen)) < 30:
                seen.append(await host[0].read(1 << 16))
            assert b"".join(seen) == stub_bytes(30)
            link = proxy.links[0]
            assert link.up is not None and (link.up.moved, link.up.writes) == (30, 10)


async def test_slow_is_never_faster_than_asked() -> None:
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy, pair(server, proxy) as (client, host):
        proxy.slow(100_000, "down")
        started = time.monotonic()
        await exchange(host, client, stub_bytes(50_000))
        assert time.monotonic() - started >= 0.45  # the proxy does not pause after the last burst of 20 ms
        await exchange(client, host, stub_bytes(5_000_000))  # not slowed: at that rate the test would time out


async def test_a_slow_link_is_felt_by_the_sender() -> None:
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy:
        proxy.slow(1, "up")
        async with pair(server, proxy) as (client, _):
            client[1].write(stub_bytes(20_000_000))
            assert await _unmoving(lambda: client[1].transport.get_write_buffer_size()) > 10_000_000


async def test_cut_is_a_fin_on_both_sides() -> None:
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy, pair(server, proxy) as (client, host):
        await exchange(client, host, b"hello")
        proxy.cut()
        assert await client[0].read() == b""
        assert await host[0].read() == b""
        await wait_until_async(lambda: not proxy.links)


async def test_cut_is_a_fin_even_with_unread_bytes() -> None:
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy, pair(server, proxy) as (client, host):
        proxy.stall()
        client[1].write(stub_bytes(500_000))
        await _unmoving(lambda: client[1].transport.get_write_buffer_size())
        proxy.cut()
        assert await client[0].read() == b""
        assert await host[0].read() == b""


async def test_reset_is_an_rst_on_both_sides() -> None:
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy, pair(server, proxy) as (client, host):
        await exchange(client, host, b"hello")
        proxy.reset()
        for reader, _ in (client, host):
            with pytest.raises(ConnectionResetError):
                await reader.read()
        await wait_until_async(lambda: not proxy.links)


@pytest.mark.parametrize("at", [0, 1, 1000, 100_000])
async def test_cut_at_a_byte_delivers_exactly_that_many(at: int) -> None:
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy:
        proxy.at(at, "cut", "up", scope="new")
        async with pair(server, proxy) as (client, host):
            client[1].write(stub_bytes(200_000))
            assert await host[0].read() == stub_bytes(at)
            await wait_until_async(lambda: not proxy.links)
            assert proxy.bytes_up == at


async def test_reset_at_a_byte_on_a_live_connection_only() -> None:
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy:
        async with pair(server, proxy) as (client, host):
            await exchange(client, host, b"x" * 10)
            proxy.at(15, "reset", "up", scope="live")
            client[1].write(b"y" * 100)
            with pytest.raises(ConnectionResetError):
                await client[0].read()
            await wait_until_async(lambda: not proxy.links)
            assert proxy.bytes_up == 15
        async with pair(server, proxy) as (client, host):
            await exchange(client, host, b"z" * 100)


@pytest.mark.parametrize("action", ["cut", "reset"])
async def test_all_up_to_that_byte_comes_to_a_sink_that_reads_late(action: Literal["cut", "reset"]) -> None:
    """More bytes than the sink's kernel takes: a reset drops those in the kernel's send buffer of the proxy."""
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy:
        at = 3_000_000
        proxy.at(at, action, "down", scope="new")
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            _, host = await server.accepted.get()
            host.write(stub_bytes(at + 100_000))
            await wait_until_async(lambda: proxy.in_flight > 0)
            assert await _unmoving(lambda: proxy.in_flight) > 0
            assert proxy.links

            def read() -> bytes:
                got = bytearray()
                with suppress(ConnectionResetError):
                    while data := client.recv(100_000):
                        got += data
                return bytes(got)

            assert await asyncio.to_thread(read) == stub_bytes(at)


async def test_an_at_that_lies_behind_happens_now() -> None:
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy, pair(server, proxy) as (client, host):
        await exchange(client, host, b"x" * 10)
        proxy.at(5, "cut", "up")
        assert await host[0].read() == b""


async def test_stall_at_a_byte() -> None:
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy, pair(server, proxy) as (client, host):
        proxy.at(1234, "stall", "down")
        host[1].write(stub_bytes(5000))
        assert await client[0].readexactly(1234) == stub_bytes(1234)
        await exchange(client, host, b"the other way is free")
        assert proxy.bytes_down == 1234
        proxy.heal()
        assert await client[0].readexactly(5000 - 1234) == stub_bytes(5000)[1234:]


@pytest.mark.parametrize("how", ["now", "at"])
async def test_half_close_ends_one_direction_only(how: str) -> None:
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy, pair(server, proxy) as (client, host):
        await exchange(client, host, b"x" * 10)
        if how == "now":
            proxy.half_close("up")
        else:
            proxy.at(10, "half_close", "up")
        assert await host[0].read() == b""
        client[1].write(b"into the void")
        await exchange(host, client, b"the other way is free")
        assert proxy.bytes_up == 10
        host[1].write_eof()
        assert await client[0].read() == b""
        await wait_until_async(lambda: not proxy.links)


async def test_a_peer_s_reset_is_carried_to_the_other() -> None:
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy, pair(server, proxy) as (client, host):
        await exchange(client, host, b"hello")
        _abort_by_rst(host[1])
        with pytest.raises(ConnectionResetError):
            await client[0].read()


async def test_silent_accepts_and_never_answers() -> None:
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy:
        proxy.accept("silent")
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"anybody there?")
        await wait_until_async(lambda: proxy.accepted == 1 and len(proxy.links) == 1)
        assert server.accepted.empty()
        proxy.cut()
        assert await reader.read() == b""
        writer.close()
        proxy.accept("forward")
        async with pair(server, proxy) as (client, host):
            await exchange(client, host, b"again")


async def test_reset_on_accept() -> None:
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy:
        proxy.accept("reset")
        with pytest.raises(ConnectionResetError):  # while connecting or reading: the RST is as fast as the client
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            try:
                await reader.read()
            finally:
                writer.transport.abort()
        assert server.accepted.empty()


async def test_refuse_and_accept_again_on_the_same_port() -> None:
    async with listening() as server, FaultProxy("127.0.0.1", server.port) as proxy, pair(server, proxy) as (client, host):
        port = proxy.port
        proxy.accept("refuse")
        await wait_until_async(lambda: not _connects(port))
        await exchange(client, host, b"live connections go on")
        proxy.accept("forward")
        assert proxy.port == port
        async with pair(server, proxy) as (client, host):
            await exchange(client, host, b"again")


async def test_an_unreachable_target_closes_the_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    async with FaultProxy("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await reader.read() == b""
        writer.close()
        await wait_until_async(lambda: proxy.unreachable == 1)


async def test_stop_leaves_no_task_and_no_descriptor() -> None:
    async with listening() as server:
        tasks, descriptors = len(asyncio.all_tasks()), _descriptors()
        clients = []
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            for _ in range(20):
                clients.append(await asyncio.open_connection("127.0.0.1", proxy.port))
                await server.accepted.get()
            proxy.stall("up")
            for _, writer in clients:
                writer.write(b"stuck")
        assert len(asyncio.all_tasks()) == tasks
        for reader, writer in clients:
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.transport.abort()
        await wait_until_async(lambda: _descriptors() <= descriptors)


def test_the_threaded_proxy_does_the_same() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with ThreadedFaultProxy("127.0.0.1", listener.getsockname()[1]) as proxy:
            port = proxy.port
            with socket.create_connection(("127.0.0.1", proxy.port)) as client, listener.accept()[0] as host:
                client.sendall(b"hello")
                assert host.recv(10) == b"hello"
                assert wait_until(lambda: proxy.do(lambda p: p.bytes_up)) == 5
                proxy.do(lambda p: p.stall("up"))
                client.sendall(b"stuck")
                host.sendall(b"free")
                assert client.recv(10) == b"free"
                proxy.do(lambda p: p.resume())
                assert host.recv(10) == b"stuck"
                proxy.do(lambda p: p.reset())
                with pytest.raises(ConnectionResetError):
                    client.recv(10)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_an_error_inside_the_thread_reaches_the_test() -> None:
    with ThreadedFaultProxy("127.0.0.1", 1) as proxy, pytest.raises(ZeroDivisionError):
        proxy.do(lambda _: 1 // 0)


@pytest.mark.parametrize("turns", range(6))
async def test_a_proxy_that_is_stopped_while_a_link_ends_leaves_no_socket(turns: int) -> None:
    """`turns` of the loop between the end of the link and the end of the proxy."""

    async def quiet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        except ConnectionResetError:
            pass  # the link may end like this
        writer.close()

    async with await asyncio.start_server(quiet, "127.0.0.1", 0) as server:
        async with FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
            _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            await wait_until_async(lambda: proxy.links and proxy.links[0].up)
            link = proxy.links[0]
            link.cut()
            for _ in range(turns):
                await asyncio.sleep(0)
        assert link.target is not None
        assert (link.client.fileno(), link.target.fileno()) == (-1, -1)
        writer.close()
