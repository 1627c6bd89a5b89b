"""The gate in front of a real sshd: sessions that wait for a place, for a paused upstream, and for a host that is away."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

import relay.upstream.gate
from relay.errors import HostBusy, IdentityBusy, RelayError, RepositoryBusy, Unavailable
from relay.events import WaitsFor
from relay.upstream.gate import Visit
from relay.upstream.libssh2 import Connection
from relay.upstream.line import Line
from relay.upstream.pool import MemberLimits, Pool
from tests.support.faultproxy import FaultProxy
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async
from tests.upstream.peers import EMPTY, Make, Receiver, Seen, cancelled_at, login, serve, stands

NOTHING: frozenset[str] = frozenset()


@pytest.fixture
async def link(sshd: Sshd) -> AsyncIterator[FaultProxy]:
    """A link to the test sshd that a test can close; requested before `make`, so that it outlives the pools."""
    async with FaultProxy(sshd.address, sshd.port) as link:
        yield link


@pytest.fixture
async def other(sshd: Sshd) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(sshd.address, sshd.port) as link:
        yield link


def to(*links: FaultProxy) -> list[tuple[str, int]]:
    return [("127.0.0.1", link.port) for link in links]


class Guest:
    """A session of an identity that runs until the test ends it."""

    def __init__(self, pool: Pool, sshd: Sshd, identity: str = "alice", repository: str = "team/app", *, stay: bool = False) -> None:
        self.told: list[tuple[WaitsFor, int, float]] = []
        self.waited = 0.0
        self.go = asyncio.Event()
        if not stay:
            self.go.set()
        self._own = pool.of(identity, lambda *told: self.told.append(told), self._add)
        self._command, self._repository = sshd.stub("exit/7"), repository
        self.task = asyncio.create_task(self._run())

    def _add(self, seconds: float) -> None:
        self.waited += seconds

    async def _run(self) -> Connection:
        async with self._own.lease(self._command, [], self._repository) as connection:
            await self.go.wait()
            await Receiver(connection).ended
            return connection

    async def fails(self) -> RelayError:
        with pytest.raises(RelayError) as told:
            await self.task
        return told.value


def limited(sshd: Sshd, seen: Seen, line: Line[Visit], **changes: Any) -> Pool:
    known = {"connections_max": 1, "idle_connections": 0, "idle_seconds": 300, "connect_seconds": 60, "keepalive_seconds": 15}
    return Pool("main", [(sshd.address, sshd.port)], login(sshd), MemberLimits(**{**known, **changes}), seen, line=line)


# -- a place


async def test_identities_take_turns_at_a_full_host(make: Make, sshd: Sshd) -> None:
    pool, order = make(connect_seconds=60), list[str]()
    holder = Guest(pool, sshd, "holder", stay=True)
    await stands(pool, leased=1)
    guests = []
    for identity in ("robot", "robot", "robot", "alice", "robot", "bob"):
        guests.append(Guest(pool, sshd, identity))
        guests[-1].task.add_done_callback(lambda _, identity=identity: order.append(identity))  # type: ignore[misc]
        await stands(pool, leased=1, waiting=len(guests))
    holder.go.set()
    await asyncio.gather(*(guest.task for guest in guests))
    assert order == ["robot", "alice", "bob", "robot", "robot", "robot"]
    assert all(guest.waited > 0 for guest in guests) and holder.waited == 0


async def test_whoever_frees_first_serves_with_least_sessions(link: FaultProxy, other: FaultProxy, make: Make, sshd: Sshd) -> None:
    pool = make(*to(link, other), policy="least_sessions", connect_seconds=60)
    holders = [Guest(pool, sshd, stay=True) for _ in range(2)]
    await stands(pool, leased=2)
    waiting = Guest(pool, sshd)
    await stands(pool, leased=2, waiting=1)
    holders[1].go.set()
    assert await waiting.task is await holders[1].task
    holders[0].go.set()
    await holders[0].task


async def test_who_waits_longer_than_notice_seconds_is_told_its_place_once(make: Make, sshd: Sshd, seen: Seen) -> None:
    pool = make(connect_seconds=60, notice_seconds=0.01)
    holder = Guest(pool, sshd, stay=True)
    await stands(pool, leased=1)
    waiting = [Guest(pool, sshd, identity) for identity in ("robot", "robot", "alice")]
    await wait_until_async(lambda: all(guest.told for guest in waiting))
    assert [(guest.told[0][:2]) for guest in waiting] == [("upstream", 0), ("upstream", 2), ("upstream", 1)]
    assert all(0 < guest.told[0][2] <= 60 for guest in waiting)
    holder.go.set()
    await asyncio.gather(*(guest.task for guest in waiting))
    assert not holder.told and all(len(guest.told) == 1 for guest in waiting)
    assert seen.waits == ["upstream"] * 3


async def test_without_notice_seconds_nothing_is_told(make: Make, sshd: Sshd) -> None:
    pool = make(connect_seconds=60)
    holder = Guest(pool, sshd, stay=True)
    await stands(pool, leased=1)
    waiting = Guest(pool, sshd)
    await stands(pool, leased=1, waiting=1)
    holder.go.set()
    await waiting.task
    assert not waiting.told


async def test_a_limit_of_its_own_is_the_reason_of_who_waits_too_long(sshd: Sshd, seen: Seen) -> None:
    for line, kind in ((Line[Visit](per_identity=1), IdentityBusy), (Line[Visit](per_repository=1), RepositoryBusy)):
        pool = limited(sshd, seen, line, connections_max=5, connect_seconds=2, notice_seconds=0.01)
        holder = Guest(pool, sshd, stay=True)
        await stands(pool, leased=1)
        late = Guest(pool, sshd)
        await wait_until_async(lambda: late.told)  # noqa: B023
        passing = Guest(pool, sshd, "bob", "team/lib")
        await passing.task
        error = await late.fails()
        assert type(error) is kind and late.told[0][0] == error.reason
        assert (error.fault, pool.up, line.waiting) == ("policy", True, 0)
        holder.go.set()
        await holder.task
        await pool.close()
    assert "timeout" not in seen.results


async def test_a_full_line_refuses_at_once_and_the_longest_first(sshd: Sshd, seen: Seen) -> None:
    line = Line[Visit](most=2)
    pool = limited(sshd, seen, line)
    holder = Guest(pool, sshd, stay=True)
    await stands(pool, leased=1)
    robots = [Guest(pool, sshd, "robot"), Guest(pool, sshd, "robot")]
    await stands(pool, leased=1, waiting=2)
    assert type(await Guest(pool, sshd, "robot").fails()) is IdentityBusy
    alice = Guest(pool, sshd, "alice")
    assert type(await robots[1].fails()) is IdentityBusy
    error = await Guest(pool, sshd, "bob").fails()
    assert (type(error), error.reason) == (HostBusy, "upstream")
    assert "the line is full" in str(error)
    holder.go.set()
    await asyncio.gather(robots[0].task, alice.task)
    await wait_until_async(lambda: pool.states == {**EMPTY, "idle": 1})
    assert (pool.up, seen.results) == (True, ["ok"])
    await pool.close()


async def test_a_line_of_no_length_refuses_whoever_finds_no_place(sshd: Sshd, seen: Seen) -> None:
    pool = limited(sshd, seen, Line[Visit](most=0))
    holder = Guest(pool, sshd, stay=True)
    await stands(pool, leased=1)
    assert type(await Guest(pool, sshd).fails()) is HostBusy
    holder.go.set()
    await holder.task
    await pool.close()


@pytest.mark.parametrize("step", range(1, 4))
async def test_a_session_that_is_cancelled_in_line_leaves_no_trace(make: Make, sshd: Sshd, step: int) -> None:
    pool, go = make(connect_seconds=60, wait_seconds=60), asyncio.Event()
    holder = asyncio.create_task(serve(pool, sshd.stub("exit/7"), go))
    await stands(pool, leased=1)
    leaves = asyncio.create_task(_cancelled(pool, sshd, step))
    stays = Guest(pool, sshd)
    await wait_until_async(lambda: pool.waiting >= 1)
    go.set()
    await asyncio.wait([leaves])
    await asyncio.gather(stays.task, holder)
    await stands(pool, idle=1)
    assert not pool._gate._waiting and pool._gate._line.waiting == 0


async def _cancelled(pool: Pool, sshd: Sshd, step: int) -> Connection:
    return await cancelled_at(serve(pool, sshd.stub("exit/7")), step)


# -- paused, drained


async def test_a_paused_upstream_dials_nothing_and_lets_in_who_waited_in_order(make: Make, sshd: Sshd, seen: Seen) -> None:
    pool, order = make(connections_max=2, idle_connections=2, wait_seconds=60, notice_seconds=0.01), list[int]()
    pool.start()
    await stands(pool, idle=2)
    runs = Guest(pool, sshd, stay=True)
    await stands(pool, idle=1, leased=1)
    for _ in range(2):  # the second time nothing changes
        pool.set_switches(True, NOTHING)
    await stands(pool, leased=1)
    mark, guests = sshd.log_mark(), []
    for number in range(5):
        guests.append(Guest(pool, sshd, "alice"))
        guests[-1].task.add_done_callback(lambda _, number=number: order.append(number))  # type: ignore[misc]
        await stands(pool, leased=1, waiting=number + 1)
    await wait_until_async(lambda: all(guest.told for guest in guests))
    assert {guest.told[0][0] for guest in guests} == {"paused"}
    runs.go.set()
    await runs.task  # the running session went on
    await stands(pool, waiting=5)
    assert not (await runs.task).usable
    [row] = pool.table()
    assert (pool.paused, pool.waiting, row.up, row.leased, row.idle, row.dialing) == (True, 5, True, 0, 0, 0)
    await wait_until_async(lambda: sshd.session_count() == 0)
    assert sshd.connections(mark) == 0
    pool.set_switches(False, NOTHING)
    await asyncio.gather(*(guest.task for guest in guests))
    assert sorted(order) == list(range(5)) and set(order[:2]) <= {0, 1, 2}
    await stands(pool, idle=2)
    assert not pool.paused
    assert set(seen.waits) == {"paused"}


async def test_a_session_that_was_about_to_get_a_connection_waits_when_the_upstream_is_paused(
    link: FaultProxy, make: Make, sshd: Sshd
) -> None:
    """The session waits for a connection that the pool is dialing."""
    link.accept("silent")
    pool = make(*to(link), idle_connections=1, wait_seconds=60, connect_seconds=60)
    pool.start()
    await wait_until_async(lambda: bool(link.links))
    guest = Guest(pool, sshd)
    await stands(pool, dialing=1, waiting=1)
    assert pool.waiting == 0
    pool.set_switches(True, NOTHING)
    await wait_until_async(lambda: pool.waiting == 1)
    link.accept("forward")
    pool.set_switches(False, NOTHING)
    link.reset()
    await guest.task


async def test_who_waits_too_long_for_a_paused_upstream_reads_that_it_is_unavailable(make: Make, sshd: Sshd, seen: Seen) -> None:
    for wait_seconds in (0, 0.05):
        pool = make(wait_seconds=wait_seconds)
        pool.set_switches(True, NOTHING)
        error = await Guest(pool, sshd).fails()
        assert isinstance(error, Unavailable)
        assert (error.reason, error.fault, error.message) == ("paused", "policy", Unavailable.message)
        pool.set_switches(False, NOTHING)
        await Guest(pool, sshd).task


async def test_a_drained_address_gets_no_new_session_and_the_others_take_them(
    link: FaultProxy, other: FaultProxy, make: Make, sshd: Sshd
) -> None:
    pool = make(*to(link, other), idle_connections=1, connections_max=2, wait_seconds=60)
    pool.start()
    await stands(pool, idle=2)
    first, second = (f"127.0.0.1:{one.port}" for one in (link, other))
    runs = Guest(pool, sshd, stay=True)
    await wait_until_async(lambda: pool.table()[0].leased == 1)
    pool.set_switches(False, frozenset({first}))
    await wait_until_async(lambda: [(row.drained, row.leased, row.idle) for row in pool.table()] == [(True, 1, 0), (False, 0, 1)])
    assert (await Guest(pool, sshd).task).address == second
    runs.go.set()
    assert (await runs.task).address == first
    await wait_until_async(lambda: pool.table()[0].leased == pool.table()[0].dialing == pool.table()[0].idle == 0)
    pool.set_switches(False, frozenset({first, second}))
    assert not pool.paused
    waits = Guest(pool, sshd)
    await stands(pool, waiting=1)
    pool.set_switches(False, frozenset({second}))
    assert (await waits.task).address == first
    pool.set_switches(False, NOTHING)
    await wait_until_async(lambda: all(row.idle for row in pool.table()))


async def test_no_trial_is_made_of_a_paused_upstream_and_one_at_once_when_it_is_resumed(make: Make, link: FaultProxy, sshd: Sshd) -> None:
    link.accept("refuse")
    pool = make(*to(link), idle_connections=1, wait_seconds=60)
    [member] = pool.members
    pool.start()
    await wait_until_async(lambda: member.up is False)
    pool.set_switches(True, NOTHING)
    await stands(pool)
    assert member._retry is None
    link.accept("forward")
    pool.set_switches(False, NOTHING)
    await stands(pool, idle=1)
    assert member.up


# -- away


async def test_a_session_waits_for_a_lone_host_that_is_away_and_others_behind_it(
    link: FaultProxy, make: Make, sshd: Sshd, seen: Seen
) -> None:
    link.accept("refuse")
    pool = make(*to(link), connections_max=8, wait_seconds=60, notice_seconds=0.01)
    guests = [Guest(pool, sshd)]
    await wait_until_async(lambda: pool.waiting == 1)
    guests += [Guest(pool, sshd, f"person{number}") for number in range(20)]
    dials = len(seen.results)
    await wait_until_async(lambda: len(seen.results) >= dials + 3)
    assert pool.states["dialing"] <= 1 and pool.waiting >= 20
    await wait_until_async(lambda: all(guest.told for guest in guests))
    assert {guest.told[0][0] for guest in guests} == {"away"}
    link.accept("forward")
    await asyncio.gather(*(guest.task for guest in guests))
    assert set(seen.waits) == {"away"}


async def test_what_is_away_is_tried_by_one_dial_at_a_time(link: FaultProxy, make: Make, sshd: Sshd, seen: Seen) -> None:
    """However many sessions wait: the session whose turn is next makes each dial."""
    link.accept("silent")
    pool = make(*to(link), connections_max=8, wait_seconds=60, connect_seconds=60)
    first = Guest(pool, sshd)
    await wait_until_async(lambda: len(link.links) == 1)
    link.accept("refuse")
    link.reset()
    await wait_until_async(lambda: seen.results == ["handshake", "dial"])
    link.accept("silent")
    await wait_until_async(lambda: len(link.links) == 1)
    rest = [Guest(pool, sshd) for _ in range(5)]
    await stands(pool, dialing=1, waiting=5)
    assert len(link.links) == 1
    link.accept("forward")
    link.reset()
    await asyncio.gather(first.task, *(guest.task for guest in rest))


async def test_who_waits_too_long_for_a_host_that_is_away_reads_that_it_is_unavailable(
    link: FaultProxy, make: Make, sshd: Sshd, seen: Seen
) -> None:
    link.accept("refuse")
    pool = make(*to(link), wait_seconds=1)
    loop = asyncio.get_running_loop()
    began = loop.time()
    guests = [Guest(pool, sshd) for _ in range(3)]
    for guest in guests:
        error = await guest.fails()
        assert (type(error), error.reason) == (Unavailable, "dial")
    assert loop.time() - began >= 1
    assert seen.results.count("dial") >= 3


async def test_a_session_that_has_spent_its_wait_seconds_dials_once_and_reads_at_once(
    link: FaultProxy, make: Make, sshd: Sshd, seen: Seen
) -> None:
    link.accept("refuse")
    pool = make(*to(link), wait_seconds=3600)
    with pytest.raises(Unavailable) as told:
        async with pool.of("alice").lease(sshd.stub("exit/7"), [], "team/app", again=True, spent_seconds=3600):
            pass
    assert told.value.reason == "dial" and seen.results == ["dial"]


async def test_without_wait_seconds_each_session_dials_and_reads_at_once(link: FaultProxy, make: Make, sshd: Sshd, seen: Seen) -> None:
    link.accept("refuse")
    pool = make(*to(link))
    for count in (1, 2, 3):
        assert (await Guest(pool, sshd).fails()).reason == "dial"
        assert seen.results == ["dial"] * count
    assert seen.waits == []


async def test_a_session_that_another_upstream_may_serve_does_not_wait(link: FaultProxy, make: Make, sshd: Sshd, seen: Seen) -> None:
    """A replica that is away: each session tries it, because no other session would, and gets the failure at once."""
    link.accept("refuse")
    pool = make(*to(link), wait_seconds=3600)

    async def served() -> Connection:
        async with pool.of("alice").lease(sshd.stub("exit/7"), [], "team/app", patient=False) as connection:
            await Receiver(connection).ended
            return connection

    for count in (1, 2):
        with pytest.raises(Unavailable):
            await served()
        assert seen.results == ["dial"] * count
    pool.set_switches(True, NOTHING)
    with pytest.raises(Unavailable) as told:
        await served()
    assert told.value.reason == "paused"
    pool.set_switches(False, NOTHING)
    link.accept("forward")
    await served()


async def test_a_failure_that_does_not_pass_is_told_at_once(make: Make, sshd: Sshd, make_sshd: Callable[..., Sshd], seen: Seen) -> None:
    """A refused key, another host key, a host that allows no channel."""
    stranger, closed = make_sshd(), make_sshd(config=["MaxSessions 0"])
    limits = MemberLimits(1, 0, 300, 10, 15, wait_seconds=3600)
    known = login(stranger, private_key=sshd.key.private.read_bytes())
    for host, credentials, reason in ((stranger, known, "auth"), (stranger, login(sshd), "host_key"), (closed, login(closed), "channel")):
        pool = Pool("main", [(host.address, host.port)], credentials, limits, seen)
        for _ in range(2):
            error = await Guest(pool, sshd).fails()
            assert (type(error), error.reason) == (Unavailable, reason)
        await pool.close()


async def test_what_is_kept_of_a_failed_dial_holds_no_connection(link: FaultProxy, make: Make, sshd: Sshd) -> None:
    """The traceback of an error has the frames of the dial, and they have the connection and the session."""
    link.accept("refuse")
    pool = make(*to(link), wait_seconds=3600)
    guest = Guest(pool, sshd)
    await wait_until_async(lambda: pool.waiting == 1)
    [visit] = pool._gate._waiting
    assert visit.problem is not None
    for error in (*pool._gate._trouble.values(), visit.problem):
        assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)
    guest.task.cancel()
    await asyncio.wait([guest.task])


async def test_one_address_that_is_up_is_enough(link: FaultProxy, other: FaultProxy, make: Make, sshd: Sshd, seen: Seen) -> None:
    link.accept("refuse")
    pool = make(*to(link, other), wait_seconds=3600)
    assert (await Guest(pool, sshd).task).address == f"127.0.0.1:{other.port}"
    other.accept("refuse")
    other.reset()
    await stands(pool)
    waits = Guest(pool, sshd)
    await wait_until_async(lambda: pool.waiting == 1)
    other.accept("forward")
    assert (await waits.task).address == f"127.0.0.1:{other.port}"


async def test_idle_connections_of_a_host_that_takes_no_new_ones_serve(link: FaultProxy, make: Make, sshd: Sshd, seen: Seen) -> None:
    """As while sshd's listener restarts: its connections stay open."""
    pool = make(*to(link), connections_max=3, idle_connections=1, wait_seconds=3600)
    pool.start()
    await stands(pool, idle=1)
    link.accept("refuse")
    served = await serve(pool, sshd.stub("exit/7"))
    await wait_until_async(lambda: "dial" in seen.results)  # the dial of its replacement failed
    await wait_until_async(lambda: pool.states["idle"] == 1)
    for _ in range(3):
        assert await serve(pool, sshd.stub("exit/7")) is served
        await wait_until_async(lambda: pool.states["idle"] == 1)
    link.accept("forward")
    await stands(pool, idle=1)


