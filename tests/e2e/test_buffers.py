"""The memory that clients can make the relay use is bounded: for a stranger, for a session, and for all sessions together.

The tests measure the worker's greatest resident size, which the kernel keeps (VmHWM, reset through clear_refs: proc(5)).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import asyncssh
import psutil
import pytest
from asyncssh.constants import (
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_OPEN_FAILURE,
    MSG_DEBUG,
    MSG_GLOBAL_REQUEST,
    MSG_IGNORE,
    MSG_KEXINIT,
    MSG_REQUEST_FAILURE,
    MSG_USERAUTH_REQUEST,
)
from asyncssh.packet import Boolean, String, UInt32

from tests.e2e.faults import BUFFER_BYTES, small_client_buffers
from tests.e2e.helpers import alice, audited, stands_still
from tests.support.pattern import stub_bytes
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import run
from tests.support.sshd import Sshd
from tests.support.stranger import Act, offer, password, stranger
from tests.support.wait import wait_until, wait_until_async

STRANGER_BYTES = 512 * 1024
SESSION_BYTES = 4 << 20
CONNECTIONS = 40
LIMITS = {"connections_per_source": 1000, "unauthenticated_connections": 1000, "login_grace_seconds": 600}
MIB = 1 << 20
FIRST = 1_000  # requests before the measurement


class Peak:
    """By how much the worker's greatest resident size has grown since the start of the measurement."""

    def __init__(self, relay: RelayProcess) -> None:
        (self._worker,) = relay.processes()[1:]
        self.start()

    def start(self) -> None:
        Path(f"/proc/{self._worker.pid}/clear_refs").write_text("5")
        self._before = self._now()

    def _now(self) -> int:
        match = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{self._worker.pid}/status").read_text(), re.MULTILINE)
        assert match is not None
        return int(match[1]) * 1024

    @property
    def bytes(self) -> int:
        peak = self._now() - self._before
        print(f"{peak / 1024:.0f} KiB more at the most")
        return peak


@pytest.fixture(scope="module")
def relay(sshd: Sshd) -> Iterator[RelayProcess]:
    with RelayProcess(sshd, config={"workers": 1, "limits": LIMITS}) as process:
        yield process


# -- strangers


def packet(payload: bytes) -> bytes:
    """RFC 4253 section 6, without encryption."""
    padding = -(5 + len(payload)) % 8 + 8
    return (1 + len(payload) + padding).to_bytes(4, "big") + bytes([padding]) + payload + bytes(padding)


VERSION = b"SSH-2.0-flood\r\n"
KEXINIT = packet(bytes([MSG_KEXINIT]) + bytes(16) + b"".join(String(b"x,curve25519-sha256") for _ in range(10)) + bytes(5))
IGNORE = packet(bytes([MSG_IGNORE]) + String(bytes(30_000)))
DEBUG = packet(bytes([MSG_DEBUG]) + Boolean(True) + String(b"x" * 30_000) + String(b""))

FLOODS = {
    "a version line without end": b"SSH-2.0-" + b"x" * 8_000,
    "many lines before the version": b"hello\r\n" * 100_000,
    "a packet but for its last byte": VERSION + (34_996).to_bytes(4, "big") + bytes(34_995),
    "a packet larger than allowed": VERSION + (8 * MIB).to_bytes(4, "big") + bytes(MIB),
    "packets that are to be ignored": VERSION + IGNORE * 200,
    "words for the log": VERSION + DEBUG * 200,
    "one key exchange upon another": VERSION + KEXINIT * 5_000,
    "what comes while the key exchange is looked at": VERSION + KEXINIT + bytes(MIB),
    "packets of no length": VERSION + bytes(MIB),
    "anything": bytes(range(256)) * 4_000,
}


