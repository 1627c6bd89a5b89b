"""A pool of several addresses, each a real sshd or a breakable link: which one serves, which is tried next, and which is not tried."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

import relay.upstream.breaker
from relay.errors import Unavailable
from relay.upstream.colleagues import Colleagues
from relay.upstream.hostkeys import HostKeys, parse_pinned
from relay.upstream.libssh2 import Login
from relay.upstream.member import Member
from relay.upstream.policy import order
from relay.upstream.pool import MemberLimits, Pool
from tests.support.faultproxy import FaultProxy
from tests.support.machine import free_port
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async
from tests.upstream.peers import Make, Receiver, Seen, login, serve, stands

REPOSITORIES = [f"team/app{number}" for number in range(12)]


@pytest.fixture
async def links(sshd: Sshd) -> AsyncIterator[list[FaultProxy]]:
    """Three links to the test sshd: three addresses for a pool. Requested before `make`, so that they outlive the pools."""
    async with FaultProxy(sshd.address, sshd.port) as a, FaultProxy(sshd.address, sshd.port) as b, FaultProxy(sshd.address, sshd.port) as c:
        yield [a, b, c]


def to(*links: FaultProxy) -> list[tuple[str, int]]:
    return [("127.0.0.1", link.port) for link in links]


def name(link: FaultProxy) -> str:
    return f"127.0.0.1:{link.port}"


def state(member: Member) -> str:
    return member.health.breaker.state


async def served(pool: Pool, sshd: Sshd, repository: str = "") -> str:
    """Runs one session; returns its address."""
    return (await serve(pool, sshd.stub("exit/7"), repository=repository)).address


# -- the next address ----------------------------------------------------------------------------------------------------


async def test_the_next_address_is_asked_when_one_refuses(make: Make, sshd: Sshd, seen: Seen) -> None:
    dead = free_port()
    pool = make(("127.0.0.1", dead), (sshd.address, sshd.port))
    assert await served(pool, sshd) == f"{sshd.address}:{sshd.port}"
    assert seen.dialed == [(f"127.0.0.1:{dead}", "dial"), (f"{sshd.address}:{sshd.port}", "ok")]
    assert (pool.up, [member.up for member in pool.members]) == (True, [False, True])
    assert seen.health == [(f"127.0.0.1:{dead}", False), (f"{sshd.address}:{sshd.port}", True)]


async def test_an_address_that_is_silent_has_its_share_of_the_time(links: list[FaultProxy], make: Make, sshd: Sshd, seen: Seen) -> None:
    silent, good, _ = links
    silent.accept("silent")
    pool = make(*to(silent, good), connect_seconds=8)
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert await served(pool, sshd) == name(good)
    assert loop.time() - started >= 4  # half of connect_seconds
    assert seen.dialed[0] == (name(silent), "timeout")
    assert await served(pool, sshd) == name(good)  # the pool knows by now that the silent one is down
    assert [address for address, _ in seen.dialed].count(name(silent)) == 1


async def test_a_command_not_accepted_in_time_moves_to_the_next_address(
    links: list[FaultProxy], make: Make, sshd: Sshd, seen: Seen
) -> None:
    """A warm connection to a host that has gone silent."""
    frozen, good, _ = links
    pool = make(*to(frozen, good), connect_seconds=8, idle_connections=1)
    pool.start()
    await stands(pool, idle=2)
    frozen.stall()
    assert await served(pool, sshd) == name(good)
    frozen.heal()


async def test_when_none_answers_the_error_names_each(make: Make, sshd: Sshd) -> None:
    ports = free_port(), free_port()
    pool = make(*(("127.0.0.1", port) for port in ports))
    for _ in range(2):  # the second time the pool knows that all are down, and tries them all the same
        with pytest.raises(Unavailable) as told:
            await serve(pool, sshd.stub("exit/7"))
        assert told.value.reason == "dial"
        assert all(f"127.0.0.1:{port}: " in str(told.value) for port in ports)
    assert pool.up is False


async def test_addresses_that_a_session_was_lost_at_are_left_out(links: list[FaultProxy], make: Make, sshd: Sshd) -> None:
    a, b, _ = links
    pool = make(*to(a, b))
    async with pool.lease(sshd.stub("exit/7"), [], "", [name(a)]) as connection:
        assert connection.address == name(b)
        await Receiver(connection).ended


async def test_a_session_waits_for_a_full_address(links: list[FaultProxy], make: Make, sshd: Sshd) -> None:
    """Else the writes of a host that is only busy would go to its standby."""
    a, b, _ = links
    pool, go = make(*to(a, b), connect_seconds=30), asyncio.Event()
    holder = asyncio.create_task(serve(pool, sshd.stub("exit/7"), go))
    await stands(pool, leased=1)
    waiting = asyncio.create_task(served(pool, sshd))
    await stands(pool, leased=1, waiting=1)
    go.set()
    assert await waiting == (await holder).address == name(a)


async def test_sessions_waiting_for_a_host_that_fails_move_to_the_next(links: list[FaultProxy], make: Make, sshd: Sshd) -> None:
    a, b, _ = links
    pool, go = make(*to(a, b), connect_seconds=30), asyncio.Event()
    holder = asyncio.create_task(serve(pool, sshd.stub("exit/7"), go))
    await stands(pool, leased=1)
    waiting = asyncio.create_task(served(pool, sshd))
    await stands(pool, leased=1, waiting=1)
    a.accept("refuse")
    a.reset()
    holder.cancel()  # its connection is gone, and no other can be dialed
    assert await waiting == name(b)


# -- policies ------------------------------------------------------------------------------------------------------------


async def test_least_sessions_balances(links: list[FaultProxy], make: Make, sshd: Sshd) -> None:
    pool, go = make(*to(*links), policy="least_sessions", connections_max=9), asyncio.Event()
    sessions = []
    for count in range(1, 10):
        sessions.append(asyncio.create_task(serve(pool, sshd.stub("exit/7"), go)))
        await wait_until_async(lambda: pool.states["leased"] == count)  # noqa: B023
    assert [member.states["leased"] for member in pool.members] == [3, 3, 3]
    go.set()
    await asyncio.gather(*sessions)
    await wait_until_async(lambda: pool.states["dialing"] == 0)
    turns = Counter([await served(pool, sshd) for _ in range(6)])  # one session at a time: the addresses take turns
    assert set(turns.values()) == {2}


async def test_hash_keeps_a_repository_at_its_host(links: list[FaultProxy], make: Make, sshd: Sshd) -> None:
    pool = make(*to(*links), policy="hash")
    homes = {repository: await served(pool, sshd, repository) for repository in REPOSITORIES}
    assert homes == {repository: order("hash", pool.members, repository)[0].address for repository in REPOSITORIES}
    lost = next(link for link in links if name(link) == homes[REPOSITORIES[0]])
    lost.accept("refuse")
    lost.reset()
    now = {repository: await served(pool, sshd, repository) for repository in REPOSITORIES}
    for repository, home in homes.items():
        assert now[repository] != name(lost)
        assert now[repository] == home or home == name(lost)


# -- the breaker ---------------------------------------------------------------------------------------------------------


async def test_a_host_that_fails_is_tried_again_by_one_dial_after_a_pause(
    links: list[FaultProxy], make: Make, sshd: Sshd, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay.upstream.breaker, "FIRST_PAUSE_SECONDS", 3600.0)  # until the test ends the pause
    monkeypatch.setattr(relay.upstream.breaker, "MOST_PAUSE_SECONDS", 3600.0)
    a, b, _ = links
    pool = make(*to(a, b), health_fall=2, connections_max=4)
    first = pool.members[0]
    assert await served(pool, sshd) == name(a)
    a.accept("refuse")
    a.reset()
    await stands(pool)
    for _ in range(5):
        assert await served(pool, sshd) == name(b)
    failed = [result for address, result in seen.dialed if address == name(a)]
    assert failed[:1] == ["ok"] and len(failed) == 1 + 2 and "ok" not in failed[1:]  # no session dialed it after the second failure
    assert (first.up, state(first)) == (False, "open")

    def pause_is_over() -> None:
        assert first._retry is not None
        first._retry.cancel()
        first._retry_now()

    pause_is_over()
    assert state(first) == "half-open"
    assert await served(pool, sshd) == name(b)  # no session waits for the trial
    await wait_until_async(lambda: state(first) == "open")
    assert len([address for address, _ in seen.dialed if address == name(a)]) == 1 + 2 + 1
    a.accept("forward")
    pause_is_over()
    await wait_until_async(lambda: first.up)
    assert await served(pool, sshd) == name(a)  # the address serves again
    assert seen.health[-2:] == [(name(a), False), (name(a), True)]


# -- checks --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def other(make_sshd: Callable[..., Sshd]) -> Iterator[Sshd]:
    """A host with another host key, which accepts the same login."""
    yield make_sshd()


def pinned(*hosts: Sshd) -> HostKeys:
    return parse_pinned([host.host_key_line for host in hosts])[0]


async def test_a_host_with_another_host_key_is_down_and_never_used(
    sshd: Sshd, other: Sshd, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    other.authorize(sshd.key.line)
    limits = MemberLimits(2, 1, 300, 10, 15, health_seconds=0.05)
    pool = Pool("main", [(other.address, other.port), (sshd.address, sshd.port)], login(sshd), limits, seen)
    pool.start()
    try:
        await wait_until_async(lambda: (f"{other.address}:{other.port}", False) in seen.health)
        for _ in range(3):
            assert await served(pool, sshd) == f"{sshd.address}:{sshd.port}"
        [line] = [said for said in caplog.messages if " is down: " in said]
        assert f"HOST KEY MISMATCH: offered {other.host_key.fingerprint}, pinned {sshd.host_key.fingerprint}" in line
        assert other.logins() == 0
    finally:
        await pool.close()


async def test_checks_find_an_unused_standby_down_and_up_again(links: list[FaultProxy], make: Make, sshd: Sshd, seen: Seen) -> None:
    a, b, _ = links
    pool, mark = make(*to(a, b), health_seconds=0.02, health_fall=2, health_rise=2), sshd.log_mark()
    pool.start()
    await wait_until_async(lambda: pool.up and all(member.up for member in pool.members))
    b.accept("refuse")
    await wait_until_async(lambda: pool.members[1].up is False)
    assert (pool.up, pool.members[0].up) == (True, True)
    b.accept("forward")
    await wait_until_async(lambda: pool.members[1].up)
    assert seen.health[-2:] == [(name(b), False), (name(b), True)]
    assert sshd.logins(mark) == 0  # a check does not log in


async def test_a_host_that_answers_but_refuses_logins_is_down_until_it_accepts_one(make: Make, sshd: Sshd, other: Sshd, seen: Seen) -> None:
    keys = Login(user=sshd.user, private_key=sshd.key.private.read_bytes(), host_keys=pinned(sshd, other))
    limits = MemberLimits(2, 0, 300, 10, 15, health_seconds=0.02)
    pool = Pool("main", [(other.address, other.port)], keys, limits, seen)
    pool.start()
    try:
        await wait_until_async(lambda: pool.up)  # checks found it up
        for _ in range(3):
            with pytest.raises(Unavailable) as told:
                await serve(pool, sshd.stub("exit/7"))
            assert told.value.reason == "auth"
        await wait_until_async(lambda: pool.up is False)
        other.authorize(sshd.key.line)
        await wait_until_async(lambda: pool.up)  # found by a check, not by a session
    finally:
        await pool.close()


# -- checks that cost the git host no connection ---------------------------------------------------------------------------


async def test_checks_use_warm_connections_instead_of_a_key_exchange(make: Make, sshd: Sshd) -> None:
    """OpenSSH from 9.8 on counts a connection without a login against the relay's address."""
    mark = sshd.log_mark()
    pool = make(connections_max=2, idle_connections=1, health_seconds=0.02)
    outcomes: list[Unavailable | None] = []
    [member] = pool.members
    tell = member._after_check

    def after(error: Unavailable | None) -> None:
        outcomes.append(error)
        tell(error)

    member._after_check = after  # type: ignore[method-assign]
    pool.start()
    await wait_until_async(lambda: len(outcomes) > 5)
    member.health.logged_in = -1e9  # as if the last login was long ago
    before = len(outcomes)
    await wait_until_async(lambda: len(outcomes) > before + 5)
    assert set(outcomes) == {None}
    assert member._idle[0][1]._inputs > 0, "it was asked, and answered"
    assert sshd.connections(mark) == sshd.logins(mark) == 1


