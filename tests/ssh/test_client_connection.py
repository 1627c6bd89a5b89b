"""The transport under a server that accepts every key: bounds of what a stranger can make it buffer, and no needless packets and delays."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import (
    MSG_DEBUG,
    MSG_GLOBAL_REQUEST,
    MSG_IGNORE,
    MSG_KEX_FIRST,
    MSG_KEXINIT,
    MSG_REQUEST_FAILURE,
    MSG_REQUEST_SUCCESS,
)
from asyncssh.packet import Boolean, Byte, String, UInt32

from relay import config
from relay.config import Config
from relay.gathering import GATHER_UNTAKEN_BYTES, Pace
from relay.ssh import client_connection, packets
from relay.ssh.algorithms import server_options
from relay.ssh.client_connection import ATTEMPT_PACKETS, PACKET_BYTES, UNAUTHENTICATED_PACKETS, ClientConnection, connection_factory
from tests.e2e.helpers import stands_still
from tests.support.echo import client, echo
from tests.support.wait import wait_until_async

KEY = asyncssh.generate_private_key("ssh-ed25519")
ATTEMPTS = 3


class Server(asyncssh.SSHServer):
    """Accepts every key once `may` is set; records how each connection ended."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.asked = asyncio.Event()
        self.ended: list[Exception | None] = []
        self.peer: Any = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connection = conn
        self.peer = conn.get_extra_info("peername")

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        self.asked.set()
        await self.may.wait()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.append(exc)


class Place:
    """The listening port, and the server logic of its only connection."""

    def __init__(self, server: Server, port: int, made: list[ClientConnection]) -> None:
        self.server = server
        self.port = port
        self._made = made

    @property
    def connection(self) -> ClientConnection:
        [connection] = self._made
        return connection

    def connect(self, **options: Any) -> Any:
        known: dict[str, Any] = {"known_hosts": None, "config": None, "agent_path": None, "client_keys": [KEY]}
        return asyncssh.connect("127.0.0.1", self.port, username="git", **{**known, **options})

    async def end(self) -> Exception | None:
        await wait_until_async(lambda: self.server.ended, message="the connection ends")
        [ended] = self.server.ended
        return ended


@asynccontextmanager
async def listening(
    real: tuple[str, int] | None = None, waited: float = 0.0, grace: float = 30, server: Any = None
) -> AsyncIterator[Place]:
    loop, server, made = asyncio.get_running_loop(), server or Server(), list[ClientConnection]()
    settings = Config(upstreams={}, limits=config.LimitsSettings(login_grace_seconds=grace, keepalive_seconds=0))
    options = await asyncssh.SSHServerConnectionOptions.construct(
        server_factory=lambda: server, config=None, **server_options(settings, [KEY])
    )
    options.proxy_command = None
    make = connection_factory(options, loop, ATTEMPTS)

    def accept() -> ClientConnection:
        made.append(make(real, waited))
        return made[-1]

    listener = await loop.create_server(accept, "127.0.0.1", 0)
    try:
        yield Place(server, listener.sockets[0].getsockname()[1], made)
    finally:
        for one in made:
            one.abort()
        await wait_until_async(lambda: len(server.ended) == len(made))
        listener.close()
        await listener.wait_closed()


class Flood(asyncssh.SSHClient):
    """Runs `act` when asyncssh asks the client for a key."""

    def __init__(self, act: Callable[[Any], None]) -> None:
        self._act = act

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self._connection = conn

    async def public_key_auth_requested(self) -> asyncssh.SSHKey:
        self._act(self._connection)
        return KEY


# -- buffers that a stranger can fill ------------------------------------------------------------------------------------


async def test_input_that_waits_for_the_keys_is_bounded() -> None:
    async with listening() as place:
        place.server.may.clear()

        async def flood() -> None:
            await place.server.asked.wait()
            for _ in range(60):  # below the limit of packets; each read is as large as the bound, and one begins within a packet
                clients[0].send_packet(MSG_IGNORE, String(bytes(30_000)))

        clients: list[Any] = []
        flooding = asyncio.create_task(flood())
        with pytest.raises((OSError, asyncssh.Error)):
            await place.connect(client_factory=lambda: Flood(clients.append), client_keys=[])
        await flooding
        ended = await place.end()
        assert isinstance(ended, asyncssh.ProtocolError)
        assert "Too much input before authentication" in str(ended)
        assert place.connection._inpbuf == b""


