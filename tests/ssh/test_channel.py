"""The channel between asyncssh's client and a session of the test: requests, backpressure, half-closes, the exact exit.

Each test runs on a connection that the relay accepted and on one that `asyncssh.create_server` accepted and passed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import MSG_CHANNEL_CLOSE, MSG_CHANNEL_DATA, MSG_CHANNEL_EXTENDED_DATA, MSG_CHANNEL_REQUEST
from asyncssh.packet import SSHPacket, String, UInt32

from relay.config import Config, UpstreamSettings
from relay.errors import ClientGone, Stalled
from relay.model import Exit
from relay.ssh.algorithms import RECEIVE_WINDOW_BYTES, server_options
from relay.ssh.backpressure import FREE_BYTES, Budget, Flow
from relay.ssh.channel import RECEIVE_WINDOW_EARLY_BYTES, SEND_HIGH_BYTES, Channel
from relay.ssh.client_connection import ClientConnection, connection_factory
from relay.ssh.plain import Handovers
from tests.support.wait import wait_until_async

KEY = asyncssh.generate_private_key("ssh-ed25519")
OPTIONS = server_options(Config(upstreams={"main": UpstreamSettings(addresses=["127.0.0.1:1"])}), [KEY])


class Session(asyncssh.SSHServerSession[bytes]):
    """A session that records its callbacks; the test writes output and the exit."""

    def __init__(self) -> None:
        self.channel: Any = None
        self.command = ""
        self.received = b""
        self.events: list[str] = []
        self.started = asyncio.Event()
        self.lost = asyncio.Event()

    def connection_made(self, chan: Channel) -> None:  # type: ignore[override]
        self.channel = chan

    def exec_requested(self, command: str) -> bool:
        self.command = command
        self.started.set()
        return True

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self.received += data

    def eof_received(self) -> bool:
        self.events.append("eof")
        return True

    def resume_writing(self) -> None:
        self.channel.writable_again()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.channel is not None:
            self.channel.gone()
        self.lost.set()


class Server(asyncssh.SSHServer):
    """Accepts every login; its sessions share a budget."""

    def __init__(self, budget: Budget) -> None:
        self.flow = Flow(budget)
        self.sessions: list[Session] = []

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        assert isinstance(conn, ClientConnection)
        self.connection = conn
        conn.flow = self.flow

    def begin_auth(self, username: str) -> bool:
        return False

    def session_requested(self) -> tuple[Channel, Session]:
        self.sessions.append(Session())
        return self.connection.channel_class(self.connection, self.flow), self.sessions[-1]


class Setup:
    """One client connection and the server's side of it."""

    def __init__(self, client: asyncssh.SSHClientConnection, server: Server, budget: Budget) -> None:
        self.client, self.server, self.budget = client, server, budget

    async def open(self, command: str = "work", **options: Any) -> tuple[Any, Session, Heard]:
        """A client's channel, the server's session, and what the client receives."""
        heard = Heard()
        channel, _ = await self.client.create_session(lambda: heard, command, encoding=None, **options)
        session = self.server.sessions[-1]
        await session.started.wait()
        heard.see(channel)
        return channel, session, heard


class Heard(asyncssh.SSHClientSession[bytes]):
    """What a client receives, in order."""

    def __init__(self) -> None:
        self.stdout = self.stderr = b""
        self.events: list[Any] = []
        self.lost = asyncio.Event()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if datatype:
            self.stderr += data
        else:
            self.stdout += data
        if self.events[-1:] != ["data"]:
            self.events.append("data")

    def eof_received(self) -> bool:
        self.events.append("eof")
        return True

    def see(self, channel: Any) -> None:
        """Records all 32 bits of the exit status; asyncssh passes eight to its callback."""

        def status(packet: SSHPacket) -> bool:
            self.events.append(packet.get_uint32())
            return True

        channel._process_exit_status_request = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self.events.append((signal, core_dumped, msg))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


@pytest.fixture(params=["own", "plain"])
async def setup(request: pytest.FixtureRequest) -> AsyncIterator[Setup]:
    async with connected(request.param) as made:
        yield made


