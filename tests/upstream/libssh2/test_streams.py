"""A running command's streams: against a real sshd, and against asyncssh for what sshd never does."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import socket
from collections.abc import Callable
from typing import Any

import pytest

from relay.errors import Lost, NoExit, Stalled
from relay.gathering import GATHER_SECONDS, Pace
from relay.model import Exit
from relay.upstream.libssh2 import Connection, streams
from relay.upstream.libssh2.binding import LIBSSH2_ERROR_EAGAIN
from relay.upstream.libssh2.channel_io import STDOUT
from relay.upstream.libssh2.streams import AHEAD_BYTES, SPINS_A_LOOK, WINDOW_BYTES, WRITE_BYTES, Streams
from tests.e2e.helpers import stands_still
from tests.support.faultproxy import FaultProxy
from tests.support.pattern import stub_bytes, stub_sha256
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async
from tests.upstream.libssh2.conftest import Late
from tests.upstream.peers import MIB, Dial, Receiver, end, readable, started


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
    assert connection.pending >= len(data) - WINDOW_BYTES  # sshd's window is as large; it cannot open it while the loop does not run
    assert f"out={connection.pending}>" in repr(connection)
    connection.send_eof()
    connection.send(b"after the end")  # no data may follow EOF
    assert await end(receiver) == Exit(status=0)
    assert receiver.stdout.decode() == f"{stub_sha256(len(data))} {len(data)}\n"
    assert connection.pending == 0
    assert receiver.accepted > 0


async def test_bulk_is_written_as_it_comes(dial: Dial, sshd: Sshd) -> None:
    """A large piece does not wait for the loop, a small one does, and so does what exceeds AHEAD_BYTES in one iteration."""
    connection = await dial()
    receiver = await started(connection, sshd.stub("checksum"))
    await asyncio.sleep(0)
    pieces = [stub_bytes(size) for size in (WRITE_BYTES - 1, WRITE_BYTES, AHEAD_BYTES - WRITE_BYTES, WRITE_BYTES)]
    pending = []
    for piece in pieces:
        connection.send(piece)
        pending.append(connection.pending)
    assert pending[0] == WRITE_BYTES - 1
    assert pending[1] == 0, "and what was queued before it went first"
    assert pending[3] >= WRITE_BYTES
    connection.send_eof()
    assert await end(receiver) == Exit(status=0)
    assert receiver.stdout.decode() == f"{hashlib.sha256(b''.join(pieces)).hexdigest()} {sum(map(len, pieces))}\n"


async def test_bulk_that_is_sent_for_an_answer_waits_for_the_loop(dial: Dial, sshd: Sshd) -> None:
    """A peer may send from within `upstream_data`: libssh2 is in the middle of a read then."""
    connection = await dial()
    data = stub_bytes(3 * WRITE_BYTES)
    pending: list[int] = []

    class Answering(Receiver):
        def upstream_data(self, data: memoryview) -> None:
            super().upstream_data(data)
            if len(self.stdout) == 1:
                connection.send(answer)
                pending.append(connection.pending)
                connection.send_eof()

    answer = data
    await connection.run(sshd.stub("cat"), [])
    receiver = Answering(connection)
    connection.send(b"?")
    assert await end(receiver) == Exit(status=0)
    assert pending == [len(data)]
    assert receiver.stdout == b"?" + data


async def test_a_git_host_that_takes_input_slowly_while_it_answers_is_no_wedge(dial: Dial, sshd: Sshd) -> None:
    """The stock libssh2 reads nothing while it cannot write: waiting for input would then be a busy loop."""
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


MUCH = 16 * MIB  # many windows of it, so that the socket is waited for many times


@pytest.fixture
def gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is treated as of a git host that is slower than the relay, however busy the machine is."""
    monkeypatch.setattr(Pace, "is_slow", lambda self, now, moved: True)
    monkeypatch.setattr(streams, "GATHER_LESS_BYTES", 1 << 40)
    monkeypatch.setattr(streams, "READS_A_WAKE", 1 << 40)