async def test_a_check_survives_that_all_idle_connections_close_while_it_asks_the_first(make_sshd: Callable[..., Sshd], seen: Seen) -> None:
    """As when the operator pauses the upstream, or when the git host's machine goes away."""
    host = make_sshd()
    limits = MemberLimits(2, 2, 300, 10, 15)
    pool = Pool("main", [(host.address, host.port)], login(host), limits, seen)
    [member] = pool.members
    pool.start()
    try:
        await wait_until_async(lambda: pool.states["idle"] == 2)
        first = member._idle[0][1]
        host.freeze()
        member.health.logged_in = -1e9
        check = asyncio.ensure_future(member._check(0.0))
        await wait_until_async(lambda: first._answered is not None)
        member.shut(True)
        host.thaw()
        assert await check  # by a key exchange, as no connection is left
    finally:
        host.thaw()
        await pool.close()


async def test_output_of_a_running_command_passes_the_check(make: Make, sshd: Sshd) -> None:
    mark = sshd.log_mark()
    pool = make(health_seconds=0.02)
    [member] = pool.members
    async with pool.lease(sshd.stub("hang"), []) as connection:
        Receiver(connection)
        member.health.logged_in = -1e9
        assert await member._check(0.001)
        connection.close()
    assert sshd.connections(mark) == 1


