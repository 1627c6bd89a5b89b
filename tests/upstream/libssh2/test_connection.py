"""A connection that serves: login, commands one after another, the environment, and an end while it is idle."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from relay.errors import Unavailable
from relay.model import Exit
from relay.upstream.hostkeys import parse_pinned
from relay.upstream.libssh2 import Connection, loaded_library
from relay.upstream.libssh2.binding import LIBSSH2_ERROR_EAGAIN, LIBSSH2_SESSION_BLOCK_OUTBOUND
from tests.support.faultproxy import FaultProxy
from tests.support.keys import Key
from tests.support.pattern import stub_bytes, stub_stderr
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async
from tests.upstream.peers import MIB, Dial, Receiver, end, readable, started


@pytest.mark.parametrize("broken", [False, True])
async def test_a_key_that_is_not_accepted(dial: Dial, sshd: Sshd, key: Key, broken: bool) -> None:
    private = b"no key" if broken else key.private.read_bytes()
    with pytest.raises(Unavailable) as told:
        await dial(private_key=private)
    assert told.value.reason == "auth"
    assert b"no key" not in str(told.value).encode()
    assert ("cannot read the private key" in str(told.value)) is broken


@pytest.mark.parametrize("action", ["cut", "reset"])
async def test_a_connection_that_ends_in_authentication_is_no_refusal(dial: Dial, sshd: Sshd, action: Any) -> None:
    async with FaultProxy(sshd.address, sshd.port) as proxy:
        await dial(proxy.port)
        whole, reasons = proxy.bytes_down, []
        for at in range(whole // 2, whole, 50):
            proxy.at(at, action, "down", scope="new")
            with pytest.raises(Unavailable) as told:
                await dial(proxy.port)
            reasons.append((told.value.reason, "in authentication" in str(told.value)))
        assert ("handshake", True) in reasons
        assert {reason for reason, _ in reasons} == {"handshake", "channel"}


async def test_output_of_both_streams_and_the_exit_arrive_whole_command_after_command(dial: Dial, sshd: Sshd) -> None:
    connection = await dial()
    for number, (size, status) in enumerate([(MIB + 1, 0), (300_000, 3), (0, 255)], 1):
        receiver = await started(connection, sshd.stub(f"mixed/{size}/{status}"))
        assert await end(receiver) == Exit(status=status)
        assert receiver.stdout == stub_bytes(size)
        assert receiver.stderr == stub_stderr(size)
        await connection.prepare()
        assert repr(connection) == f"<upstream 127.0.0.1:{sshd.port} ready sessions={number} out=0>"


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
    refusals = 2 if loaded_library().sets_env_unasked else 1  # without waiting for the answer, no refusal is learned
    assert sshd.log_text().count("Ignoring env request LANG") == refusals


async def test_output_that_is_there_before_the_command_is_attached_is_kept(dial: Dial, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exec may succeed without a wait; then the idle connection's reader must not consume the first output."""
    connection = await dial()

    async def at_once(operation: Callable[[], Any]) -> Any:
        while (result := operation()) == LIBSSH2_ERROR_EAGAIN:
            connection._hold(False)
            time.sleep(0.001)  # blocks the loop, so that nothing else runs
        return result

    monkeypatch.setattr(connection, "_complete", at_once)
    await connection.run(sshd.stub("emit/100000/7"), [])
    await wait_until_async(lambda: readable(connection))
    for _ in range(10):
        await asyncio.sleep(0)
    receiver = Receiver(connection)
    assert await end(receiver) == Exit(status=7)
    assert receiver.stdout == stub_bytes(100_000)


def segments(connection: Connection) -> int:
    """Segments with data that the connection's socket has sent (tcpi_data_segs_out of linux/tcp.h)."""
    with socket.socket(fileno=os.dup(connection._fd)) as same:
        (count,) = struct.unpack_from("I", same.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160), 156)
    return int(count)


def needs_hold() -> None:
    if loaded_library()._hold is None:
        pytest.skip("only the hardened libssh2 holds packets back")


