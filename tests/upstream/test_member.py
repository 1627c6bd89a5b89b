"""The connections to one address, a real sshd: which session gets which, which are reused, and that no lease or place is lost."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import psutil
import pytest
import uvloop

import relay.upstream.breaker
import relay.upstream.idle_life
from relay.errors import HostBusy, RelayError, Unavailable
from relay.model import Exit
from relay.upstream.colleagues import Colleagues, HostNews
from relay.upstream.libssh2 import Connection
from relay.upstream.libssh2.descriptor import prepare
from relay.upstream.pool import MemberLimits, Pool
from relay.upstream.refusals import Refusals
from tests.support.faultproxy import FaultProxy
from tests.support.penalising import Penalising
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async
from tests.upstream.peers import Make, Receiver, Seen, cancelled_at, login, serve, stands


async def test_a_connection_serves_one_session_after_another(make: Make, sshd: Sshd, seen: Seen) -> None:
    pool, mark, command = make(), sshd.log_mark(), sshd.stub("exit/7")
    served = set()
    for _ in range(3):
        served.add(await serve(pool, command))
        await stands(pool, idle=1)
    assert len(served) == 1
    assert sshd.logins(mark) == 1
    assert seen.warm == [False, True, True]
    assert served.pop().sessions == 3


async def test_the_one_used_last_serves_next_and_its_state_is_shown(make: Make, sshd: Sshd) -> None:
    pool = make(connections_max=3, idle_connections=3)
    pool.start()
    assert repr(pool) == "<pool main idle=0 leased=0 dialing=3 waiting=0>"
    await stands(pool, idle=3)
    async with pool.lease(sshd.stub("exit/7"), []) as one, pool.lease(sshd.stub("exit/7"), []) as two:
        assert one is not two
        assert repr(pool) == "<pool main idle=1 leased=2 dialing=0 waiting=0>"
        assert await Receiver(two).ended == await Receiver(one).ended == Exit(status=7)
    await stands(pool, idle=3)
    third = await serve(pool, sshd.stub("exit/7"))
    assert third in (one, two)
    await stands(pool, idle=3)
    assert await serve(pool, sshd.stub("exit/7")) is third


@pytest.mark.parametrize("room", [True, False])
async def test_a_session_that_lost_its_connection_here_gets_a_new_one(make: Make, sshd: Sshd, seen: Seen, room: bool) -> None:
    """A git host that restarts ends its connections one after another. Without room the one that is idle longest makes it."""
    pool = make(connections_max=3 if room else 2, idle_connections=2)
    pool.start()
    await stands(pool, idle=2)
    async with pool.of("").lease(sshd.stub("exit/7"), [], again=True, lost_at=f"{sshd.address}:{sshd.port}") as connection:
        assert await Receiver(connection).ended == Exit(status=7)
    async with pool.of("").lease(sshd.stub("exit/7"), [], again=True, lost_at="192.0.2.1:22") as connection:
        assert await Receiver(connection).ended == Exit(status=7)
    assert seen.warm == [False, True]
    await stands(pool, idle=3 if room else 2)


async def test_at_the_limit_who_waits_longest_gets_what_is_given_back(make: Make, sshd: Sshd, seen: Seen) -> None:
    pool, go, order = make(), asyncio.Event(), list[int]()

    async def wait_in_line(number: int) -> None:
        await serve(pool, sshd.stub("exit/7"))
        order.append(number)

    async with asyncio.TaskGroup() as group:
        group.create_task(serve(pool, sshd.stub("exit/7"), go))
        await stands(pool, leased=1)
        for number in range(3):
            group.create_task(wait_in_line(number))
            await stands(pool, leased=1, waiting=number + 1)
        go.set()
    assert order == [0, 1, 2]
    assert seen.results == ["ok"]


async def test_no_connection_in_time_says_whether_the_pool_or_the_git_host_is_at_fault(make: Make, sshd: Sshd, seen: Seen) -> None:
    async with FaultProxy(sshd.address, sshd.port) as proxy:
        pool, go = make(("127.0.0.1", proxy.port), connect_seconds=0.5), asyncio.Event()
        proxy.accept("silent")
        with pytest.raises(Unavailable) as silent:
            await serve(pool, sshd.stub("exit/7"))
        assert (silent.value.reason, pool.up, seen.results) == ("timeout", False, ["timeout"])
        proxy.accept("forward")
        await stands(pool)
    pool = make(connect_seconds=0.5)
    holder = asyncio.create_task(serve(pool, sshd.stub("exit/7"), go))
    await stands(pool, leased=1)
    with pytest.raises(HostBusy) as busy:
        await serve(pool, sshd.stub("exit/7"))
    assert (busy.value.reason, busy.value.fault) == ("upstream", "policy")
    assert pool.up
    await stands(pool, leased=1)
    go.set()
    await holder


async def test_a_dead_idle_connection_is_replaced_before_anyone_asks(make: Make, sshd: Sshd, seen: Seen) -> None:
    pool = make(idle_connections=1)
    pool.start()
    await stands(pool, idle=1)
    sshd.signal_sessions(signal.SIGKILL)
    await wait_until_async(lambda: seen.results == ["ok", "ok"])
    await stands(pool, idle=1)
    await serve(pool, sshd.stub("exit/7"))
    assert seen.warm == [True]


async def test_a_lease_that_meets_a_dead_connection_gets_another(make: Make, sshd: Sshd, seen: Seen) -> None:
    pool = make(connections_max=3, idle_connections=3)
    pool.start()
    await stands(pool, idle=3)
    sshd.signal_sessions(signal.SIGKILL)
    wait_until(lambda: sshd.session_count() == 0)  # blocks the loop, so that the pool has not noticed
    assert pool.states["idle"] == 3
    await serve(pool, sshd.stub("exit/7"))
    assert len(seen.warm) == 1
    await stands(pool, idle=3)


async def test_a_fresh_connection_that_fails_is_not_tried_for_ever(make: Make, sshd: Sshd, make_sshd: Any, seen: Seen) -> None:
    full = make_sshd(config=["MaxSessions 0"])
    pool = Pool("main", [(full.address, full.port)], login(full), MemberLimits(1, 0, 300, 10, 15), seen)
    with pytest.raises(Unavailable) as refused:
        await serve(pool, full.stub("exit/7"))
    assert (refused.value.reason, seen.results) == ("channel", ["channel"])
    await stands(pool)
    await pool.close()


async def test_a_session_that_ends_early_closes_its_connection(make: Make, sshd: Sshd) -> None:
    pool = make()
    with pytest.raises(RelayError, match="of ours"):
        async with pool.lease(sshd.stub("hang"), []):
            raise RelayError("of ours")
    await stands(pool)
    await wait_until_async(lambda: sshd.session_count() == 0)


async def test_beyond_the_warm_ones_a_connection_goes_after_idle_seconds(make: Make, sshd: Sshd) -> None:
    pool, go = make(connections_max=3, idle_connections=1, idle_seconds=0.2), asyncio.Event()
    sessions = [asyncio.create_task(serve(pool, sshd.stub("exit/7"), go)) for _ in range(3)]
    await stands(pool, leased=3)
    go.set()
    served = set(await asyncio.gather(*sessions))
    await wait_until_async(lambda: pool.states["idle"] == 3)
    await stands(pool, idle=1)
    assert sum(connection.usable for connection in served) == 1
    await wait_until_async(lambda: sshd.session_count() == 1)


async def test_dials_that_fail_are_tried_again_ever_later(
    make: Make, sshd: Sshd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(relay.upstream.breaker, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(relay.upstream.breaker, "MOST_PAUSE_SECONDS", 0.05)
    caplog.set_level(logging.DEBUG, "relay.upstream")

    def pauses() -> list[str]:
        return [said.rpartition("next try in ")[2] for said in caplog.messages if "next try in" in said]

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    async with FaultProxy(sshd.address, sshd.port) as proxy:
        proxy.accept("refuse")
        pool = make(("127.0.0.1", proxy.port), idle_connections=1)
        pool.start()
        await wait_until_async(lambda: len(pauses()) >= 5)
        assert pauses()[:5] == ["0.01 s", "0.02 s", "0.04 s", "0.05 s", "0.05 s"]
        assert pool.up is False
        [down] = warnings()
        assert down.startswith(f"upstream main: 127.0.0.1:{proxy.port} is down: ")
        proxy.accept("forward")
        await stands(pool, idle=1)
        assert pool.up is True
        assert warnings()[1:] == [f"upstream main: 127.0.0.1:{proxy.port} is back"]
        caplog.clear()
        proxy.accept("refuse")
        proxy.reset()
        await wait_until_async(lambda: len(pauses()) >= 2)
        assert pauses()[:2] == ["0.01 s", "0.02 s"]
        await wait_until_async(lambda: pool.up is False)  # after the third failure in a row, because it was up
        assert len(warnings()) == 1


async def test_a_failed_dial_hands_its_place_to_who_waits(make: Make, sshd: Sshd, seen: Seen) -> None:
    async with FaultProxy(sshd.address, sshd.port) as proxy:
        proxy.accept("silent")
        pool = make(("127.0.0.1", proxy.port), connect_seconds=30)
        first = asyncio.create_task(serve(pool, sshd.stub("exit/7")))
        await wait_until_async(lambda: bool(proxy.links))
        second = asyncio.create_task(serve(pool, sshd.stub("exit/7")))
        await stands(pool, dialing=1, waiting=1)
        proxy.accept("forward")
        proxy.reset()
        with pytest.raises(Unavailable):
            await first
        async with asyncio.timeout(60):
            await second
        assert seen.results == ["handshake", "ok"]
        await pool.close()


async def test_a_session_that_leaves_while_dialing_does_not_mean_that_the_git_host_is_down(make: Make, sshd: Sshd, seen: Seen) -> None:
    async with FaultProxy(sshd.address, sshd.port) as proxy:
        proxy.accept("silent")
        pool = make(("127.0.0.1", proxy.port))
        session = asyncio.create_task(serve(pool, sshd.stub("exit/7")))
        await wait_until_async(lambda: bool(proxy.links))
        session.cancel()
        with pytest.raises(asyncio.CancelledError):
            await session
        await stands(pool)
        assert (pool.up, seen.results) == (None, [])


async def test_closing_ends_idle_ones_dials_and_waiters_and_leased_ones_when_they_are_given_back(make: Make, sshd: Sshd) -> None:
    async with FaultProxy(sshd.address, sshd.port) as proxy:
        pool, go = make(("127.0.0.1", proxy.port), connections_max=3, idle_connections=2), asyncio.Event()
        pool.start()
        await stands(pool, idle=2)
        proxy.accept("silent")
        leased = asyncio.create_task(serve(pool, sshd.stub("exit/7"), go))
        await stands(pool, leased=1, idle=1, dialing=1)
        idle = pool.members[0]._idle[0][1]
        await pool.close()
        await stands(pool, leased=1)
        assert not idle.usable
        go.set()
        assert not (await leased).usable
    pool, go = make(), asyncio.Event()
    leased = asyncio.create_task(serve(pool, sshd.stub("exit/7"), go))
    await stands(pool, leased=1)
    waiting = asyncio.create_task(serve(pool, sshd.stub("exit/7")))
    await stands(pool, leased=1, waiting=1)
    await pool.close()
    with pytest.raises(Unavailable, match="closing"):
        await waiting
    go.set()
    await leased
    await stands(pool)


@pytest.mark.parametrize("warm", [False, True])
async def test_a_session_cancelled_at_any_step_leaves_no_lease(make: Make, sshd: Sshd, warm: bool) -> None:
    """Each suspension in turn, until a session gets through uncancelled; the pool has one place, so a dead lease would show."""
    pool = make(idle_connections=int(warm))
    await serve(pool, sshd.stub("exit/7"))
    await stands(pool, idle=1)
    prepare()  # opens the descriptors that the process keeps
    before = psutil.Process().num_fds()
    for step in range(1, 200):
        session = asyncio.create_task(_cancelled(pool, sshd.stub("exit/7"), step))
        await asyncio.wait([session])
        await wait_until_async(lambda: pool.states["leased"] == pool.states["waiting"] == pool.states["dialing"] == 0)
        if not session.cancelled():
            break
    assert session.result().usable
    assert step > 1
    await stands(pool, idle=1)
    assert psutil.Process().num_fds() == before


async def _cancelled(pool: Pool, command: str, step: int) -> Connection:
    return await cancelled_at(serve(pool, command), step)


async def test_a_waiter_that_leaves_as_it_is_served_hands_on_what_it_was_given(make: Make, sshd: Sshd) -> None:
    pool, go = make(), asyncio.Event()
    holder = asyncio.create_task(serve(pool, sshd.stub("exit/7"), go))
    await stands(pool, leased=1)
    leaves = asyncio.create_task(serve(pool, sshd.stub("exit/7")))
    await stands(pool, leased=1, waiting=1)
    go.set()
    while pool.states["waiting"]:
        await asyncio.sleep(0)
    leaves.cancel()  # its future is done, but its task has not run since
    with pytest.raises(asyncio.CancelledError):
        await leaves
    await stands(pool, idle=1)
    assert await serve(pool, sshd.stub("exit/7")) is await holder
    await stands(pool, idle=1)


async def test_a_waiter_that_leaves_is_forgotten(make: Make, sshd: Sshd) -> None:
    pool, go = make(), asyncio.Event()
    holder = asyncio.create_task(serve(pool, sshd.stub("exit/7"), go))
    await stands(pool, leased=1)
    leaves = asyncio.create_task(serve(pool, sshd.stub("exit/7")))
    await stands(pool, leased=1, waiting=1)
    leaves.cancel()
    await stands(pool, leased=1)
    go.set()
    await holder
    await stands(pool, idle=1)


async def test_a_host_that_allows_one_channel_at_a_time_is_logged_in_to_once(make_sshd: Callable[..., Sshd], seen: Seen) -> None:
    host = make_sshd(config=["MaxSessions 1"])
    mark = host.log_mark()
    pool = Pool("main", [(host.address, host.port)], login(host), MemberLimits(1, 1, 300, 10, 15), seen)
    try:
        for _ in range(40):
            await serve(pool, host.stub("exit/7"))
            await stands(pool, idle=1)
        assert host.logins(mark) == 1
    finally:
        await pool.close()


# -- a host that closes idle connections


async def test_a_host_that_closes_idle_connections_is_forestalled_and_told_of_once(
    make_sshd: Callable[..., Sshd], seen: Seen, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay.upstream.idle_life, "TOLD_SECONDS", 3600.0)  # so that it is logged once, however slow the machine is
    caplog.set_level(logging.INFO, "relay.upstream")
    host = make_sshd(config=["UnusedConnectionTimeout 3"])
    pool = Pool("main", [(host.address, host.port)], login(host), MemberLimits(4, 2, 300, 10, 15), seen)
    [member] = pool.members
    pool.start()
    try:
        await wait_until_async(lambda: member._idle_life.replace_after() is not None, message="the pool has learned it")
        first = {connection for _, connection in member._idle}
        await wait_until_async(lambda: len(member._idle) == 2 and not first & {connection for _, connection in member._idle})
        for _ in range(3):
            before = {connection for _, connection in member._idle}
            await wait_until_async(lambda: len(member._idle) == 2 and not before & {connection for _, connection in member._idle})  # noqa: B023
            await serve(pool, host.stub("exit/7"))
        assert seen.warm == [True] * 3
        assert "a warm connection was dead" not in caplog.text
        assert len([said for said in caplog.messages if "idle connections" in said]) == 1
        assert "an idle connection" not in caplog.text
    finally:
        await pool.close()


@pytest.mark.parametrize("room", [0, 1], ids=["no room for a replacement", "room"])
async def test_old_connections_serve_until_their_replacements_are_there(make: Make, sshd: Sshd, seen: Seen, room: int) -> None:
    pool, mark = make(connections_max=2 + room, idle_connections=2), sshd.log_mark()
    [member] = pool.members
    pool.start()
    await stands(pool, idle=2)
    life = member._idle_life
    fewest = len(member._idle)

    def replaced() -> bool:
        nonlocal fewest
        fewest = min(fewest, len(member._idle))
        return life._replaced + (life._told_at > 0) >= 2 and pool.states["idle"] == 2

    for _ in range(3):
        life._closed_at = float("-inf")
        life.closed(2.0)
    life._told_at, life._replaced = float("-inf"), 0
    member._reap_later()
    before = {connection for _, connection in member._idle}
    await wait_until_async(lambda: replaced() and not before & {connection for _, connection in member._idle})
    assert fewest == 2 or not room
    assert sshd.logins(mark) >= 4
    await serve(pool, sshd.stub("exit/7"))
    assert seen.warm == [True]


async def test_an_idle_connection_beyond_the_warm_ones_is_closed_before_the_host_would(make: Make, sshd: Sshd) -> None:
    pool, mark = make(), sshd.log_mark()
    connection = await serve(pool, sshd.stub("exit/7"))
    await stands(pool, idle=1)
    [member] = pool.members
    for _ in range(3):
        member._idle_life._closed_at = float("-inf")
        member._idle_life.closed(2.0)
    member._reap_later()
    await stands(pool)
    assert not connection.usable
    assert sshd.logins(mark) == 1


def test_connections_that_are_old_at_once_are_closed_on_uvloop_too(sshd: Sshd, seen: Seen) -> None:
    """uvloop returns no TimerHandle for a timer that is due at once, as a soak test found after a reload."""

    async def run() -> None:
        limits = MemberLimits(connections_max=4, idle_connections=0, idle_seconds=3600, connect_seconds=30, keepalive_seconds=15)
        pool = Pool("main", [(sshd.address, sshd.port)], login(sshd), limits, seen)
        connections = [await serve(pool, sshd.stub("exit/7"))]
        [member] = pool.members
        await stands(pool, idle=1)
        member._limits = replace(limits, idle_seconds=0)
        for _ in range(3):
            member._reap_later()
        await stands(pool)
        assert not any(connection.usable for connection in connections)
        await pool.close()

    uvloop.run(run())


# -- a git host penalises refused logins


def workers_of(count: int) -> list[Colleagues]:
    """Members of several workers, connected as by the supervisor; the first worker probes."""
    colleagues = [Colleagues() for _ in range(count)]

    def pass_on(sender: Colleagues, news: HostNews) -> None:
        for one in colleagues:
            if one is not sender:
                one.told(news)

    for one in colleagues:
        one.connect(partial(pass_on, one), first=one is colleagues[0])
    colleagues[0].probing = True
    return colleagues


@pytest.mark.parametrize("workers", [1, 4])
async def test_a_key_that_a_host_refuses_costs_each_worker_one_login(make_sshd: Callable[..., Sshd], seen: Seen, workers: int) -> None:
    """Each worker keeps four connections warm, and sessions arrive."""
    host, known = make_sshd(), make_sshd()
    keys, limits = login(host, private_key=known.key.private.read_bytes()), MemberLimits(8, 4, 300, 10, 15)
    async with Penalising(host, least=workers * 5.0) as front:
        addresses = [("127.0.0.1", front.port)]
        pools = [Pool("main", addresses, keys, limits, seen, one, refusals=Refusals(3600.0)) for one in workers_of(workers)]
        try:
            for pool in pools:
                pool.start()
            for pool in pools * 5:
                with pytest.raises(Unavailable, match="was refused") as told:
                    await serve(pool, host.stub("exit/7"))
                assert told.value.reason == "auth"
            await wait_until_async(lambda: sum(front.ended.values()) > 0)
            assert front.ended["authfail"] <= workers and not front.ended["turned away"] and not front.ended["noauth"]
        finally:
            for pool in pools:
                await pool.close()


async def test_workers_that_start_together_cost_one_refused_login(make_sshd: Callable[..., Sshd], seen: Seen) -> None:
    host, known = make_sshd(), make_sshd()
    keys, limits = login(host, private_key=known.key.private.read_bytes()), MemberLimits(8, 4, 300, 10, 15)
    async with Penalising(host, least=5.0) as front:
        pools = [Pool("main", [("127.0.0.1", front.port)], keys, limits, seen, one, refusals=Refusals(3600.0)) for one in workers_of(4)]
        try:
            for pool in pools:
                pool.start()
            await wait_until_async(lambda: all(pool.up is False for pool in pools))
            for pool in pools:
                with pytest.raises(Unavailable, match="was refused"):
                    await serve(pool, host.stub("exit/7"))
            await wait_until_async(lambda: sum(front.ended.values()) > 0)
            assert front.ended == {"authfail": 1}
        finally:
            for pool in pools:
                await pool.close()


async def test_a_worker_without_news_of_the_first_one_dials_by_itself(make_sshd: Callable[..., Sshd], seen: Seen) -> None:
    """The first worker has ended, or its dial takes longer than connect_seconds."""
    host, colleagues = make_sshd(), Colleagues()
    colleagues.connect(lambda news: None, first=False)
    limits = MemberLimits(8, 2, 300, 0.5, 15)
    mark = host.log_mark()
    pool = Pool("main", [(host.address, host.port)], login(host), limits, seen, colleagues, refusals=Refusals(60.0))
    try:
        pool.start()
        assert pool.states["dialing"] == 0
        await wait_until_async(lambda: host.connections(mark) > 0)
    finally:
        await pool.close()


async def test_a_key_that_a_host_accepts_again_is_used_by_all_workers_without_a_session(make_sshd: Callable[..., Sshd], seen: Seen) -> None:
    """The worker that probes tries again after refused_seconds, and tells the others."""
    host, known = make_sshd(), make_sshd()
    keys, limits = login(host, private_key=known.key.private.read_bytes()), MemberLimits(8, 4, 300, 10, 15)
    addresses = [(host.address, host.port)]
    pools = [Pool("main", addresses, keys, limits, seen, one, refusals=Refusals(0.2)) for one in workers_of(3)]
    try:
        for pool in pools:
            pool.start()
        await wait_until_async(lambda: all(pool.up is False for pool in pools))
        host.authorize(known.key.line)
        await wait_until_async(lambda: all(pool.states["idle"] == 4 for pool in pools))
        assert all(pool.up for pool in pools)
    finally:
        for pool in pools:
            await pool.close()


async def test_a_pool_that_is_closed_dials_nothing_when_another_worker_s_login_is_accepted(
    make_sshd: Callable[..., Sshd], seen: Seen
) -> None:
    host, known = make_sshd(), make_sshd()
    keys, colleagues = login(host, private_key=known.key.private.read_bytes()), Colleagues()
    colleagues.connect(lambda news: None)
    limits = MemberLimits(8, 4, 300, 10, 15)
    pool = Pool("main", [(host.address, host.port)], keys, limits, seen, colleagues, refusals=Refusals(60.0))
    pool.start()
    await wait_until_async(lambda: pool.up is False)
    await pool.close()
    colleagues.told(HostNews("main", pool.members[0].address, reason="auth"))
    assert pool.states["dialing"] == 0


async def test_another_worker_s_refused_login_is_not_tried_here(make: Make, sshd: Sshd, seen: Seen) -> None:
    mark, colleagues = sshd.log_mark(), Colleagues()
    colleagues.connect(lambda news: None)
    pool = Pool(
        "main", [(sshd.address, sshd.port)], login(sshd), MemberLimits(1, 0, 300, 10, 15), seen, colleagues, refusals=Refusals(60.0)
    )
    pool.start()
    try:
        address = pool.members[0].address
        colleagues.told(HostNews("main", address, "the key was refused", "auth", "", 60.0))
        with pytest.raises(Unavailable, match="not tried again for 90 s"):
            await serve(pool, sshd.stub("exit/7"))
        assert sshd.connections(mark) == 0
        colleagues.told(HostNews("main", address, reason="auth"))
        await serve(pool, sshd.stub("exit/7"))
    finally:
        await pool.close()