async def test_packets_before_the_login_are_counted() -> None:
    def flood(connection: Any) -> None:
        for _ in range(UNAUTHENTICATED_PACKETS + ATTEMPT_PACKETS * ATTEMPTS):
            connection.send_packet(MSG_IGNORE, String(b""))

    async with listening() as place:
        with pytest.raises(asyncssh.DisconnectError, match="Too many packets before authentication"):
            await place.connect(client_factory=lambda: Flood(flood), client_keys=[])
        assert isinstance(await place.end(), asyncssh.ProtocolError)


async def test_packets_after_the_login_are_not_counted() -> None:
    async with listening() as place, place.connect() as connection:
        for _ in range(500):
            connection.send_packet(MSG_IGNORE, String(b""))
        await wait_until_async(lambda: place.connection._recv_seq > 500)
        assert place.server.ended == []


@pytest.mark.parametrize(
    ("length", "why"),
    [(PACKET_BYTES + 1, "Max packet size exceeded"), (4, "Packet too short"), (0, "Packet too short")],
)
async def test_a_packet_of_no_possible_length(length: int, why: str) -> None:
    async with listening() as place:
        reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
        writer.write(b"SSH-2.0-stranger\r\n" + length.to_bytes(4, "big") + bytes(40))
        async with asyncio.timeout(25):
            await reader.read()
        writer.close()
        ended = await place.end()
        assert isinstance(ended, asyncssh.ProtocolError)
        assert why in str(ended)


async def test_replies_that_are_not_read_stop_the_reading_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "UNREAD_REPLIES_BYTES", 20_000)
    async with listening() as place, place.connect() as connection:
        ours = place.connection
        ours._socket.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection._transport.pause_reading()
        asked = 0
        while not ours._reading_stopped and asked < 100_000:
            for _ in range(50):
                connection.send_packet(MSG_GLOBAL_REQUEST, String(b"keepalive@openssh.com"), Boolean(True))
            asked += 50
            await asyncio.sleep(0)
        assert ours._reading_stopped
        before = ours._recv_seq
        connection.send_packet(MSG_GLOBAL_REQUEST, String(b"keepalive@openssh.com"), Boolean(True))
        await wait_until_async(stands_still(lambda: ours._recv_seq))
        assert ours._recv_seq == before
        ignored = dict.fromkeys((MSG_REQUEST_SUCCESS, MSG_REQUEST_FAILURE), lambda *_: None)  # asyncssh did not send the requests
        connection._packet_handlers = {**connection._packet_handlers, **ignored}
        connection._transport.resume_reading()
        await wait_until_async(lambda: ours._recv_seq > before and not ours._reading_stopped)


class Unread:
    """A transport in front of a client that leaves `bytes` unread."""

    def __init__(self, transport: Any) -> None:
        self.bytes = 0
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def get_write_buffer_size(self) -> int:
        return self.bytes


