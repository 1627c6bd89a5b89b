"""Idle warm connections to a git host that dies, resets them or falls silent, and a host that is only busy."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from relay.upstream.libssh2 import KEEPALIVES_UNANSWERED
from tests.e2e.faults import MIB, SHORT, UNAVAILABLE, Fault, cut, in_order, kill, outcomes_async, pool_states, reset
from tests.e2e.helpers import alice
from tests.support.faultlink import Action, Faults
from tests.support.faultproxy import FaultProxy, ThreadedFaultProxy
from tests.support.pattern import stub_bytes
from tests.support.relay_process import RelayProcess, upstream
from tests.support.sshclient import run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

WARM = 4


@pytest.fixture
def link(sshd: Sshd) -> Iterator[ThreadedFaultProxy]:
    """The link between the relay and the git host."""
    with ThreadedFaultProxy("127.0.0.1", sshd.port) as proxy:
        yield proxy


@pytest.fixture
def warm(make_relay: Callable[..., RelayProcess], sshd: Sshd, link: ThreadedFaultProxy) -> RelayProcess:
    main = {**upstream(sshd, port=link.port), "idle_connections": WARM, "connect_seconds": 3}
    relay = make_relay(sshd, config={"upstreams": {"main": main}})
    wait_until(lambda: pool_states(relay)["idle"] == WARM, message="the pool is warm")
    return relay


@pytest.mark.parametrize("fault", [cut, reset, kill])
async def test_warm_connections_that_end_are_replaced(warm: RelayProcess, link: ThreadedFaultProxy, sshd: Sshd, fault: Fault) -> None:
    dials = link.do(lambda proxy: proxy.accepted)
    fault(sshd, link)
    await wait_until_async(lambda: link.do(lambda proxy: proxy.accepted) == dials + WARM, message="all are dialled again")
    await wait_until_async(lambda: asyncio.to_thread(lambda: pool_states(warm)["idle"] == WARM), message="the pool is warm again")
    async with alice(warm) as connection:
        result = await run(connection, SHORT)
    assert (result.exit_status, result.stdout) == (37, stub_bytes(1000))


@pytest.mark.parametrize("action", ["cut", "reset"])
async def test_a_warm_connection_that_breaks_at_its_next_byte_is_replaced_unnoticed(
    warm: RelayProcess, link: ThreadedFaultProxy, action: Action
) -> None:
    def break_at_next_byte(proxy: FaultProxy) -> None:
        for one in proxy.links:
            assert one.up is not None
            one.up.set(Faults(at_bytes=one.bytes_up + 1, action=action))

    link.do(break_at_next_byte)
    async with alice(warm) as connection:
        result = await run(connection, SHORT)
    assert (result.exit_status, result.stdout, result.stderr) == (37, stub_bytes(1000), b"")
    [line] = await outcomes_async(warm, 0, 1)
    assert (line["result"], line["reason"]) == ("exit", "exit")


async def test_warm_connections_that_hang_cost_one_session_its_time_and_no_more(warm: RelayProcess, link: ThreadedFaultProxy) -> None:
    link.do(lambda proxy: proxy.stall(scope="live"))
    async with alice(warm) as connection:
        results = await asyncio.gather(*(run(connection, SHORT) for _ in range(WARM)))
        assert {(result.exit_status, result.stderr) for result in results} == {(255, UNAVAILABLE)}
        result = await run(connection, SHORT)
        assert (result.exit_status, result.stdout) == (37, stub_bytes(1000))
    lines = in_order(await outcomes_async(warm, 0, WARM + 1))
    assert [line["reason"] for line in lines] == ["timeout"] * WARM + ["exit"]


async def test_a_busy_git_host_that_reads_nothing_is_no_dead_one(
    make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd]
) -> None:
    """A push whose command reads nothing for longer than the keepalives' timeout, while a full window waits to be sent."""
    sshd = make_sshd()
    relay = make_relay(sshd, config={"upstreams": {"main": {"keepalive_seconds": 2}}})
    data = os.urandom(6 * MIB)
    async with alice(relay) as connection:
        process = await connection.create_process("git-receive-pack 'stub/checksum'", encoding=None)
        await wait_until_async(lambda: sshd.signal_commands(signal.SIGSTOP), message="the command is stopped")
        process.stdin.write(data)
        process.stdin.write_eof()
        silence = asyncio.get_running_loop().time() + 2 * (KEEPALIVES_UNANSWERED + 2)
        await wait_until_async(lambda: asyncio.get_running_loop().time() > silence, timeout=60, message="keepalives are due")
        assert not relay.audit_lines(), "the session was ended"
        sshd.signal_commands(signal.SIGCONT)
        output, _ = await process.communicate()
        await process.wait_closed()
    assert (process.exit_status, output.split()[0].decode()) == (0, hashlib.sha256(data).hexdigest())