@asynccontextmanager
async def connected(transport: str, **options: Any) -> AsyncIterator[Setup]:
    budget = Budget(1 << 30)
    servers: list[Server] = []

    def factory() -> Server:
        servers.append(Server(budget))
        return servers[-1]

    given = {**OPTIONS, **options}
    listener: Any
    if transport == "plain":
        listener = await asyncssh.create_server(Handovers(factory, 6), "127.0.0.1", 0, config=None, **given)
        port = listener.get_port()
    else:
        loop = asyncio.get_running_loop()
        built = await asyncssh.SSHServerConnectionOptions.construct(server_factory=factory, config=None, **given)
        built.proxy_command = None
        make: Callable[..., Any] = connection_factory(built, loop, 6)
        listener = await loop.create_server(lambda: make(None, 0.0), "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
    try:
        async with asyncssh.connect("127.0.0.1", port, username="git", known_hosts=None, config=None, client_keys=None) as client:
            yield Setup(client, servers[0], budget)
    finally:
        for server in servers:
            server.connection.abort()
        listener.close()
        await listener.wait_closed()
    await wait_until_async(lambda: budget.used == 0, message="all is given back, whatever happened")


# -- requests ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("GIT_PROTOCOL", "version=2", True),
        ("GIT_PROTOCOL", "version=1:object-format=sha1", True),
        ("GIT_PROTOCOL", "", False),
        ("GIT_PROTOCOL", "version=2\nX=1", False),
        ("GIT_PROTOCOL", "x" * 257, False),
        ("git_protocol", "version=2", False),
        ("LANG", "C", False),
        ("RELAY_IDENTITY", "root", False),
    ],
)
async def test_only_git_protocol_is_accepted_as_a_variable(setup: Setup, name: str, value: str, taken: bool) -> None:
    channel, session, _ = await setup.open()
    assert await channel._make_request(b"env", String(name), String(value)) is taken
    assert session.channel.protocol == (value if taken else None)


async def test_a_command_of_any_bytes_reaches_the_session(setup: Setup) -> None:
    channel, session, _ = await setup.open("git-upload-pack 'äö'")
    assert session.command == "git-upload-pack 'äö'"
    raw = b"git-upload-pack 'caf\xe9'"
    session.channel._session_started = False  # as if no exec had been requested yet
    assert await channel._make_request(b"exec", String(raw)) is True
    assert session.command.encode("utf-8", "surrogateescape") == raw


@pytest.mark.parametrize("name", ["env", "winadj@putty.projects.tartarus.org", "keepalive@openssh.com", "x11-req", "pty-req", "größer"])
async def test_requests_that_are_not_served_are_refused_however_often(setup: Setup, name: str) -> None:
    channel, session, _ = await setup.open()
    for _ in range(20):
        answers = await asyncio.gather(*[channel._make_request(name.encode(), String("LANG"), String("C")) for _ in range(50)])
        assert answers == [False] * 50
    assert not session.channel._request_queue
    session.channel.write(b"served on")
    await session.channel.finish(Exit(status=0), 30)


@pytest.mark.parametrize("request_name", ["exec", "shell", "subsystem", "env"])
async def test_a_request_that_is_cut_short_is_refused(setup: Setup, request_name: str) -> None:
    channel, session, _ = await setup.open()
    assert await channel._make_request(request_name.encode(), b"\0\0") is False
    assert await channel._make_request(b"env", String("GIT_PROTOCOL"), String("version=2")) is True
    await session.channel.finish(Exit(status=0), 30)


BREAKS: dict[str, tuple[int, bytes]] = {
    "extended data": (MSG_CHANNEL_EXTENDED_DATA, UInt32(1) + String(b"x")),
    "data cut short": (MSG_CHANNEL_DATA, UInt32(9)),
    "more than the window": (MSG_CHANNEL_DATA, String(bytes(RECEIVE_WINDOW_EARLY_BYTES + 1))),
    "a request without a name": (MSG_CHANNEL_REQUEST, b""),
}