async def test_many_small_replies_that_are_not_read_stop_the_reading_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a write of its own takes up ten times its bytes, so that UNREAD_REPLIES_BYTES alone would allow 11 MiB a client."""
    monkeypatch.setattr(client_connection, "UNREAD_REPLIES", 20)
    async with listening() as place, place.connect() as connection:
        ours: Any = place.connection
        transport = ours._transport = Unread(ours._transport)
        ignored = dict.fromkeys((MSG_REQUEST_SUCCESS, MSG_REQUEST_FAILURE), lambda *_: None)  # asyncssh did not send the requests
        connection._packet_handlers = {**connection._packet_handlers, **ignored}

        async def ask(count: int) -> None:
            for _ in range(count):
                before = ours._recv_seq
                connection.send_packet(MSG_GLOBAL_REQUEST, String(b"keepalive@openssh.com"), Boolean(True))
                await wait_until_async(lambda before=before: ours._recv_seq >= before + 2)  # type: ignore[misc]  # MSG_IGNORE comes first

        await ask(30)
        assert not ours._reading_stopped, "all is read"
        transport.bytes = 1_000
        await ask(20)
        assert not ours._reading_stopped
        await ask(1)
        assert ours._reading_stopped
        before = ours._recv_seq
        connection.send_packet(MSG_GLOBAL_REQUEST, String(b"keepalive@openssh.com"), Boolean(True))
        transport.bytes = 501
        await wait_until_async(stands_still(lambda: ours._recv_seq))
        assert ours._reading_stopped and ours._recv_seq == before
        transport.bytes = 500  # half of it
        await wait_until_async(lambda: ours._recv_seq > before)
        await ask(19)
        assert not ours._reading_stopped
        await ask(1)
        assert ours._reading_stopped, "they are counted anew"


async def test_input_of_a_refused_connection_is_dropped() -> None:
    async with listening() as place:
        connection = await place.connect()
        ours, seen = place.connection, list[int]()

        def end(*_: object) -> None:
            seen.append(1)
            ours._end("enough")

        setattr(ours, "_packet_handlers", {**ours._packet_handlers, MSG_DEBUG: end})  # noqa: B010 - a class variable to mypy
        for _ in range(10):
            connection.send_packet(MSG_DEBUG, Boolean(False), String("x"), String(""))
        assert isinstance(await place.end(), asyncssh.ProtocolError)
        assert len(seen) == 1
        await connection.wait_closed()


# -- no needless packets and delays --------------------------------------------------------------------------------------


async def test_packets_of_one_loop_iteration_are_one_write() -> None:
    async with listening() as place, place.connect() as connection:
        ours = place.connection
        writes: list[int] = []
        write = ours._socket.write

        class Counted:
            def __getattr__(self, name: str) -> Any:
                return getattr(ours._transport, name)

            def write(self, data: bytes) -> None:
                writes.append(len(data))
                write(data)

        ours._socket = Counted()
        before = connection._recv_seq
        for _ in range(50):
            ours.send_debug("x")
        await wait_until_async(lambda: connection._recv_seq >= before + 50)
        assert len(writes) == 1


async def test_packets_without_an_answer_during_a_login_are_acknowledged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a client with Nagle's algorithm would wait 40 ms for an acknowledgement after its KEXINIT, and again after its NEWKEYS."""
    asked: list[int] = []
    monkeypatch.setattr(packets, "acknowledge_now", asked.append)
    async with listening() as place:
        reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
        await reader.readline()
        writer.write(b"SSH-2.0-test\r\n")
        length = int.from_bytes(await reader.readexactly(4), "big")
        answer = await reader.readexactly(length)
        asked.clear()  # ignores the acknowledgement of the version line
        payload = answer[1 : -answer[0]]
        writer.write((len(payload) + 5).to_bytes(4, "big") + b"\4" + payload + bytes(4))
        await wait_until_async(lambda: len(asked) == 1)
        writer.close()
        await place.end()
    async with listening() as place, place.connect() as client:
        await wait_until_async(lambda: place.connection._auth_complete)
        with pytest.raises(asyncssh.ChannelOpenError):
            await client.run("anything")
        asked.clear()
        with pytest.raises(asyncssh.ChannelOpenError):
            await client.run("anything")
        assert asked == []


async def test_an_acknowledgement_goes_out_before_the_kernels_delay() -> None:
    """Linux ends the mode by itself, and tells with TCP_QUICKACK whether it is on."""
    async with listening() as place, place.connect():
        at = place.connection._socket.get_extra_info("socket")
        at.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        assert at.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 0
        packets.acknowledge_now(at.fileno())
        assert at.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 1


async def test_no_ignored_message_goes_before_a_packet() -> None:
    async with listening() as place, place.connect() as connection:
        ours = place.connection
        await asyncio.sleep(0)
        before = ours._send_seq
        ours.send_packet(MSG_IGNORE, String(b"x"))
        assert ours._send_seq == before
        ours.send_debug("x")
        assert ours._send_seq == before + 1
        await wait_until_async(lambda: connection._recv_seq == ours._send_seq)


async def test_a_disconnect_message_is_sent_before_the_transport_is_aborted() -> None:
    async with listening() as place:
        place.server.may.clear()

        async def connecting() -> None:
            await place.connect()

        client = asyncio.create_task(connecting())
        await place.server.asked.wait()
        place.connection.disconnect(asyncssh.DISC_SERVICE_NOT_AVAILABLE, "go away")
        with pytest.raises(asyncssh.DisconnectError, match="go away"):
            await client


# -- the key exchange ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key_exchange", "host_keys", "guessed_right"),
    [
        (["mlkem768x25519-sha256"], ["ssh-ed25519"], True),
        (["curve25519-sha256", "mlkem768x25519-sha256"], ["ssh-ed25519"], False),
        (["mlkem768x25519-sha256"], ["rsa-sha2-256", "ssh-ed25519"], False),
    ],
)
async def test_a_guessed_kex_packet_counts_only_if_both_prefer_the_same(
    monkeypatch: pytest.MonkeyPatch, key_exchange: list[str], host_keys: list[str], guessed_right: bool
) -> None:
    """As Dropbear does: the packet after its KEXINIT is a guess (RFC 4253 section 7), which it repeats if it was wrong."""
    send_packet = asyncssh.SSHClientConnection.send_packet
    guesses = []

    def guess(self: asyncssh.SSHClientConnection, pkttype: int, *args: bytes, **named: Any) -> None:
        if pkttype != MSG_KEXINIT:
            send_packet(self, pkttype, *args, **named)
            return
        follows = args[0].removesuffix(Boolean(False) + UInt32(0)) + Boolean(True) + UInt32(0)
        self._client_kexinit = Byte(MSG_KEXINIT) + follows
        send_packet(self, pkttype, follows, **named)
        if not guessed_right:
            guesses.append(self)
            send_packet(self, MSG_KEX_FIRST, String(bytes(32)))

    monkeypatch.setattr(asyncssh.SSHClientConnection, "send_packet", guess)
    async with listening() as place, place.connect(kex_algs=key_exchange, server_host_key_algs=host_keys):
        assert len(guesses) == (not guessed_right)
        assert place.connection._auth_complete