def flood(relay: RelayProcess, data: bytes, count: int, stack: ExitStack) -> None:
    """Opens so many connections that send as much of `data` as the relay reads, read nothing and stay open."""
    for _ in range(count):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), timeout=30))
        client.setblocking(False)
        left = memoryview(data)
        try:
            while left:
                left = left[client.send(left) :]
        except (BlockingIOError, ConnectionResetError, BrokenPipeError):
            pass  # the relay reads no more, or has closed


@pytest.mark.parametrize("name", list(FLOODS))
def test_a_stranger_takes_a_bounded_share_of_memory(name: str, relay: RelayProcess) -> None:
    data = FLOODS[name]
    with ExitStack() as stack:
        flood(relay, data, 2, stack)  # so that the allocator has the memory that it never gives back
    wait_until(lambda: relay.metric("relay_connections_open") == 0)
    peak = Peak(relay)
    with ExitStack() as stack:
        flood(relay, data, CONNECTIONS, stack)
        wait_until(stands_still(lambda: relay.metric("relay_connections_open"), 5))
        assert relay.ssh().run("git-upload-pack 'stub/exit/5'").returncode == 5, "others are served all the while"
    assert peak.bytes <= CONNECTIONS * STRANGER_BYTES
    wait_until(lambda: relay.metric("relay_connections_open") == 0)


def acts(relay: RelayProcess) -> dict[str, Act]:
    def endlessly(kind: int, payload: bytes) -> Act:
        async def act(connection: asyncssh.SSHClientConnection) -> None:
            transport = connection._transport
            assert transport is not None
            transport.pause_reading()
            connection._auth_complete = True  # so that asyncssh's client sends messages that may follow only a login
            for _ in range(2_000):
                connection.send_packet(kind, payload)
            transport.resume_reading()

        return act

    return {
        "offered keys": endlessly(MSG_USERAUTH_REQUEST, offer(relay.key, relay.user)),
        "passwords": endlessly(MSG_USERAUTH_REQUEST, password(relay.user)),
        "messages nobody knows": endlessly(192, bytes(20_000)),
        "messages to be ignored": endlessly(MSG_IGNORE, String(bytes(20_000))),
        "requests before their time": endlessly(MSG_GLOBAL_REQUEST, String(b"x") + Boolean(True)),
    }


@pytest.mark.parametrize(
    "name", ["offered keys", "passwords", "messages nobody knows", "messages to be ignored", "requests before their time"]
)
async def test_a_stranger_with_a_key_exchange_behind_it_does_neither(name: str, relay: RelayProcess) -> None:
    act = acts(relay)[name]
    await stranger(relay, act)
    peak = Peak(relay)
    ended = await asyncio.gather(*(stranger(relay, act) for _ in range(10)))
    assert len(ended) == 10
    assert peak.bytes <= 10 * STRANGER_BYTES
    await wait_until_async(lambda: relay.metric("relay_connections_open") == 0)


# -- after the login