async def test_variables_and_exec_leave_together_and_so_do_a_close_and_the_next_open(dial: Dial, sshd: Sshd) -> None:
    needs_hold()
    connection = await dial()
    for _ in range(2):
        before = segments(connection)
        await connection.run(sshd.stub("exit/3"), [("GIT_PROTOCOL", "version=2"), ("RELAY_IDENTITY", "x" * 300), ("RELAY_KEY", "y" * 90)])
        assert segments(connection) == before + 1
        assert await Receiver(connection).ended == Exit(status=3)
        before = segments(connection)
        await connection.prepare()
        assert segments(connection) == before + 1


async def test_variables_that_are_longer_than_what_can_be_held_back(dial: Dial, sshd: Sshd) -> None:
    connection = await dial()
    receiver = await started(connection, sshd.stub("emit/1000/0"), *((f"RELAY_{number}", "x" * 900) for number in range(5)))
    assert await receiver.ended == Exit(status=0)
    assert receiver.stdout == stub_bytes(1000)


@pytest.mark.parametrize("reads", [False, True])
async def test_packets_that_were_held_back_are_sent_when_the_socket_takes_them(dial: Dial, sshd: Sshd, reads: bool) -> None:
    """The socket is full when they are released; the next call that reads or writes sends them, whole and in order (AES-GCM would tell)."""
    needs_hold()
    library, connection = loaded_library(), await dial()
    connection._stop_watching()
    tcp = os.dup(connection._fd)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with ours, theirs:
        ours.setblocking(False)
        filler, taken = 0, b""
        with suppress(BlockingIOError):
            while True:
                filler += ours.send(bytes(4096))
        connection._hold(True)
        for number in range(3):
            assert library.setenv(connection._pointer, b"RELAY_%d" % number, b"x" * 500) == 0
        os.dup2(ours.fileno(), connection._fd)
        connection._hold(False)
        assert connection._session.block_directions() & LIBSSH2_SESSION_BLOCK_OUTBOUND
        while select.select([theirs], [], [], 0)[0] or connection._session.block_directions() & LIBSSH2_SESSION_BLOCK_OUTBOUND:
            if select.select([theirs], [], [], 0)[0]:
                taken += theirs.recv(1 << 20)
            elif reads:
                assert connection._reader.read(connection._pointer, 0)[0] == LIBSSH2_ERROR_EAGAIN
            elif library.hold(connection._session_pointer, False) == 0:
                break
        while len(taken) < filler + 3 * 500:
            taken += theirs.recv(1 << 20)
        os.dup2(tcp, connection._fd)
        os.write(connection._fd, taken[filler:])
    os.close(tcp)
    receiver = await started(connection, sshd.stub("exit/5"))
    assert await receiver.ended == Exit(status=5)


async def test_an_idle_connection_reports_once_that_the_git_host_closed_it(dial: Dial, sshd: Sshd) -> None:
    told: list[Connection] = []
    lost, closed = await dial(), await dial()
    lost.on_lost(told.append)
    closed.on_lost(told.append)
    closed.close()
    sshd.signal_sessions(signal.SIGKILL)
    await wait_until_async(lambda: told == [lost])
    assert not lost.usable


async def test_a_closed_connection_that_is_asked_says_so(dial: Dial) -> None:
    connection = await dial()
    connection.close()
    with pytest.raises(Unavailable, match="closed an idle connection"):
        await connection.alive()


async def test_a_connection_with_a_command_is_not_asked(dial: Dial, sshd: Sshd) -> None:
    """A keepalive between the two halves of a packet that the command sends would corrupt it."""
    connection = await dial()
    await started(connection, sshd.stub("hang"))
    before = connection._asked
    await connection.alive()
    assert connection._asked == before
    connection.close()


async def test_a_refused_command(dial: Dial, strange: tuple[int, list[str]]) -> None:
    with pytest.raises(Unavailable, match="the command was not accepted") as told:
        await started(await dial(strange[0]), "refuse")
    assert told.value.reason == "exec"
