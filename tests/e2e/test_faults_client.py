"""A client that is reset, leaves or is killed at each step: one outcome, attributed to the client, and no resources left."""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
from collections.abc import Awaitable, Callable

import asyncssh
import pytest

from tests.e2e.helpers import alice
from tests.support.relay_process import RelayProcess
from tests.support.wait import wait_until, wait_until_async

MIB = 1 << 20


async def asks(connection: asyncssh.SSHClientConnection, command: str) -> asyncssh.SSHClientProcess[bytes]:
    return await connection.create_process(command, encoding=None)


async def logged_in(connection: asyncssh.SSHClientConnection) -> None:
    pass


async def exec_accepted(connection: asyncssh.SSHClientConnection) -> None:
    await asks(connection, "git-upload-pack 'stub/hang'")


async def first_byte(connection: asyncssh.SSHClientConnection) -> None:
    process = await asks(connection, "git-upload-pack 'stub/half/10'")
    await process.stdout.readexactly(10)


async def mid_download(connection: asyncssh.SSHClientConnection) -> None:
    process = await asks(connection, "git-upload-pack 'stub/emit/50000000'")
    await process.stdout.readexactly(MIB)


async def mid_upload(connection: asyncssh.SSHClientConnection) -> None:
    process = await asks(connection, "git-receive-pack 'stub/checksum/1000000'")
    process.stdin.write(bytes(MIB))


async def between_eof_and_exit(connection: asyncssh.SSHClientConnection) -> None:
    process = await asks(connection, "git-upload-pack 'stub/eof/1000'")
    assert await process.stdout.read() == b"eof\n"


def leaves(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_RDWR)


def resets(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


STEPS = [logged_in, exec_accepted, first_byte, mid_download, mid_upload, between_eof_and_exit]


@pytest.mark.parametrize("how", [leaves, resets])
@pytest.mark.parametrize("step", STEPS)
async def test_a_client_goes(
    relay: RelayProcess, step: Callable[[asyncssh.SSHClientConnection], Awaitable[None]], how: Callable[[socket.socket], None]
) -> None:
    since = len(relay.audit_lines())
    async with alice(relay) as connection:
        await step(connection)
        how(connection.get_extra_info("socket"))
        connection.abort()
    await nothing_left(relay)
    lines = relay.audit_lines()[since:]
    if step is logged_in:
        assert lines == []
    else:
        assert [(line["result"], line["reason"]) for line in lines] == [("client", "client_gone")], lines
        assert lines[0]["exit_status"] != 0, lines


@pytest.mark.parametrize("command", ["stub/hang", "stub/emit/50000000", "stub/checksum/1000000", "stub/eof/1000"])
def test_an_ssh_is_killed(relay: RelayProcess, command: str) -> None:
    since = len(relay.audit_lines())
    service = "git-receive-pack" if "checksum" in command else "git-upload-pack"
    before = relay.metric("relay_bytes_total", service=service)
    with relay.ssh().popen(f"{service} '{command}'") as client:
        assert client.stdin is not None
        if "checksum" in command:
            client.stdin.write(bytes(MIB))
            client.stdin.flush()
        if "hang" in command:
            wait_until(lambda: relay.metric("relay_sessions_open", service=service) == 1)
        else:
            wait_until(lambda: relay.metric("relay_bytes_total", service=service) > before)
        client.send_signal(signal.SIGKILL)
    wait_until(lambda: len(relay.audit_lines()) > since)
    assert [(line["result"], line["reason"]) for line in relay.audit_lines()[since:]] == [("client", "client_gone")]


@pytest.mark.parametrize("sent", [b"", b"SSH-2.0-x\r\n", b"SSH-2.0-x\r\n" + bytes(4)], ids=["nothing", "a version", "half a packet"])
async def test_a_client_goes_before_it_has_proved_anything(relay: RelayProcess, sent: bytes) -> None:
    since = len(relay.audit_lines())
    _, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    writer.write(sent)
    await writer.drain()
    resets(writer.get_extra_info("socket"))
    writer.transport.abort()
    await nothing_left(relay)
    assert [line for line in relay.audit_lines()[since:] if line["event"] == "session"] == []


async def nothing_left(relay: RelayProcess) -> None:
    def still() -> bool:
        return (
            relay.metric("relay_connections_open") == 0
            and sum(relay.metric("relay_sessions_open", service=service) for service in ("git-upload-pack", "git-receive-pack")) == 0
            and relay.metric("relay_upstream_connections", upstream="main", state="leased") == 0
        )

    await wait_until_async(still, 30, "no connection, no session and no lease")
