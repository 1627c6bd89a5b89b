"""Warm connections to the git host, counted in its own log: one login serves many sessions, and the relay replaces one that dies."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from tests.e2e.helpers import alice, audited
from tests.support.keys import make_key
from tests.support.pattern import stub_bytes
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import Result, run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

EMITTED = Result(stub_bytes(1000), b"", 0, None)
EMIT = "git-upload-pack 'stub/emit/1000'"


@pytest.fixture
def sshd(make_sshd: Callable[..., Sshd]) -> Sshd:
    """A git host for this test only, because the test counts lines of its log."""
    return make_sshd()


def pooled(make_relay: Callable[..., RelayProcess], sshd: Sshd, access: dict[str, Any] | None = None, **upstream: Any) -> RelayProcess:
    """A relay with these settings of its upstream, with its warm connections open."""
    relay = make_relay(sshd, config={"upstreams": {"main": upstream}}, access=access)
    warm = min(upstream.get("idle_connections", 4), upstream.get("connections_max", 64))
    wait_until(lambda: state(relay, "idle") == warm, message=f"{warm} warm connections")
    return relay


def state(relay: RelayProcess, which: str) -> float:
    return relay.metric("relay_upstream_connections", upstream="main", state=which)


async def has(relay: RelayProcess, **states: int) -> None:
    """Waits until the pool's metrics have these values."""

    def condition() -> bool:
        now = {which: relay.metric("relay_upstream_waiting") if which == "waiting" else state(relay, which) for which in states}
        assert now == states, now
        return True

    await wait_until_async(lambda: asyncio.to_thread(condition), message=f"the pool has {states}")


@asynccontextmanager
async def held(connection: asyncssh.SSHClientConnection) -> AsyncIterator[asyncssh.SSHClientProcess[bytes]]:
    """A session that runs during the block, and succeeds at its end."""
    process = await connection.create_process("git-upload-pack 'stub/half/10'", encoding=None)
    assert await process.stdout.readexactly(10)
    yield process
    process.stdin.write_eof()
    await process.wait_closed()
    assert process.exit_status == 0


