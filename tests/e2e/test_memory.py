"""Clients that read slowly or not at all: the relay's memory is bounded by their number, and other clients are served."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack

import asyncssh

from tests.e2e.helpers import alice, stands_still, streamed
from tests.support.pattern import stub_bytes, stub_sha256
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

MIB = 1 << 20
STALLED = 50
SESSION_BYTES = 4 * MIB  # the relay's promise: no session holds more
FAST_BYTES = 20_000_000
FAST_TRANSFERS = 4
SLOW_BYTES_PER_SECOND = 100_000
SLOW_STEP_BYTES = 5_000


class Silent(asyncssh.SSHClientSession[bytes]):
    """A client that receives nothing, because nothing reads its socket."""


async def test_fifty_clients_with_a_window_of_2_gib_that_never_read(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = make_relay(sshd)
    await asyncio.to_thread(relay.ssh().run, f"git-upload-pack 'stub/emit/{FAST_BYTES}'")
    idle = relay.rss()
    size = 1_000_000_000  # of each session: without backpressure all of it would end in the relay's memory
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(alice(relay)) for _ in range(STALLED)]
        for connection in connections:
            await connection.create_session(
                Silent, f"git-upload-pack 'stub/emit/{size}'", encoding=None, window=(1 << 31) - 1, max_pktsize=32_768
            )
            assert isinstance(connection._transport, asyncio.Transport)
            connection._transport.pause_reading()

        def carried() -> float:
            return relay.metric("relay_bytes_total", direction="out")

        before = FAST_BYTES
        await wait_until_async(lambda: asyncio.to_thread(lambda: carried() > before), message="bytes move")
        await asyncio.to_thread(wait_until, stands_still(carried, 20), 60, message="the git hosts are held")
        assert relay.metric("relay_sessions_open") == STALLED
        assert relay.rss() - idle < STALLED * SESSION_BYTES
        with relay.ssh().popen(f"git-upload-pack 'stub/emit/{FAST_BYTES}/5'") as ssh:
            fast = await asyncio.to_thread(streamed, ssh)
        assert (fast.returncode, fast.length, fast.sha256) == (5, FAST_BYTES, stub_sha256(FAST_BYTES))
        assert relay.metric("relay_sessions_open") == STALLED, "they are all there still"
        assert relay.rss() - idle < STALLED * SESSION_BYTES
        for connection in connections:
            connection.abort()
    await wait_until_async(lambda: asyncio.to_thread(lambda: relay.metric("relay_sessions_open") == 0), message="all sessions have ended")
    assert relay.ssh().run("git-upload-pack 'stub/exit/3'").returncode == 3


class SlowReader:
    """A thread that reads a stream in small steps until `hurry` is set."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.length = 0
        self.digest = hashlib.sha256()
        self.hurry = threading.Event()
        self._read = read
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while data := self._read(MIB if self.hurry.is_set() else SLOW_STEP_BYTES):
            self.digest.update(data)
            self.length += len(data)
            self.hurry.wait(len(data) / SLOW_BYTES_PER_SECOND)

    def finish(self) -> None:
        self.hurry.set()
        self._thread.join(120)
        assert not self._thread.is_alive()


def test_a_slow_reader_holds_up_nobody_else(relay: RelayProcess) -> None:
    size = 30_000_000
    with relay.ssh().popen(f"git-upload-pack 'stub/emit/{size}/9'") as slow:
        assert slow.stdout is not None
        reader = SlowReader(slow.stdout.read1)  # type: ignore[attr-defined]  # a pipe is buffered
        try:
            wait_until(lambda: reader.length > 0, message="the slow one has begun")
            for _ in range(FAST_TRANSFERS):
                with relay.ssh().popen(f"git-upload-pack 'stub/emit/{FAST_BYTES}/5'") as ssh:
                    fast = streamed(ssh)
                assert (fast.returncode, fast.length, fast.sha256) == (5, FAST_BYTES, stub_sha256(FAST_BYTES))
            assert slow.poll() is None and reader.length < size, "the fast ones have overtaken it"
        finally:
            reader.finish()
        assert slow.wait(60) == 9
    assert (reader.length, reader.digest.hexdigest()) == (size, stub_sha256(size)), "and it lost nothing"


async def test_a_slow_reader_holds_up_no_connection_but_its_own(relay: RelayProcess) -> None:
    """Two sessions on one connection: SSH's windows keep them apart as long as the socket is read (RFC 4254 section 5.2)."""
    async with alice(relay) as connection:
        slow = await connection.create_process("git-upload-pack 'stub/emit/30000000/9'", encoding=None)
        first = await slow.stdout.read(SLOW_STEP_BYTES)  # and no more until the other session has ended
        for _ in range(FAST_TRANSFERS):
            fast = await connection.run(f"git-upload-pack 'stub/emit/{FAST_BYTES}/5'", encoding=None)
            assert isinstance(fast.stdout, bytes)
            assert (fast.exit_status, hashlib.sha256(fast.stdout).hexdigest()) == (5, stub_sha256(FAST_BYTES))
        assert slow.exit_status is None
        assert first + await slow.stdout.read() == stub_bytes(30_000_000)
        await slow.wait_closed()
        assert slow.exit_status == 9


def test_a_git_host_that_reads_slowly_holds_up_nobody_else(relay: RelayProcess) -> None:
    data = stub_bytes(FAST_BYTES)
    expected = f"{hashlib.sha256(data).hexdigest()} {len(data)}\n"
    with relay.ssh().popen(f"git-receive-pack 'stub/checksum/{SLOW_BYTES_PER_SECOND}'") as slow:
        feeder = threading.Thread(target=_feed, args=(slow.stdin, data))
        feeder.start()
        try:
            wait_until(lambda: relay.metric("relay_sessions_open", service="git-receive-pack") == 1, message="the slow one has begun")
            for _ in range(FAST_TRANSFERS):
                done = relay.ssh().run("git-receive-pack 'stub/checksum'", data)
                assert (done.returncode, done.stdout.decode()) == (0, expected)
            assert slow.poll() is None, "the fast ones have overtaken it"
        finally:
            slow.kill()
            feeder.join(60)
    wait_until(lambda: relay.metric("relay_sessions_open") == 0, message="the slow one is over")


def test_a_client_that_is_faster_than_its_git_host_costs_no_memory(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = make_relay(sshd)
    relay.ssh().run("git-receive-pack 'stub/checksum'", bytes(FAST_BYTES))  # a first session allocates memory that stays allocated
    data = stub_bytes(60 * MIB)
    idle, most = relay.rss(), 0
    with relay.ssh().popen(f"git-receive-pack 'stub/checksum/{20 * MIB}'") as ssh:
        feeder = threading.Thread(target=_feed_all, args=(ssh.stdin, data))
        feeder.start()

        def over() -> bool:
            nonlocal most
            most = max(most, relay.rss() - idle)
            return ssh.poll() is not None

        wait_until(over, 60, "the git host has read it all")
        feeder.join(60)
        assert ssh.stdout is not None
        assert ssh.stdout.read().decode() == f"{hashlib.sha256(data).hexdigest()} {len(data)}\n"
    print(f"{most >> 10} KiB more at the most")
    assert most <= 2 * SESSION_BYTES  # and the heap's fragments


def _feed_all(stream: object, data: bytes) -> None:
    _feed(stream, data)
    stream.close()  # type: ignore[attr-defined]


def _feed(stream: object, data: bytes) -> None:
    try:
        stream.write(data)  # type: ignore[attr-defined]
    except (BrokenPipeError, ValueError):
        pass  # it was killed