@pytest.mark.parametrize("name", list(BREAKS))
@pytest.mark.parametrize("taken", [True, False], ids=["the session ends it", "closed at once"])
async def test_a_channel_whose_client_broke_the_protocol_ends_alone(setup: Setup, name: str, taken: bool) -> None:
    channel, session, heard = await setup.open()
    _, other, _ = await setup.open()
    kind, payload = BREAKS[name]
    told: list[str] = []

    def broken(what: str) -> bool:
        told.append(what)
        return taken

    session.channel.on_broken(broken)
    channel._conn.send_packet(kind, UInt32(channel._send_chan), payload)
    channel._conn.send_packet(MSG_CHANNEL_DATA, UInt32(channel._send_chan), String(b"after it"))
    assert await channel._conn._channels[other.channel._send_chan]._make_request(b"env", String("LANG"), String("C")) is False
    assert len(told) == 1 and told[0]
    assert session.received == b""
    if taken:
        assert not session.channel.is_closing()
        await session.channel.finish(Exit(status=255), 30)
    await heard.lost.wait()
    await other.channel.finish(Exit(status=0), 30)


async def test_messages_after_a_close_are_dropped(setup: Setup) -> None:
    """Also once the channel's number is forgotten; a number that no channel ever had ends the connection."""
    channel, session, _ = await setup.open()
    number, connection = channel._send_chan, channel._conn
    channel.abort()
    await session.lost.wait()
    if isinstance(setup.server.connection, ClientConnection):
        for kind, payload in [(MSG_CHANNEL_DATA, String(b"x")), (MSG_CHANNEL_REQUEST, b""), (MSG_CHANNEL_CLOSE, b"")]:
            connection.send_packet(kind, UInt32(number), payload)
    _, other, _ = await setup.open()
    await other.channel.finish(Exit(status=0), 30)
    connection.send_packet(MSG_CHANNEL_DATA, UInt32(99), String(b"x"))
    async with asyncio.timeout(30):
        await connection.wait_closed()


# -- the end -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 37, 255, 256, 4_294_967_295])
async def test_all_then_eof_then_the_exact_status_then_the_close(setup: Setup, status: int) -> None:
    _, session, heard = await setup.open()
    session.channel.write(b"x" * 1_000_000)
    session.channel.write_stderr(b"y" * 1_000)
    await session.channel.finish(Exit(status=status), 30)
    await heard.lost.wait()
    assert (len(heard.stdout), len(heard.stderr)) == (1_000_000, 1_000)
    assert heard.events == ["data", "eof", status]


@pytest.mark.parametrize(("core", "message"), [(False, ""), (True, "out of memory")])
async def test_an_exit_signal_is_sent_with_its_fields(setup: Setup, core: bool, message: str) -> None:
    _, session, heard = await setup.open()
    await session.channel.finish(Exit(signal="SEGV", core_dumped=core, message=message), 30)
    await heard.lost.wait()
    assert heard.events == ["eof", ("SEGV", core, message)]


async def test_half_closed_is_not_closing(setup: Setup) -> None:
    channel, session, heard = await setup.open()
    session.channel.write_eof()
    assert not session.channel.is_closing()
    channel.write(b"still comes")
    channel.write_eof()
    await wait_until_async(lambda: session.received == b"still comes" and session.events == ["eof"])
    with pytest.raises(BrokenPipeError):
        session.channel.write_stderr(b"too late")
    await session.channel.finish(Exit(status=7), 30)
    assert session.channel.is_closing()
    await heard.lost.wait()
    assert heard.events == ["eof", 7]


async def test_a_client_that_closed_gets_no_status(setup: Setup) -> None:
    channel, session, _ = await setup.open()
    channel.abort()
    await session.lost.wait()
    with pytest.raises(ClientGone):
        await session.channel.finish(Exit(status=0), 30)
    session.channel.write(b"nobody")  # raises no error


async def test_a_client_that_disconnects_during_finish(setup: Setup) -> None:
    channel, session, _ = await setup.open(window=1000)
    channel.pause_reading()
    session.channel.write(bytes(100_000))
    finishing = asyncio.ensure_future(session.channel.finish(Exit(status=0), 30))
    await asyncio.sleep(0)
    setup.client.abort()
    with pytest.raises(ClientGone):
        await finishing


async def test_a_client_that_reads_nothing_stalls(setup: Setup) -> None:
    channel, session, heard = await setup.open(window=1000)
    channel.pause_reading()
    session.channel.write(bytes(100_000))
    with pytest.raises(Stalled, match="took none"):
        await session.channel.finish(Exit(status=0), 0.2)
    assert not heard.events