@pytest.fixture
def fresh(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> RelayProcess:
    """A relay of the test's own: memory that the allocator kept after an earlier test would hide what this one adds."""
    return make_relay(sshd, config={"workers": 1, "limits": LIMITS})


@asynccontextmanager
async def several(relay: RelayProcess, count: int) -> AsyncIterator[list[asyncssh.SSHClientConnection]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(alice(relay)) for _ in range(count)]


def unsent(connection: asyncssh.SSHClientConnection) -> int:
    transport = connection._transport
    assert transport is not None
    return transport.get_write_buffer_size()


def ask(connection: asyncssh.SSHClientConnection, number: int) -> None:
    """A request for a channel that is refused."""
    connection.send_packet(MSG_CHANNEL_OPEN, String(b"nothing@example.com"), UInt32(number), UInt32(0), UInt32(32_768))


@pytest.mark.parametrize("way", ["at once", "one by one"])
async def test_requests_whose_answers_are_not_read(way: str, sshd: Sshd, make_relay: Callable[..., RelayProcess], tmp_path: Path) -> None:
    """The relay reads requests only until the answers' buffer is full; once the client reads, each request is answered.

    An answer that is written alone takes up ten times its bytes. The first requests and the first session are not measured: with them
    the worker uses code and memory for the first time.
    """
    fresh = make_relay(sshd, config={"workers": 1, "limits": LIMITS}, env=small_client_buffers(tmp_path))
    answers, count = 0, 20_000  # REQUESTS_BURST: none waits for the rate of requests

    def answered(*arguments: object) -> None:
        nonlocal answers
        answers += 1

    sock = socket.socket()
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):  # the kernel's own buffers would hold requests and answers
        sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
    sock.connect(("127.0.0.1", fresh.port))
    options = {"username": fresh.user, "client_keys": [fresh.key.load()], "known_hosts": None, "agent_path": None, "config": None}
    async with asyncssh.connect(sock=sock, **options) as connection:
        transport = connection._transport
        assert transport is not None
        connection._packet_handlers = {**connection._packet_handlers, MSG_CHANNEL_OPEN_FAILURE: answered}
        for number in range(FIRST):
            ask(connection, number)
        await wait_until_async(lambda: answers == FIRST)
        assert fresh.ssh().run("git-upload-pack 'stub/exit/5'").returncode == 5
        peak = Peak(fresh)
        transport.pause_reading()
        for number in range(FIRST, count):
            ask(connection, number)
            if way == "one by one":
                await asyncio.sleep(0)
        await wait_until_async(stands_still(lambda: unsent(connection)), 60)
        assert unsent(connection) > 0, "the relay does not take them all"
        assert fresh.ssh().run("git-upload-pack 'stub/exit/5'").returncode == 5
        assert peak.bytes <= SESSION_BYTES // 2
        transport.resume_reading()
        await wait_until_async(lambda: answers == count, 60, "each request is answered")


async def test_requests_to_forward_ports_are_refused_however_many(fresh: RelayProcess) -> None:
    async with alice(fresh) as connection:
        peak = Peak(fresh)
        refusals = await asyncio.gather(
            *(connection._make_global_request(b"tcpip-forward", String("127.0.0.1"), bytes(4)) for _ in range(10_000))
        )
        assert {kind for kind, _ in refusals} == {MSG_REQUEST_FAILURE}
        assert peak.bytes <= SESSION_BYTES
        assert (await run(connection, "git-upload-pack 'stub/exit/0'")).exit_status == 0


async def test_host_keys_are_proven_once_a_request(relay: RelayProcess) -> None:
    async with alice(relay) as connection:
        name = b"hostkeys-prove-00@openssh.com"
        key = String(relay.host_key.load().public_data)
        proof, _ = await connection._make_global_request(name, key)
        refusal, _ = await connection._make_global_request(name, key * 2)
        assert proof != MSG_REQUEST_FAILURE and refusal == MSG_REQUEST_FAILURE


async def test_answers_do_not_pile_up_behind_a_key_exchange_that_is_not_finished(fresh: RelayProcess) -> None:
    async with several(fresh, 4) as connections:
        peak = Peak(fresh)
        for connection in connections:
            connection._packet_handlers = {**connection._packet_handlers, MSG_KEXINIT: lambda *arguments: None}
            connection._send_kexinit()
            connection._kex_complete = True  # so that asyncssh's client goes on sending
            for _ in range(5_000):
                connection.send_packet(MSG_GLOBAL_REQUEST, String(b"nothing@example.com"), Boolean(True))
        for connection in connections:
            async with asyncio.timeout(60):
                await connection.wait_closed()
        assert peak.bytes <= len(connections) * SESSION_BYTES


async def test_a_client_that_takes_one_byte_at_once_is_not_served(relay: RelayProcess) -> None:
    async with alice(relay) as connection:
        with pytest.raises(asyncssh.ChannelOpenError, match="the maximum packet size is too small"):
            await connection.create_process("git-upload-pack 'stub/emit/1000000'", encoding=None, max_pktsize=1)


