"""One connection to a git host: against a real sshd, and against asyncssh for what sshd never does."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncssh
import pytest
from ssh2.error_codes import LIBSSH2_ERROR_EAGAIN

from relay.errors import Lost, NoExit, RelayError, Stalled, Unavailable
from relay.model import Exit
from relay.upstream.hostkeys import parse_pinned
from relay.upstream.libssh2 import SPINS_A_LOOK, Connection, library
from relay.upstream.reading import STDOUT
from tests.e2e.helpers import stands_still
from tests.support.faultproxy import FaultProxy
from tests.support.keys import Key, make_key
from tests.support.machine import free_port
from tests.support.pattern import stub_bytes, stub_sha256, stub_stderr
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async
from tests.upstream.peers import Receiver, login

Dial = Callable[..., Awaitable[Connection]]
MIB = 1 << 20


@pytest.fixture
async def dial(sshd: Sshd) -> AsyncIterator[Dial]:
    """Dials the test sshd, or another port of this machine; closes what it made."""
    made: list[Connection] = []

    async def dial(port: int = 0, keepalive_seconds: float = 15, host: str = "", **changes: Any) -> Connection:
        made.append(await Connection.dial(host or sshd.address, port or sshd.port, login(sshd, **changes), keepalive_seconds))
        return made[-1]

    yield dial
    for connection in made:
        connection.close()
        connection.close()  # idempotent
        assert not connection.usable


async def started(connection: Connection, command: str, *environment: tuple[str, str]) -> Receiver:
    await connection.run(command, list(environment))
    return Receiver(connection)


async def end(receiver: Receiver) -> Exit | RelayError:
    async with asyncio.timeout(20):
        return await receiver.ended


# -- dial ----------------------------------------------------------------------------------------------------------------


async def test_nobody_listens(dial: Dial) -> None:
    port = free_port()
    with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port}: .*Connect") as told:
        await dial(port)
    assert told.value.reason == "dial"
    with pytest.raises(Unavailable, match=rf"^\[::1\]:{port}: "):
        await dial(port, host="::1")


async def test_a_name_is_resolved_or_the_dial_says_that_it_was_not(dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await dial(host="localhost")).usable

    async def unknown(*arguments: Any, **named: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")  # a real question would go to the network

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    with pytest.raises(Unavailable, match=r"git\.invalid:22: name not resolved: .*not known") as told:
        await dial(22, host="git.invalid")
    assert told.value.reason == "dial"


async def test_what_listens_speaks_no_ssh_or_goes(dial: Dial, sshd: Sshd) -> None:
    async def junk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n" * 100)
        writer.close()

    async with await asyncio.start_server(junk, "127.0.0.1", 0) as server, FaultProxy(sshd.address, sshd.port) as proxy:
        proxy.accept("reset")
        for port in (server.sockets[0].getsockname()[1], proxy.port):
            with pytest.raises(Unavailable, match="key exchange failed") as told:
                await dial(port)
            assert told.value.reason == "handshake"


async def test_only_modern_algorithms_are_spoken(dial: Dial, make_sshd: Callable[..., Sshd]) -> None:
    old = make_sshd(config=["KexAlgorithms diffie-hellman-group14-sha256"])
    with pytest.raises(Unavailable, match="key exchange failed"):
        await dial(old.port, host_keys=parse_pinned([old.host_key_line])[0])


async def test_another_host_key_is_refused_with_both_fingerprints(dial: Dial, sshd: Sshd, key: Key) -> None:
    mark = sshd.log_mark()
    with pytest.raises(Unavailable) as told:
        await dial(host_keys=parse_pinned([key.host_line])[0])
    assert told.value.reason == "host_key"
    assert f"offered {sshd.host_key.fingerprint}, pinned {key.fingerprint}" in str(told.value)
    await wait_until_async(lambda: "Connection closed" in sshd.log_text(mark))
    assert "publickey" not in sshd.log_text(mark)  # nothing was said to it


async def test_a_host_without_a_key_of_a_pinned_type_is_not_even_asked(dial: Dial, tmp_path: Any) -> None:
    ecdsa = make_key(tmp_path, "ecdsa", "ecdsa")
    with pytest.raises(Unavailable) as told:
        await dial(host_keys=parse_pinned([ecdsa.host_line])[0])
    assert told.value.reason == "handshake"


@pytest.mark.parametrize("broken", [False, True])
async def test_a_key_that_is_not_accepted(dial: Dial, sshd: Sshd, key: Key, broken: bool) -> None:
    private = b"no key" if broken else key.private.read_bytes()
    with pytest.raises(Unavailable) as told:
        await dial(private_key=private)
    assert told.value.reason == "auth"
    assert b"no key" not in str(told.value).encode()


# -- a command -----------------------------------------------------------------------------------------------------------


async def test_output_of_both_streams_and_the_exit_arrive_whole_command_after_command(dial: Dial, sshd: Sshd) -> None:
    connection = await dial()
    for number, (size, status) in enumerate([(MIB + 1, 0), (300_000, 3), (0, 255)], 1):
        receiver = await started(connection, sshd.stub(f"mixed/{size}/{status}"))
        assert await end(receiver) == Exit(status=status)
        assert receiver.stdout == stub_bytes(size)
        assert receiver.stderr == stub_stderr(size)
        await connection.prepare()
        assert repr(connection) == f"<upstream 127.0.0.1:{sshd.port} ready sessions={number} out=0>"


async def test_a_death_by_signal_is_no_success(dial: Dial, sshd: Sshd) -> None:
    receiver = await started(await dial(), sshd.stub("signal/SEGV/1000"))
    assert await end(receiver) == Exit(signal="SEGV")
    assert receiver.stdout == stub_bytes(1000)


async def test_input_arrives_whole_and_half_closes_after_it(dial: Dial, sshd: Sshd) -> None:
    connection = await dial()
    receiver = await started(connection, sshd.stub("checksum"))
    data = stub_bytes(3 * MIB)
    for start in range(0, len(data), 70_001):
        connection.send(data[start : start + 70_001])
    assert connection.pending == len(data)
    assert f"out={len(data)}>" in repr(connection)
    connection.send_eof()
    connection.send(b"after the end")  # nothing may follow
    assert await end(receiver) == Exit(status=0)
    assert receiver.stdout.decode() == f"{stub_sha256(len(data))} {len(data)}\n"
    assert connection.pending == 0
    assert receiver.accepted > 0


async def test_a_git_host_that_takes_input_slowly_while_it_answers_is_no_wedge(dial: Dial, sshd: Sshd) -> None:
    """On the stock libssh2 nothing can be read while nothing can be written: waiting for input then would be a busy loop."""
    async with FaultProxy(sshd.address, sshd.port) as proxy:
        connection = await dial(proxy.port)
        with socket.socket(fileno=os.dup(connection._fd)) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        receiver = await started(connection, sshd.stub("cat"))
        connection.send(b"first")
        await wait_until_async(lambda: receiver.stdout == b"first")
        proxy.slow(400_000, "up")
        data = stub_bytes(150_000)
        connection.send(data)
        connection.send_eof()
        assert await end(receiver) == Exit(status=0)
        assert receiver.stdout == b"first" + data


async def test_both_directions_at_once(dial: Dial, sshd: Sshd) -> None:
    connection = await dial()
    receiver = await started(connection, sshd.stub("cat"))
    data = stub_bytes(5 * MIB)
    connection.send(data)
    connection.send_eof()
    assert await end(receiver) == Exit(status=0)
    assert receiver.stdout == data


async def test_small_pieces_are_joined(dial: Dial, sshd: Sshd) -> None:
    connection = await dial()
    receiver = await started(connection, sshd.stub("cat"))
    for number in range(1000):
        connection.send(b"%04d" % number)
    connection.send_eof()
    assert await end(receiver) == Exit(status=0)
    assert receiver.stdout == b"".join(b"%04d" % number for number in range(1000))
    assert receiver.accepted == 1


async def test_paused_it_is_not_read_and_loses_nothing(dial: Dial, sshd: Sshd) -> None:
    connection = await dial()
    receiver = await started(connection, sshd.stub(f"emit/{8 * MIB}"))
    await wait_until_async(lambda: len(receiver.stdout) > 0)
    connection.pause()
    seen = len(receiver.stdout)
    for _ in range(30):
        await asyncio.sleep(0.01)
    assert len(receiver.stdout) == seen < 8 * MIB
    connection.resume()
    assert await end(receiver) == Exit(status=0)
    assert receiver.stdout == stub_bytes(8 * MIB)


async def test_an_output_that_ends_before_the_command_is_told(dial: Dial, sshd: Sshd) -> None:
    receiver = await started(await dial(), sshd.stub("eof/0.3/9"))
    await wait_until_async(lambda: receiver.eof)
    assert not receiver.ended.done()
    assert await end(receiver) == Exit(status=9)
    assert receiver.stdout == b"eof\n"


async def test_the_environment_is_offered_and_what_is_refused_is_not_offered_again(dial: Dial, make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd(config=["LogLevel DEBUG2"])
    known = {"user": sshd.user, "private_key": sshd.key.private.read_bytes(), "host_keys": parse_pinned([sshd.host_key_line])[0]}
    connection = await dial(sshd.port, **known)
    for protocol in (b"version=1", b"version=2"):
        given = ("LANG", "C"), ("GIT_PROTOCOL", protocol.decode()), ("RELAY_IDENTITY", "alice")
        receiver = await started(connection, sshd.stub("env"), *given)
        assert await end(receiver) == Exit(status=0)
        assert receiver.stdout == b"GIT_PROTOCOL=" + protocol + b"\nRELAY_IDENTITY=alice\nRELAY_KEY=(unset)\n"
        await connection.prepare()
    refusals = 2 if library().sets_env_unasked else 1  # where nothing is waited for there is nothing to save
    assert sshd.log_text().count("Ignoring env request LANG") == refusals


# -- how it breaks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["cut", "reset"])
async def test_what_came_before_the_transport_broke_is_delivered(dial: Dial, sshd: Sshd, action: Any) -> None:
    async with FaultProxy(sshd.address, sshd.port) as proxy:
        connection = await dial(proxy.port)
        proxy.at(proxy.bytes_down + MIB, action, "down")
        receiver = await started(connection, sshd.stub(f"emit/{4 * MIB}"))
        how = await end(receiver)
        assert isinstance(how, Lost), how
        assert MIB - 64 * 1024 < len(receiver.stdout) < MIB
        assert receiver.stdout == stub_bytes(len(receiver.stdout))
        assert not connection.usable


async def test_an_end_that_came_while_paused_is_the_end_though_the_connection_is_gone(dial: Dial, sshd: Sshd) -> None:
    async with FaultProxy(sshd.address, sshd.port) as proxy:
        connection = await dial(proxy.port)
        receiver = await started(connection, sshd.stub("emit/100000/5"))
        connection.pause()
        await wait_until_async(stands_still(lambda: (proxy.bytes_down, sshd.signal_commands(0))))
        assert not receiver.ended.done()
        proxy.cut()
        await wait_until_async(lambda: not proxy.links)
        connection.resume()
        assert await end(receiver) == Exit(status=5)
        assert receiver.stdout == stub_bytes(100_000)


async def test_a_write_that_fails_is_a_lost_connection(dial: Dial, sshd: Sshd) -> None:
    connection = await dial()
    receiver = await started(connection, sshd.stub("hang"))
    connection.pause()  # it is the write that must notice
    connection.send(stub_bytes(8 * MIB))
    await wait_until_async(lambda: connection.pending < 8 * MIB)
    sshd.signal_sessions(signal.SIGKILL)
    connection.resume()
    assert isinstance(await end(receiver), Lost)


async def test_a_git_host_that_gives_no_sign_of_life_is_lost(dial: Dial, sshd: Sshd) -> None:
    connection = await dial(keepalive_seconds=0.2)
    receiver = await started(connection, sshd.stub("hang"))
    sshd.freeze()
    try:
        how = await end(receiver)
    finally:
        sshd.thaw()
    assert isinstance(how, Lost)
    assert "no sign of life" in str(how)


async def test_a_wedged_session_is_ended_though_its_socket_is_ready(dial: Dial, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """What libssh2 does to a rekey that meets a packet sent in part: it reads nothing any more, and says nothing."""
    connection = await dial()
    receiver = await started(connection, sshd.stub("slowstart/0.1/100000"))
    reads = 0

    class Deaf:
        def read(self, pointer: int, stream: int) -> tuple[int, memoryview]:
            nonlocal reads
            reads += 1
            return LIBSSH2_ERROR_EAGAIN, memoryview(b"")

        def queued(self, pointer: int) -> bool:
            return False

    monkeypatch.setattr(connection, "_reader", Deaf())
    how = await end(receiver)
    assert isinstance(how, Stalled), how
    assert reads >= 2 * SPINS_A_LOOK  # a busy moment is no wedge


def readable(connection: Connection) -> bool:
    return bool(select.select([connection._fd], [], [], 0)[0])


async def test_output_that_is_there_before_the_command_is_attached_is_kept(
    dial: Dial, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exec may be accepted without a wait; then the idle connection's reader must not be the one that hears the first output."""
    connection = await dial()

    async def at_once(operation: Callable[[], Any]) -> Any:
        while (result := operation()) == LIBSSH2_ERROR_EAGAIN:
            time.sleep(0.001)  # not the loop's: nothing else runs
        return result

    monkeypatch.setattr(connection, "_complete", at_once)
    await connection.run(sshd.stub("emit/100000/7"), [])
    await wait_until_async(lambda: readable(connection))
    for _ in range(10):
        await asyncio.sleep(0)
    receiver = Receiver(connection)
    assert await end(receiver) == Exit(status=7)
    assert receiver.stdout == stub_bytes(100_000)