async def test_a_client_that_closes_after_both_eofs_gets_the_status(setup: Setup) -> None:
    """As OpenSSH's ControlMaster closes a session whose ssh has ended."""
    channel, session, heard = await setup.open()
    session.channel.write_eof()
    channel.write_eof()
    await wait_until_async(lambda: heard.events == ["eof"] and session.events == ["eof"])
    channel.send_packet(MSG_CHANNEL_CLOSE)
    await wait_until_async(lambda: session.channel._client_closed)
    assert not session.lost.is_set()
    await session.channel.finish(Exit(status=3), 30)
    await session.lost.wait()
    await wait_until_async(lambda: heard.events == ["eof", 3])


# -- backpressure ------------------------------------------------------------------------------------------------------------


async def test_a_channel_is_full_while_the_clients_window_is(setup: Setup) -> None:
    channel, session, heard = await setup.open(window=1000)
    drained: list[bool] = []
    session.channel.on_drained(lambda: drained.append(session.channel.full))
    channel.pause_reading()
    session.channel.write(bytes(1000))
    assert not session.channel.full and session.channel.get_write_buffer_size() == 0
    session.channel.write(bytes(SEND_HIGH_BYTES + 1))
    assert session.channel.full
    assert session.channel.waiting >= SEND_HIGH_BYTES
    assert setup.budget.used == session.channel.get_write_buffer_size()
    channel.resume_reading()
    await wait_until_async(lambda: False in drained, message="it is told that there is room")
    await wait_until_async(lambda: len(heard.stdout) == 1000 + SEND_HIGH_BYTES + 1)
    assert not session.channel.full
    assert setup.budget.used == 0


async def test_what_is_queued_is_sent_in_order_as_the_window_opens(setup: Setup) -> None:
    """In as many packets as the window takes, and in one write for each piece: a packet a call costs most of a slow client's CPU time."""
    _, session, heard = await setup.open()
    channel, sealed = session.channel, []
    window, channel._send_window = channel._send_window, 0
    send = channel._outgoing.send

    def counted(*arguments: Any) -> int:
        sealed.append(send(*arguments))
        return int(sealed[-1])

    channel._outgoing.send = counted
    out, error, more = bytes(range(250)) * 1_000, b"in between", bytes(range(200, 250)) * 1_000
    channel.write(out)
    channel.write_stderr(error)
    channel.write(more)
    channel.write_eof()
    for opens in (1, 100_000, 150_004, window):
        channel._send_window += opens
        channel._flush_send_buf()
    assert [count for count in sealed if count] == [1, 100_000, len(out) - 100_001, 5, len(error) - 5, len(more)]
    await wait_until_async(lambda: "eof" in heard.events)
    assert (heard.stdout, heard.stderr) == (out + more, error)
    assert channel.get_write_buffer_size() == 0 and setup.budget.used == 0


async def test_what_waits_in_the_git_hosts_connection_counts_against_the_budget(setup: Setup) -> None:
    _, session, _ = await setup.open()
    drained: list[bool] = []
    session.channel.on_drained(lambda: drained.append(True))
    assert not session.channel.upstream_unread(FREE_BYTES + 1)
    assert setup.budget.used == FREE_BYTES + 1
    spent = setup.budget.share(lambda: None)
    spent.hold(setup.budget.total)
    assert session.channel.upstream_unread(FREE_BYTES + 1), "all sessions together hold too much"
    assert not drained
    spent.close()
    await wait_until_async(lambda: drained, message="there is room again")
    assert not session.channel.upstream_unread(FREE_BYTES + 1)
    session.channel.upstream_unread(0)
    assert setup.budget.used == 0


async def test_what_is_kept_for_a_replay_counts_against_the_budget(setup: Setup) -> None:
    _, session, _ = await setup.open()
    assert session.channel.keeps(FREE_BYTES + 1)
    assert setup.budget.used == FREE_BYTES + 1
    spent = setup.budget.share(lambda: None)
    spent.hold(setup.budget.total)
    assert session.channel.keeps(FREE_BYTES), "a little may always be kept"
    assert not session.channel.keeps(FREE_BYTES + 1)
    session.channel.keeps(0)
    spent.close()
    assert setup.budget.used == 0