async def test_a_host_that_is_back_is_not_stormed(link: FaultProxy, make: Make, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty wait, twenty may be served at once: they log in a few at a time."""
    link.accept("refuse")
    pool = make(*to(link), connections_max=20, wait_seconds=60, connect_seconds=60)
    guests = [Guest(pool, sshd, stay=True) for _ in range(20)]
    await wait_until_async(lambda: pool.waiting >= 19)
    most = Counter[str]()
    dial = Connection.dial

    async def counted(*arguments: Any) -> Connection:
        most["now"] += 1
        most["most"] = max(most["most"], most["now"])
        try:
            return await dial(*arguments)
        finally:
            most["now"] -= 1

    monkeypatch.setattr(Connection, "dial", counted)
    link.accept("forward")
    await stands(pool, leased=20)
    assert 1 < most["most"] <= relay.upstream.gate.DIALS_AT_ONCE
    for guest in guests:
        guest.go.set()
    await asyncio.gather(*(guest.task for guest in guests))


async def test_a_session_that_waited_for_its_turn_has_all_its_time_to_connect(link: FaultProxy, make: Make, sshd: Sshd, seen: Seen) -> None:
    """Else a dial that was cut short would count as a failure of the host."""
    pool = make(*to(link), connect_seconds=3)
    holder = Guest(pool, sshd, stay=True)
    await stands(pool, leased=1)
    waiting = Guest(pool, sshd)
    await stands(pool, leased=1, waiting=1)
    loop = asyncio.get_running_loop()
    came = loop.time()
    await asyncio.sleep(1)
    link.accept("silent")
    holder.task.cancel()
    error = await waiting.fails()
    assert error.reason == "timeout"
    assert loop.time() - came >= 4


async def test_a_pause_during_a_wait_has_its_own_time(make: Make, sshd: Sshd) -> None:
    """connect_seconds of waiting in line and wait_seconds of a pause are separate: neither uses up the other."""
    pool = make(connect_seconds=2, wait_seconds=3600)
    holder = Guest(pool, sshd, stay=True)
    await stands(pool, leased=1)
    waiting = Guest(pool, sshd)
    await stands(pool, leased=1, waiting=1)
    pool.set_switches(True, NOTHING)
    [visit] = pool._gate._waiting

    def left() -> tuple[str | None, float]:
        assert visit.limit is not None
        return visit.waits_for, (visit.limit.when() or 0) - asyncio.get_running_loop().time()

    assert left()[0] == "paused" and left()[1] > 3000
    pool.set_switches(False, NOTHING)
    assert left()[0] == "upstream" and left()[1] <= 2
    holder.go.set()
    await waiting.task


async def test_closing_ends_the_wait_of_everybody(make: Make, sshd: Sshd) -> None:
    for switches in (True, False):
        pool = make(wait_seconds=3600, connect_seconds=3600)
        holder = Guest(pool, sshd, stay=True)
        await stands(pool, leased=1)
        pool.set_switches(switches, NOTHING)
        waiting = Guest(pool, sshd)
        await stands(pool, leased=1, waiting=1)
        await pool.close()
        assert (await waiting.fails()).reason == "closing"
        assert (await Guest(pool, sshd).fails()).reason == "closing"
        holder.go.set()
        await holder.task
        await stands(pool)


async def test_two_upstreams_share_a_line(sshd: Sshd, seen: Seen) -> None:
    line = Line[Visit](per_identity=1)
    pools = [limited(sshd, seen, line, connections_max=5) for _ in range(2)]
    pools[1].name = "second"
    pools[1]._gate.name = "second"
    here = Guest(pools[0], sshd, stay=True)
    await stands(pools[0], leased=1)
    there = Guest(pools[1], sshd)
    await stands(pools[1], waiting=1)
    here.go.set()
    await there.task
    for pool in pools:
        await pool.close()


def test_limits_without_the_new_settings_wait_for_nothing() -> None:
    assert replace(MemberLimits(1, 0, 300, 10, 15), connections_max=2).wait_seconds == 0