async def test_output_that_comes_with_the_read_of_the_other_stream_is_not_left_lying(
    dial: Dial, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any read takes all from the socket, which then has no more news of what it took for the other stream."""
    connection = await dial()
    await connection.run(sshd.stub("half/10"), [])  # ten bytes, then it waits for its stdin to end
    await wait_until_async(lambda: readable(connection))
    read, late = connection._reader.read, [True]

    def comes_between(pointer: int, stream: int) -> tuple[int, memoryview]:
        if stream == STDOUT and late:
            late.clear()
            return LIBSSH2_ERROR_EAGAIN, memoryview(b"")
        return read(pointer, stream)

    monkeypatch.setattr(connection._reader, "read", comes_between)
    receiver = Receiver(connection)
    await wait_until_async(lambda: receiver.stdout == stub_bytes(10))
    connection.send_eof()
    assert await end(receiver) == Exit(status=0)


async def test_an_idle_connection_tells_once_that_the_far_side_left(dial: Dial, sshd: Sshd) -> None:
    told: list[Connection] = []
    lost, closed = await dial(), await dial()
    lost.on_lost(told.append)
    closed.on_lost(told.append)
    closed.close()
    sshd.signal_sessions(signal.SIGKILL)
    await wait_until_async(lambda: told == [lost])
    assert not lost.usable


# -- what sshd never does ------------------------------------------------------------------------------------------------


class Strange(asyncssh.SSHServerSession[bytes]):
    """Does to a channel what the command says, and notes what it is told."""

    def __init__(self, told: list[str]) -> None:
        self._told = told
        self._command = ""

    def connection_made(self, chan: Any) -> None:
        self._chan = chan

    def exec_requested(self, command: str) -> bool:
        self._command = command
        return command != "refuse"

    def session_started(self) -> None:
        if self._command == "no exit":
            self._chan.write(b"partial")
            self._chan.close()
        elif self._command.startswith("status "):
            self._chan._send_request(b"exit-status", int(self._command.split()[1]).to_bytes(4, "big"))
            self._chan.close()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._told.append(f"{len(data)} bytes")

    def eof_received(self) -> bool:
        self._told.append("eof")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._told.append("lost" if exc else "closed")


@pytest.fixture
async def strange(sshd: Sshd) -> AsyncIterator[tuple[int, list[str]]]:
    """The port of a host with the test sshd's keys, and what its sessions were told."""
    told: list[str] = []

    class Server(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return True

        def public_key_auth_supported(self) -> bool:
            return True

        def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
            return True

        def session_requested(self) -> Strange:
            return Strange(told)

    acceptor = await asyncssh.create_server(
        Server, "127.0.0.1", 0, server_host_keys=[sshd.host_key.load()], encoding=None, line_editor=False, gss_host=None, config=None
    )
    yield acceptor.get_port(), told
    acceptor.close()
    await acceptor.wait_closed()


async def test_a_channel_that_closes_without_a_status_is_no_success(dial: Dial, strange: tuple[int, list[str]]) -> None:
    connection = await dial(strange[0])
    receiver = await started(connection, "no exit")
    how = await end(receiver)
    assert isinstance(how, NoExit)
    assert receiver.stdout == b"partial"
    await connection.prepare()  # it ended cleanly all the same


@pytest.mark.parametrize("status", [0, 1, 256, (1 << 31) - 1, 1 << 31, (1 << 32) - 37])
async def test_every_status_is_told_as_it_came(dial: Dial, strange: tuple[int, list[str]], status: int) -> None:
    assert await end(await started(await dial(strange[0]), f"status {status}")) == Exit(status=status)


async def test_a_refused_command(dial: Dial, strange: tuple[int, list[str]]) -> None:
    with pytest.raises(Unavailable, match="the command was not accepted") as told:
        await started(await dial(strange[0]), "refuse")
    assert told.value.reason == "exec"


@pytest.mark.parametrize("queued", [1000, 8 * MIB])
async def test_an_aborted_command_never_sees_an_eof(dial: Dial, strange: tuple[int, list[str]], queued: int) -> None:
    """Else what was read of a push so far would look complete."""
    port, told = strange
    connection = await dial(port)
    receiver = await started(connection, "watch")
    connection.send(bytes(queued))
    await wait_until_async(lambda: any("bytes" in one for one in told))
    connection.abort()
    await wait_until_async(lambda: "lost" in told or "closed" in told)
    assert "eof" not in told
    assert not receiver.ended.done()  # who aborts knows
    assert connection.pending == 0


async def test_closing_wakes_who_waits_for_the_git_host(dial: Dial, sshd: Sshd) -> None:
    async with FaultProxy(sshd.address, sshd.port) as proxy:
        connection = await dial(proxy.port)
        proxy.stall("down")
        waiting = asyncio.create_task(connection.run(sshd.stub("exit/0"), []))
        await wait_until_async(lambda: connection.sessions == 1 and connection._waiter is not None)
        connection.close()
        with pytest.raises(Unavailable, match="closed"):
            await waiting
