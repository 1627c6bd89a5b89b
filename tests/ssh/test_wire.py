"""The direct path against asyncssh itself: same bytes for the client, same counters, and a loud failure when asyncssh changes."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from asyncssh.constants import MSG_CHANNEL_WINDOW_ADJUST
from asyncssh.packet import UInt32

from relay.ssh import gcm, wire
from tests.support.echo import client, echo


@pytest.fixture(params=["direct", "python", "asyncssh"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The direct path with the extension (if built), the direct path without it, and asyncssh's own."""
    monkeypatch.setattr(wire, "ENABLED", request.param != "asyncssh")
    if request.param == "python":
        monkeypatch.setattr(gcm, "Aead", gcm.PythonAead)
    return str(request.param)


SIZES = [1, 2, 5, 6, 7, 21, 22, 23, 32_699, 32_700, 32_701, 32_768, 65_536, 100_001, 1_000_003]


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"])
async def test_every_size_comes_back_whole(path: str, cipher: str) -> None:
    async with echo() as (port, _), client(port, encryption_algs=[cipher]) as connection:
        for size in SIZES:
            data = os.urandom(size)
            for command in ("out", "err"):
                done = await connection.run(command, input=data, encoding=None)
                got, other = (done.stdout, done.stderr) if command == "out" else (done.stderr, done.stdout)
                assert got == data
                assert other == b""
                assert done.exit_status == 0


@pytest.mark.parametrize(("window", "packet"), [(1_000, 100), (70_000, 1_000), (2 << 20, 40_000)])
async def test_the_clients_window_and_packet_size_are_kept(path: str, window: int, packet: int) -> None:
    """asyncssh's client ends the connection when either is exceeded."""
    data = os.urandom(300_000)
    async with echo() as (port, _), client(port) as connection:
        done = await connection.run("out", input=data, encoding=None, window=window, max_pktsize=packet)
        assert done.stdout == data


async def test_key_exchanges_in_the_middle(path: str) -> None:
    data = os.urandom(5_000_000)
    async with echo(rekey_bytes=200_000) as (port, _), client(port, rekey_bytes=150_000) as connection:
        for _ in range(3):
            done = await connection.run("out", input=data, encoding=None)
            assert done.stdout == data


async def test_ten_channels_at_once(path: str) -> None:
    async with echo() as (port, _), client(port) as connection:
        data = [os.urandom(200_000 + number) for number in range(10)]
        done = await asyncio.gather(*(connection.run("out", input=one, encoding=None) for one in data))
        assert [one.stdout for one in done] == data


async def test_a_changed_byte_ends_the_connection(path: str) -> None:
    """The direct path checks the tag too; asyncssh reports the failure."""
    async with echo() as (port, connections), client(port) as connection:
        process = await connection.create_process("out", encoding=None)
        process.stdin.write(b"x" * 1_000)
        await process.stdout.readexactly(1_000)
        transport = connection._transport
        assert transport is not None
        write = transport.write
        connection._send = lambda data: write(data[:-1] + bytes((data[-1] ^ 1,)))  # type: ignore[method-assign]
        process.stdin.write(b"y" * 1_000)
        await connection.wait_closed()
        await connections[0].wait_closed()
        assert (await process.wait()).exit_status is None


async def test_bytes_one_at_a_time(path: str) -> None:
    """TCP segments that end anywhere within packets."""
    async with echo() as (port, connections), client(port) as connection:
        process = await connection.create_process("out", encoding=None)
        while not connections or not connections[0]._auth_complete:
            await asyncio.sleep(0)
        server = connections[0]
        whole = server.data_received

        def split(data: bytes | memoryview, datatype: int | None = None) -> None:
            for start in range(0, len(data), 7):
                whole(data[start : start + 7], datatype)

        transport = server._transport
        assert transport is not None
        server.data_received = split  # type: ignore[method-assign]
        transport.set_protocol(server)
        data = os.urandom(100_000)
        process.stdin.write(data)
        process.stdin.write_eof()
        assert await process.stdout.read() == data
        assert (await process.wait()).exit_status == 0


async def test_no_more_is_taken_than_the_window_has(path: str) -> None:
    """A client that sends beyond its window loses the channel; the bytes within the window are delivered."""
    why: list[str] = []

    def broken(what: str) -> bool:
        why.append(what)
        return False

    async with echo() as (port, connections), client(port) as connection:
        process = await connection.create_process("out", encoding=None)
        server = connections[0]
        channel: Any = next(iter(server._channels.values()))
        channel.pause_reading()
        channel.on_broken(broken)
        process.channel._send_window = 1 << 30
        window = channel._recv_window
        process.stdin.write(bytes(window + 1_000_000))
        while channel._recv_state == "open":
            assert channel._recv_window >= 0
            await asyncio.sleep(0)
        assert server._transport is not None
        another = await connection.create_process("out", encoding=None)
        another.stdin.write(b"another")
        another.stdin.write_eof()
        assert await another.stdout.read() == b"another"
    [what] = why
    assert "bytes of data in a window of" in what


async def test_a_window_that_opens_by_little_steps(path: str) -> None:
    """Many WINDOW_ADJUSTs in one read; the data that waited for them is sent in order."""
    async with echo() as (port, connections), client(port) as connection:
        process = await connection.create_process("out", encoding=None)
        (channel,) = connections[0]._channels.values()
        channel._send_window = 0
        data = os.urandom(60_000)
        process.stdin.write(data)
        process.stdin.write_eof()
        while channel.get_write_buffer_size() < len(data):
            await asyncio.sleep(0)
        for _ in range(600):
            process.channel.send_packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(100))
        assert await process.stdout.read() == data
        assert (await process.wait()).exit_status == 0
        assert channel._send_window == 0