async def test_one_login_serves_many_sessions(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = await asyncio.to_thread(pooled, make_relay, sshd, connections_max=1, idle_connections=1)
    assert sshd.logins() == 1  # before the first client
    for _ in range(3):
        async with alice(relay) as connection:
            for _ in range(4):
                assert await run(connection, EMIT) == EMITTED
            assert (await run(connection, "git-upload-pack 'stub/signal/KILL'")).exit_signal == "KILL"
            assert (await run(connection, "git-upload-pack 'stub/exit/37'")).exit_status == 37
    assert len(sshd.commands()) == 18
    assert sshd.logins() == sshd.connections() == 1
    assert relay.metric("relay_upstream_leases_total", warm="true") == 18
    assert relay.metric("relay_upstream_dials_total", result="ok") == 1


async def test_what_one_session_was_told_the_next_is_not(make_relay: Callable[..., RelayProcess], sshd: Sshd, tmp_path: Path) -> None:
    bob = make_key(tmp_path, "bob")
    rules = {"rule": [{"repositories": "**", "who": ["*"], "allow": "write"}]}
    relay = await asyncio.to_thread(pooled, make_relay, sshd, access=rules, connections_max=1, idle_connections=1)
    relay.add_key("bob", bob.line)
    await wait_until_async(lambda: asyncio.to_thread(lambda: relay.ssh(key=bob).run(None).returncode == 0), message="bob's key is read")
    told = []
    for key, environment in ((relay.key, {"GIT_PROTOCOL": "version=2"}), (bob, {}), (relay.key, {})):
        async with alice(relay, key) as connection:
            told.append((await run(connection, "git-upload-pack 'stub/env'", env=environment)).stdout.decode().splitlines())
    assert told == [
        ["GIT_PROTOCOL=version=2", "RELAY_IDENTITY=alice", f"RELAY_KEY={relay.key.fingerprint}"],
        ["GIT_PROTOCOL=(unset)", "RELAY_IDENTITY=bob", f"RELAY_KEY={bob.fingerprint}"],
        ["GIT_PROTOCOL=(unset)", "RELAY_IDENTITY=alice", f"RELAY_KEY={relay.key.fingerprint}"],
    ]
    assert sshd.logins() == 1


async def test_grown_on_demand_and_shrunk_after_idle_seconds(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = await asyncio.to_thread(pooled, make_relay, sshd, idle_connections=1, idle_seconds=0.5)
    async with alice(relay) as connection, held(connection), held(connection), held(connection), held(connection):
        await has(relay, leased=4, idle=1, dialing=0)
        assert sshd.logins() == 5
    await has(relay, leased=0, idle=1, dialing=0)
    left = "Received disconnect from|Connection closed by|Disconnected from"
    await asyncio.to_thread(sshd.wait_for_log, left)
    await wait_until_async(lambda: sshd.session_count() == 1, message="sshd has one connection left")
    assert sshd.logins() == 5
    async with alice(relay) as connection:
        assert await run(connection, EMIT) == EMITTED  # the remaining connection still serves


async def test_beyond_the_limit_a_session_waits_for_the_next_that_ends(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = await asyncio.to_thread(pooled, make_relay, sshd, connections_max=2, idle_connections=1)
    async with alice(relay) as connection, held(connection):
        async with held(connection):
            third, fourth = (asyncio.ensure_future(run(connection, EMIT)) for _ in range(2))
            await has(relay, leased=2, waiting=2)
            assert not third.done() and not fourth.done()
        assert await third == EMITTED
        assert await fourth == EMITTED
        assert sshd.logins() == 2


async def test_who_waits_too_long_is_told(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = await asyncio.to_thread(pooled, make_relay, sshd, connections_max=1, idle_connections=1, connect_seconds=1)
    async with alice(relay) as connection, held(connection):
        result = await run(connection, EMIT)
    assert result == Result(b"", b"relay: all connections to the git host are in use, try again in a moment\n", 255, None)
    [line] = await asyncio.to_thread(audited, relay, 0, event="command_rejected", exit_status=255)
    assert (line["result"], line["reason"]) == ("policy", "upstream")
    assert line["waited_seconds"] >= 1


async def test_a_git_host_restarted_between_sessions_is_not_noticed(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = await asyncio.to_thread(pooled, make_relay, sshd, idle_connections=2)
    async with alice(relay) as connection:
        assert await run(connection, EMIT) == EMITTED
        for _ in range(3):
            await asyncio.to_thread(sshd.restart)
            assert await run(connection, EMIT) == EMITTED
    assert {line["result"] for line in await asyncio.to_thread(audited, relay, 0, 4, event="session")} == {"ok"}


async def test_a_dead_connection_that_is_found_only_when_leased_is_replaced(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = await asyncio.to_thread(pooled, make_relay, sshd, idle_connections=2)
    async with alice(relay) as connection:
        # the worker is stopped while its idle connections die and the next command arrives: it wakes up to both events
        workers = [process for process in relay.processes() if process.pid != relay.pid]
        for worker in workers:
            worker.suspend()
        await asyncio.to_thread(sshd.restart)
        process = asyncio.ensure_future(run(connection, EMIT))
        await asyncio.sleep(0)  # the client has sent its CHANNEL_OPEN
        for worker in workers:
            worker.resume()
        assert await process == EMITTED


async def test_the_far_side_closes_idle_ones_and_they_are_refilled(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = await asyncio.to_thread(pooled, make_relay, sshd, idle_connections=3)
    mark = sshd.log_mark()
    assert sshd.signal_sessions(signal.SIGKILL) == 3
    await wait_until_async(lambda: sshd.logins(mark) == 3, message="three new logins")
    await has(relay, idle=3, dialing=0, leased=0)
    assert relay.metric("relay_upstream_up") == 1


async def test_a_session_whose_client_left_takes_its_connection_with_it(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = await asyncio.to_thread(pooled, make_relay, sshd, connections_max=1, idle_connections=1)
    async with alice(relay) as connection:
        process = await connection.create_process("git-upload-pack 'stub/half/10'", encoding=None)
        assert await process.stdout.readexactly(10)
        process.channel.abort()
        assert await run(connection, EMIT) == EMITTED  # on another login: data in flight must not reach the next session
    assert sshd.logins() == 2


async def test_sessions_take_no_thread_and_quiet_ones_no_time(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = await asyncio.to_thread(pooled, make_relay, sshd)
    [worker] = [process for process in relay.processes() if process.pid != relay.pid]
    async with alice(relay) as connection:
        assert await run(connection, EMIT) == EMITTED
        threads = worker.num_threads()
        async with AsyncExitStack() as stack:
            for _ in range(8):
                await stack.enter_async_context(held(connection))
            await has(relay, leased=8)
            assert worker.num_threads() < threads + 8  # more threads for files may have started, but not one for each session

            def ticks() -> float:
                return relay.metric("relay_event_loop_lag_seconds_count")

            until = await asyncio.to_thread(ticks) + 8  # two seconds of the worker's loop
            before = sum(worker.cpu_times()[:2])
            scrapes = 0
            while await asyncio.to_thread(ticks) < until:
                scrapes += 1
                await asyncio.sleep(0.25)
            # a scrape is at most some 10 ms of work; a worker that polled would use up the two seconds
            assert sum(worker.cpu_times()[:2]) - before < 0.25 + 0.02 * scrapes


async def test_what_a_client_sends_after_its_git_host_has_ended_reaches_no_other_session(
    make_relay: Callable[..., RelayProcess], sshd: Sshd
) -> None:
    """Its connection to the git host serves another session while the client has not read its output yet."""
    relay = pooled(make_relay, sshd, connections_max=1, idle_connections=1)
    async with alice(relay) as slow, alice(relay) as other:
        session: asyncssh.SSHClientSession[bytes] = asyncssh.SSHClientSession()
        channel, _ = await slow.create_session(lambda: session, "git-receive-pack 'stub/emit/30000'", encoding=None, window=1000)
        channel.pause_reading()
        await has(relay, idle=1, leased=0)
        process = await other.create_process("git-receive-pack 'stub/cat'", encoding=None)
        process.stdin.write(b"mine")
        assert await process.stdout.readexactly(4) == b"mine"
        channel.write(b"not yours")
        await has(relay, leased=1)
        await slow.create_process("git-upload-pack 'stub/exit/0'")  # once it is answered, the relay has handled all earlier writes
        process.stdin.write_eof()
        assert await process.stdout.read() == b""
        channel.abort()
        slow.abort()


def test_workers_tell_each_other_of_the_git_host(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    """One worker probes, also without a connection of its own; the others never probe, and learn the same."""
    relay = make_relay(sshd, config={"workers": 3, "upstreams": {"main": {"idle_connections": 0, "health_seconds": 0.2, "health_rise": 1}}})
    wait_until(lambda: relay.metric("relay_upstream_up", upstream="main") == 1, message="it is up")
    sshd.stop()
    wait_until(lambda: relay.log_text().count(" is down: ") == 3, message="all three know")
    sshd.start()
    wait_until(lambda: relay.log_text().count(" is back") == 3, message="all three know")
    assert sshd.logins() == 0