async def test_a_channel_is_full_while_the_clients_socket_is(setup: Setup) -> None:
    channel, session, heard = await setup.open(window=1 << 30)
    transport = setup.client._transport
    assert isinstance(transport, asyncio.Transport)
    transport.pause_reading()
    written = 0
    drained = asyncio.Event()
    session.channel.on_drained(drained.set)
    while not session.channel.full:
        session.channel.write(bytes(100_000))
        written += 100_000
        await asyncio.sleep(0)
        assert written < 64 << 20, "it takes all without end"
    assert session.channel.waiting > 0
    transport.resume_reading()
    await drained.wait()
    await wait_until_async(lambda: len(heard.stdout) == written)
    channel.abort()


async def test_a_channel_is_not_full_after_a_key_exchange(setup: Setup) -> None:
    _, session, heard = await setup.open()
    drained = asyncio.Event()
    session.channel.on_drained(drained.set)
    setup.server.connection._send_kexinit()
    setup.server.connection._kexinit_sent = True
    assert session.channel.full
    await drained.wait()
    assert not session.channel.full
    session.channel.write(b"after")
    await session.channel.finish(Exit(status=0), 30)
    await heard.lost.wait()
    assert heard.stdout == b"after"


async def test_what_a_client_sends_early_is_bounded_until_its_git_host_is_there(setup: Setup) -> None:
    channel, session, _ = await setup.open()
    session.channel.pause_reading()
    channel.write(bytes(3 * RECEIVE_WINDOW_BYTES))
    await wait_until_async(lambda: setup.budget.used == RECEIVE_WINDOW_EARLY_BYTES, message="the first window is used up, and counted")
    session.channel.widen()
    await wait_until_async(lambda: setup.budget.used == RECEIVE_WINDOW_BYTES, message="the whole window is used up, and counted")
    assert session.received == b""
    session.channel.resume_reading()
    await wait_until_async(lambda: len(session.received) == 3 * RECEIVE_WINDOW_BYTES)
    assert setup.budget.used == 0


async def test_a_client_that_is_faster_than_its_git_host_is_held_by_its_window(setup: Setup) -> None:
    """The session pauses after each piece, as a splice does whose git host is slow: never more than the window waits."""
    size, most = 8 * RECEIVE_WINDOW_BYTES, 0
    channel, session, _ = await setup.open()
    mine = session.channel
    mine.widen()
    take = session.data_received

    def slowly(data: bytes, datatype: int | None) -> None:
        nonlocal most
        take(data, datatype)
        most = max(most, setup.budget.used)
        assert mine._recv_window + mine._unread <= RECEIVE_WINDOW_BYTES
        mine.pause_reading()
        asyncio.get_running_loop().call_later(0.001, mine.resume_reading)

    session.data_received = slowly  # type: ignore[method-assign]
    sent = bytes(range(256)) * (size // 256)
    channel.write(sent)
    channel.write_eof()
    await wait_until_async(lambda: session.events == ["eof"], message="all of it, and its end, came through")
    assert session.received == sent
    assert RECEIVE_WINDOW_BYTES / 2 < most <= RECEIVE_WINDOW_BYTES
    assert setup.budget.used == 0


async def test_the_window_is_not_opened_while_the_budget_is_spent(setup: Setup) -> None:
    channel, session, _ = await setup.open()
    spent = setup.budget.share(lambda: None)
    spent.hold(setup.budget.total + 1)
    session.channel.widen()
    session.channel.pause_reading()
    channel.write(bytes(RECEIVE_WINDOW_BYTES))
    await wait_until_async(lambda: setup.budget.used - spent.held == RECEIVE_WINDOW_EARLY_BYTES)
    assert channel.get_write_buffer_size() == RECEIVE_WINDOW_BYTES - RECEIVE_WINDOW_EARLY_BYTES
    spent.close()


async def test_a_client_that_takes_only_tiny_packets_is_refused(setup: Setup) -> None:
    """The relay refuses the channel; the connection serves on."""
    with pytest.raises(asyncssh.ChannelOpenError, match="the maximum packet size is too small"):
        await setup.open(max_pktsize=99)
    _, session, _ = await setup.open()
    await session.channel.finish(Exit(status=0), 30)
    assert len(setup.server.connection._channels) <= 1