@pytest.fixture
def gathers_for_ever(gathers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What gathers stays in the socket, so that a test sees it there."""
    monkeypatch.setattr(streams, "GATHER_SECONDS", 3600)


async def gathering(connection: Connection) -> None:
    await wait_until_async(lambda: connection._gathering is not None, message="output gathers in the socket")


async def test_bulk_that_gathers_arrives_whole(dial: Dial, sshd: Sshd, gathers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    times = 0
    gather = Streams._gather

    def counted(self: Streams) -> bool:
        nonlocal times
        gathers = gather(self)
        times += gathers
        return gathers

    monkeypatch.setattr(Streams, "_gather", counted)
    connection = await dial()
    receiver = await started(connection, sshd.stub(f"half/{MUCH}"))
    await wait_until_async(lambda: len(receiver.stdout) == MUCH and times > 0)
    connection.send_eof()
    assert await end(receiver) == Exit(status=0)
    assert receiver.stdout == stub_bytes(MUCH)


async def test_output_gathers_only_after_the_first_mebibyte(dial: Dial, sshd: Sshd, gathers_for_ever: None) -> None:
    connection = await dial()
    receiver = await started(connection, sshd.stub(f"emit/{MIB - 1}"))
    assert await end(receiver) == Exit(status=0)
    connection = await dial()
    receiver = await started(connection, sshd.stub(f"half/{MUCH}"))
    await gathering(connection)
    assert len(receiver.stdout) >= MIB
    connection.close()
    assert connection._gathering is None


async def test_what_the_client_sends_ends_the_gathering(dial: Dial, sshd: Sshd, gathers_for_ever: None) -> None:
    """What comes then is an answer: it is passed on at once, until there is a mebibyte of it."""
    connection = await dial()
    receiver = await started(connection, sshd.stub("cat"))
    connection.send(b"first")
    await wait_until_async(lambda: receiver.stdout == b"first")
    connection._gather()
    assert connection._gathering is not None
    connection.send(b" second")
    await wait_until_async(lambda: receiver.stdout == b"first second")
    connection.send(b" third")
    await wait_until_async(lambda: receiver.stdout == b"first second third")
    connection.send_eof()
    assert await end(receiver) == Exit(status=0)


async def test_a_gathering_ends_with_its_time(dial: Dial, sshd: Sshd, gathers: None) -> None:
    """Also where nothing more comes: the socket is listened to again."""
    connection = await dial()
    receiver = await started(connection, sshd.stub(f"half/{MUCH}"))
    await wait_until_async(lambda: len(receiver.stdout) == MUCH and connection._gathering is None and connection._hears_input)
    connection.send_eof()
    assert await end(receiver) == Exit(status=0)
    assert receiver.stdout == stub_bytes(MUCH)


async def test_a_host_that_goes_away_while_output_gathers_is_lost_after_its_output(dial: Dial, sshd: Sshd, gathers_for_ever: None) -> None:
    async with FaultProxy(sshd.address, sshd.port) as proxy:
        connection = await dial(proxy.port)
        receiver = await started(connection, sshd.stub(f"half/{MUCH}"))
        await gathering(connection)
        proxy.cut()

        def ended_after_more() -> bool:
            connection._take_in()  # as the end of its time does
            return receiver.ended.done()

        await wait_until_async(ended_after_more, message="the loss is told")
        assert isinstance(await end(receiver), Lost)
    assert len(receiver.stdout) >= MIB and stub_bytes(MUCH).startswith(bytes(receiver.stdout))


async def test_a_fast_flow_does_not_gather(dial: Dial, sshd: Sshd, gathers_for_ever: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "is_slow", lambda self, now, moved: False)
    connection = await dial()
    receiver = await started(connection, sshd.stub(f"emit/{MUCH}"))
    assert await end(receiver) == Exit(status=0)
    assert receiver.stdout == stub_bytes(MUCH)


async def test_output_gathers_while_the_client_is_behind(dial: Dial, sshd: Sshd, gathers_for_ever: None) -> None:
    """Paused, the connection is read only so that the git host's requests are answered; `resume` reads at once."""
    connection = await dial()
    receiver = await started(connection, sshd.stub(f"emit/{MUCH}"))
    connection._unasked = MIB
    connection.pause()
    await gathering(connection)
    seen = len(receiver.stdout)
    connection.resume()
    await wait_until_async(lambda: len(receiver.stdout) > seen)
    connection.close()


BEHIND = 8 * MIB


async def behind(dial: Dial, sshd: Sshd) -> tuple[Connection, Receiver]:
    """The git host's command is stopped and has not taken its input: all of the window is used up, and more waits."""
    connection = await dial()
    receiver = await started(connection, sshd.stub("checksum"))
    await wait_until_async(lambda: sshd.signal_commands(signal.SIGSTOP) == 1)
    connection.send(stub_bytes(BEHIND))
    connection.send_eof()
    await wait_until_async(lambda: connection._window_shut and connection._owner is None, message="the window is used up")
    return connection, receiver


def is_right(receiver: Receiver) -> bool:
    return receiver.stdout.decode() == f"{stub_sha256(BEHIND)} {BEHIND}\n"


async def test_window_adjusts_gather_while_the_git_host_is_behind(dial: Dial, sshd: Sshd, gathers_for_ever: None) -> None:
    connection, receiver = await behind(dial, sshd)
    assert BEHIND - MIB < connection.untaken <= BEHIND, "but what is in the command's pipe"

    def ended_after_more() -> bool:
        connection._take_in()  # as the end of its time does
        return receiver.ended.done()

    sshd.signal_commands(signal.SIGCONT)
    await gathering(connection)
    assert connection.pending > 0
    await wait_until_async(ended_after_more, message="the command has all of its input")
    assert await end(receiver) == Exit(status=0)
    assert is_right(receiver)


async def test_a_git_host_that_takes_nothing_is_not_asked_again_and_again(
    dial: Dial, sshd: Sshd, gathers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As during a hook that runs for minutes: a look at the socket follows what came from it, or one gathering after that."""
    connection, receiver = await behind(dial, sshd)
    await wait_until_async(stands_still(lambda: connection.untaken))
    calls: list[str] = []

    def count(name: str) -> None:
        real = getattr(Streams, name)

        def counted(self: Streams) -> None:
            calls.append(name)
            real(self)

        monkeypatch.setattr(Streams, name, counted)

    count("_on_readable")
    count("_take_in")
    for _ in range(50):
        await asyncio.sleep(GATHER_SECONDS)
    assert calls.count("_take_in") <= 2 * calls.count("_on_readable") + 1
    sshd.signal_commands(signal.SIGCONT)
    assert await end(receiver) == Exit(status=0)
    assert is_right(receiver)


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


# -- broken connections --------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("status", [0, 5, None])
async def test_all_that_came_is_delivered_though_it_is_an_eof_that_finds_the_host_gone(dial: Dial, sshd: Sshd, status: int | None) -> None:
    """After a reset the socket accepts no writes, but its input can still be read; the exit is a part of that."""
    size = 100_000
    async with FaultProxy(sshd.address, sshd.port) as proxy:
        connection = await dial(proxy.port)
        before = proxy.bytes_down
        receiver = await started(connection, sshd.stub(f"half/{size}" if status is None else f"emit/{size}/{status}"))
        connection.pause()
        await wait_until_async(lambda: proxy.bytes_down > before + size and not proxy.in_flight)
        await wait_until_async(stands_still(lambda: (proxy.bytes_down, proxy.in_flight, sshd.signal_commands(0))))
        proxy.reset()
        await wait_until_async(lambda: not proxy.links)
        connection.send_eof()
        how = await end(receiver)
        assert isinstance(how, Lost) if status is None else how == Exit(status=status)
        assert receiver.stdout == stub_bytes(size)


async def test_a_write_that_fails_is_a_lost_connection(dial: Dial, sshd: Sshd) -> None:
    connection = await dial()
    receiver = await started(connection, sshd.stub("hang"))
    connection.pause()  # so that the write notices it, not a read
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
    """As libssh2 does when a rekey meets a partly sent packet: it reads nothing any more, and returns EAGAIN for ever."""
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
    assert reads >= 2 * SPINS_A_LOOK  # a busy moment does not count as wedged


async def test_output_received_by_the_read_of_the_other_stream_is_delivered(
    dial: Dial, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read of one stream reads the whole socket, so no readable event follows for the other stream's bytes."""
    connection = await dial()
    await connection.run(sshd.stub("half/10"), [])  # ten bytes, then the command waits for EOF on stdin
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


async def test_input_continues_when_a_read_consumed_the_window_adjust(
    dial: Dial, late: tuple[int, Late], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The WINDOW_ADJUST arrives after the write found the window closed: a read consumes it, and no readable event follows."""
    port, host = late
    connection = await dial(port, keepalive_seconds=3600)
    receiver = await started(connection, "late")
    size = 3 * MIB  # the window is 2
    connection.send(bytes(size))
    await wait_until_async(lambda: host.full)
    assert connection.pending == MIB
    read, shut = connection._reader.read, [True]

    def comes_between(pointer: int, stream: int) -> tuple[int, memoryview]:
        if shut:
            shut.clear()
            assert connection._window_shut
            host.take()
        return read(pointer, stream)

    monkeypatch.setattr(connection._reader, "read", comes_between)
    host.say(b"wakes it")
    await wait_until_async(lambda: host.received == size)
    assert not shut and connection.pending == 0
    assert receiver.stdout == b"wakes it"


async def test_a_channel_that_closes_without_a_status_is_no_success(dial: Dial, strange: tuple[int, list[str]]) -> None:
    connection = await dial(strange[0])
    receiver = await started(connection, "no exit")
    how = await end(receiver)
    assert isinstance(how, NoExit)
    assert receiver.stdout == b"partial"
    await connection.prepare()  # the connection ended cleanly all the same


@pytest.mark.parametrize("status", [0, 1, 256, (1 << 31) - 1, 1 << 31, (1 << 32) - 37])
async def test_every_exit_status_is_passed_on(dial: Dial, strange: tuple[int, list[str]], status: int) -> None:
    assert await end(await started(await dial(strange[0]), f"status {status}")) == Exit(status=status)


@pytest.mark.parametrize("queued", [1000, 8 * MIB])
async def test_an_aborted_command_never_sees_an_eof(dial: Dial, strange: tuple[int, list[str]], queued: int) -> None:
    """Else the git host would take the part of a push that it has read for complete."""
    port, told = strange
    connection = await dial(port)
    receiver = await started(connection, "watch")
    connection.send(bytes(queued))
    await wait_until_async(lambda: any("bytes" in one for one in told))
    connection.abort()
    await wait_until_async(lambda: "lost" in told or "closed" in told)
    assert "eof" not in told
    assert not receiver.ended.done()  # `abort` reports no end to the peer
    assert connection.pending == 0


# -- a client that does not read stops output, not the transport (RFC 4254 section 5.2) ----------------------------------

ALIVE = ["ClientAliveInterval 1", "ClientAliveCountMax 2", "LogLevel DEBUG1"]
KEEPALIVES = 5  # more than ClientAliveCountMax: else sshd would have disconnected


def keepalives(sshd: Sshd, since: int) -> int:
    """How many of sshd's keepalives the relay has answered."""
    return len(re.findall(r"Got \d+/\d+ for keepalive", sshd.log_text(since)))


@pytest.mark.parametrize(
    ("command", "stream", "size", "status"),
    [
        (f"emit/{8 * MIB}/3", "stdout", 8 * MIB, 3),  # more than the window
        (f"stderr/{8 * MIB}/3", "stderr", 8 * MIB, 3),
        (f"emit/{MIB}/3", "stdout", MIB, 3),  # all of it, and the channel's end, fits into the window
        ("emit/1000/3", "stdout", 1000, 3),
    ],
    ids=["more than the window", "stderr", "with its end", "a little"],
)
async def test_paused_it_answers_the_git_hosts_keepalives(
    dial: Dial, make_sshd: Callable[..., Sshd], command: str, stream: str, size: int, status: int
) -> None:
    sshd = make_sshd(config=ALIVE)
    connection = await dial(to=sshd)
    mark = sshd.log_mark()
    receiver = await started(connection, sshd.stub(command))
    connection.pause()
    await wait_until_async(lambda: keepalives(sshd, mark) >= KEEPALIVES or receiver.ended.done(), message="keepalives are answered")
    assert not receiver.ended.done() and not receiver.stdout and not receiver.stderr, "nothing is delivered to a client that is paused"
    connection.resume()
    assert await end(receiver) == Exit(status=status)
    assert getattr(receiver, stream).endswith(stub_bytes(size)), "on stderr sshd's own debug lines come first"


async def test_paused_it_holds_no_more_than_a_window(dial: Dial, make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd(config=ALIVE)
    connection = await dial(to=sshd)
    mark = sshd.log_mark()
    receiver = await started(connection, sshd.stub(f"emit/{16 * MIB}"))
    connection.pause()
    await wait_until_async(lambda: keepalives(sshd, mark) >= KEEPALIVES)
    assert MIB < connection.unread <= WINDOW_BYTES
    connection.resume()
    assert await end(receiver) == Exit(status=0)
    assert receiver.stdout == stub_bytes(16 * MIB)
    assert connection.unread == 0


async def test_paused_it_receives_nothing_for_a_peer_without_room_until_it_is_told(dial: Dial, sshd: Sshd) -> None:
    connection = await dial()
    receiver = await started(connection, sshd.stub(f"emit/{8 * MIB}"))
    receiver.full = True
    connection.pause()
    await wait_until_async(lambda: receiver.most_unread > 0 and readable(connection), message="it waits in the socket")
    assert connection.unread == 0
    receiver.full = False
    connection.receive_again()
    await wait_until_async(lambda: connection.unread > MIB)
    connection.resume()
    assert await end(receiver) == Exit(status=0)
    assert receiver.stdout == stub_bytes(8 * MIB)


async def test_paused_it_exchanges_keys_while_the_client_sends(dial: Dial, make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd(config=["RekeyLimit 1M", *ALIVE])
    connection = await dial(to=sshd)
    mark = sshd.log_mark()
    receiver = await started(connection, sshd.stub(f"half/{MIB}"))
    connection.pause()
    data = stub_bytes(8 * MIB)
    for begin in range(0, len(data), 100_000):
        connection.send(data[begin : begin + 100_000])
    await wait_until_async(lambda: connection.pending == 0 or receiver.ended.done(), message="the git host takes all")
    await wait_until_async(lambda: keepalives(sshd, mark) >= KEEPALIVES or receiver.ended.done())
    assert sshd.log_text(mark).count("set_newkeys: rekeying") >= 8, "four key exchanges or more, two directions each"
    assert not receiver.ended.done() and not receiver.stdout
    connection.resume()
    connection.send_eof()
    assert await end(receiver) == Exit(status=0)
    assert receiver.stdout == stub_bytes(MIB)


async def test_paused_it_exchanges_keys_by_time(dial: Dial, make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd(config=["RekeyLimit default 1", *ALIVE])
    connection = await dial(to=sshd)
    mark = sshd.log_mark()
    receiver = await started(connection, sshd.stub(f"emit/{8 * MIB}"))
    connection.pause()
    await wait_until_async(lambda: keepalives(sshd, mark) >= KEEPALIVES or receiver.ended.done())
    assert sshd.log_text(mark).count("set_newkeys: rekeying") >= 4
    connection.resume()
    assert await end(receiver) == Exit(status=0)
    assert receiver.stdout == stub_bytes(8 * MIB)


@pytest.mark.parametrize("action", ["cut", "reset"])
async def test_a_git_host_that_disconnects_while_paused_is_noticed_once_its_output_is_taken(dial: Dial, sshd: Sshd, action: str) -> None:
    async with FaultProxy(sshd.address, sshd.port) as proxy:
        connection = await dial(proxy.port)
        receiver = await started(connection, sshd.stub(f"emit/{8 * MIB}"))
        connection.pause()
        await wait_until_async(lambda: connection.unread > MIB)
        getattr(proxy, action)()
        await wait_until_async(lambda: not proxy.links)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not receiver.ended.done() and not receiver.stdout
        assert connection._reading is None, "nor does the loop spin on its end"
        connection.resume()
        assert isinstance(await end(receiver), Lost)
        assert len(receiver.stdout) > MIB
        assert receiver.stdout == stub_bytes(len(receiver.stdout))