async def test_input_that_comes_before_its_git_host_stays_within_its_window(sshd: Sshd, relay: RelayProcess) -> None:
    """Data beyond the window ends the session; the connection serves on."""
    since = len(relay.audit_lines())
    async with alice(relay) as connection:
        sshd.freeze()
        try:
            process = await connection.create_process("git-receive-pack 'stub/checksum'", encoding=None)
            channel = process.channel
            assert channel._send_window == 64 * 1024
            for _ in range(3):
                channel.send_packet(MSG_CHANNEL_DATA, String(bytes(30_000)))
            async with asyncio.timeout(30):
                await process.wait_closed()
        finally:
            sshd.thaw()
        assert (await run(connection, "git-upload-pack 'stub/exit/5'")).exit_status == 5
    [line] = await asyncio.to_thread(audited, relay, since, service="git-receive-pack")
    assert (line["reason"], line["detail"]) == ("protocol", "30000 bytes of data in a window of 5536")


@pytest.mark.parametrize(
    ("first", "pieces"), [(2 * MIB, 140_000), (2 * MIB + 700_000, 70_000)], ids=["for the git host", "for the channel"]
)
async def test_many_tiny_pieces_that_wait_take_no_more_than_few_large_ones(first: int, pieces: int, fresh: RelayProcess) -> None:
    """For a git host that does not read; kept as an object of its own, a piece of two bytes would take more than forty.

    `first` fills the git host's window: then the relay queues for it up to a mark, and after that the data waits in the channel.
    """
    async with alice(fresh) as connection:
        process = await connection.create_process("git-receive-pack 'stub/hang'", encoding=None)
        channel = process.channel
        process.stdin.write(bytes(first))
        await wait_until_async(lambda: channel._send_window > 350_000 and not channel.get_write_buffer_size())
        await wait_until_async(stands_still(lambda: fresh.metric("relay_bytes_total", direction="in")))
        peak = Peak(fresh)
        for number in range(pieces):
            channel.send_packet(MSG_CHANNEL_DATA, String(b"ab"))
            if not number % 1_000:
                await asyncio.sleep(0)
        await wait_until_async(lambda: unsent(connection) == 0, 60)
        assert fresh.ssh().run("git-upload-pack 'stub/exit/5'").returncode == 5
        assert peak.bytes <= SESSION_BYTES
        process.close()


# -- all together


async def test_a_budget_that_some_have_spent_stops_only_them(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"workers": 1, "limits": {**LIMITS, "buffer_bytes": 65_536}})
    async with several(relay, 6) as connections:
        for connection in connections[:4]:  # these clients read nothing
            stalled = await connection.create_process("git-upload-pack 'stub/emit/50000000'", encoding=None, window=1 << 31)
            connection._transport.pause_reading()  # type: ignore[union-attr]
            assert stalled is not None
        pushing = await connections[4].create_process("git-receive-pack 'stub/hang'", encoding=None)  # this client's git host reads nothing
        pushing.stdin.write(bytes(8 * MIB))
        await wait_until_async(stands_still(lambda: relay.metric("relay_bytes_total")))
        channel, _ = await connections[5].create_session(asyncssh.SSHClientSession, "git-receive-pack 'stub/hang'", encoding=None)
        await asyncio.sleep(0.2)
        assert channel._send_window == 64 * 1024, "no more is promised while all together hold too much"
        channel.close()
        size = 20_000_000
        down = await run(connections[5], f"git-upload-pack 'stub/emit/{size}'")
        assert (down.exit_status, hashlib.sha256(down.stdout).digest()) == (0, hashlib.sha256(stub_bytes(size)).digest())
        up = await run(connections[5], "git-receive-pack 'stub/checksum'", stdin=stub_bytes(5_000_000))
        assert up.stdout.split()[0].decode() == hashlib.sha256(stub_bytes(5_000_000)).hexdigest()
        for connection in connections:
            connection.abort()
    assert psutil.pid_exists(relay.pid)