# -- behind a load balancer ----------------------------------------------------------------------------------------------


async def test_the_real_address_is_the_clients() -> None:
    async with listening(real=("203.0.113.9", 4242)) as place, place.connect():
        assert place.server.peer == ("203.0.113.9", 4242)
        assert place.connection.get_extra_info("peername") == ("203.0.113.9", 4242)


async def test_the_time_of_the_proxy_header_counts_as_login_time() -> None:
    async with listening(waited=29.9, grace=30) as place:
        reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
        async with asyncio.timeout(25):
            await reader.read()
        writer.close()
        assert "timeout" in str(await place.end()).lower()


# -- gathering ---------------------------------------------------------------------------------------------------------------


GCM: dict[str, Any] = {"encryption_algs": ["aes128-gcm@openssh.com"]}
MUCH_BYTES = 6_000_003


def reads(connection: ClientConnection) -> bool:
    return bool(connection._socket.is_reading())


@pytest.fixture(params=["slow", "fast"])
def slow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether every flow is treated as slower than the relay, however busy the machine is. What gathers stays in the socket, to be seen."""
    is_slow: bool = request.param == "slow"
    monkeypatch.setattr(Pace, "is_slow", lambda self, now, moved: is_slow)
    monkeypatch.setattr(client_connection, "GATHER_SECONDS", 3600)
    return is_slow


async def gathers(connection: ClientConnection, until: Callable[[], bool]) -> int:
    """Ends each gathering until `until`; returns how many there were."""
    times = 0

    def ended() -> bool:
        nonlocal times
        if not reads(connection):
            times += 1
            connection._gathered()  # as the end of its time does
        return until()

    await wait_until_async(ended)
    return times


async def test_window_adjusts_gather_while_the_client_is_behind(slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "GATHER_UNTAKEN_BYTES", 1 << 40)
    content = os.urandom(MUCH_BYTES)
    async with echo() as (port, connections), client(port, **GCM) as connection:
        process: asyncssh.SSHClientProcess[bytes] = await connection.create_process("out", encoding=None)
        process.stdin.write(content)
        process.stdin.write_eof()
        await wait_until_async(lambda: connections[0]._channels and channel(connections[0])._recv_state == "eof")
        assert channel(connections[0]).untaken > 0
        monkeypatch.setattr(client_connection, "GATHER_UNTAKEN_BYTES", GATHER_UNTAKEN_BYTES)
        reading = asyncio.ensure_future(process.stdout.read())
        times = await gathers(connections[0], reading.done)
        assert await reading == content
        assert bool(times) is slow


@pytest.mark.parametrize("untaken", [GATHER_UNTAKEN_BYTES - 1, GATHER_UNTAKEN_BYTES])
async def test_a_clients_bulk_gathers_while_the_git_host_is_behind(slow: bool, untaken: int) -> None:
    async with echo() as (port, connections), client(port, **GCM) as connection:
        process: asyncssh.SSHClientProcess[bytes] = await connection.create_process("out", encoding=None)
        process.stdin.write(b"first")
        assert await process.stdout.readexactly(5) == b"first"
        channel(connections[0]).upstream_untaken(untaken)
        process.stdin.write(b" second")
        assert await process.stdout.readexactly(7) == b" second"
        times = await gathers(connections[0], lambda: True)
        assert bool(times) is (slow and untaken >= GATHER_UNTAKEN_BYTES)


async def test_nothing_gathers_beside_another_channel(slow: bool) -> None:
    """Its client may wait for an answer."""
    async with echo() as (port, connections), client(port, **GCM) as connection:
        one, two = [await connection.create_process("out", encoding=None) for _ in range(2)]
        served: list[Any] = [*connections[0]._channels.values()]
        for bulk in served:
            bulk.upstream_untaken(GATHER_UNTAKEN_BYTES)
        for process in (one, two):
            process.stdin.write(b"here")
            assert await process.stdout.readexactly(4) == b"here"
        assert reads(connections[0])


def channel(connection: ClientConnection) -> Any:
    [only] = connection._channels.values()
    return only