async def test_a_stopped_host_is_down_though_it_had_warm_connections(make_sshd: Callable[..., Sshd], seen: Seen) -> None:
    host = make_sshd()
    limits = MemberLimits(2, 1, 300, 0.3, 15, health_seconds=0.02, health_fall=1)
    pool = Pool("main", [(host.address, host.port)], login(host), limits, seen)
    pool.start()
    try:
        await wait_until_async(lambda: pool.up and pool.states["idle"] == 1)
        host.freeze()
        await wait_until_async(lambda: pool.up is False)
        host.thaw()
        await wait_until_async(lambda: pool.up)
    finally:
        host.thaw()
        await pool.close()


async def test_a_host_without_news_is_probed_by_the_chosen_worker(sshd: Sshd, seen: Seen) -> None:
    mark = sshd.log_mark()
    chosen, other = Colleagues(), Colleagues()
    chosen.connect(other.told)
    other.connect(chosen.told)
    chosen.probing = True
    limits = MemberLimits(1, 0, 300, 10, 15, health_seconds=0.05)
    pools = [Pool("main", [(sshd.address, sshd.port)], login(sshd), limits, seen, colleagues) for colleagues in (chosen, other)]
    pools[1].start()
    await wait_until_async(lambda: other._listeners)
    assert await pools[1].members[0]._check(0.0) is False
    assert (sshd.connections(mark), pools[1].up) == (0, None)
    pools[0].start()
    await wait_until_async(lambda: pools[0].up and pools[1].up, message="the other is told")
    for pool in pools:
        await pool.close()
    assert sshd.logins(mark) == 0
