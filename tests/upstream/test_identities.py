"""Pools of identities in front of a real sshd that trusts the relay's CA: the identity it sees, no sharing, and how many pools are kept."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest

from relay.config import UserCertificateSettings
from relay.errors import HostBusy, IdentityBusy, Unavailable
from relay.upstream.colleagues import Colleagues, HostNews
from relay.upstream.hostkeys import parse_pinned
from relay.upstream.identities import IdentityPools
from relay.upstream.libssh2 import Connection
from relay.upstream.member import MemberLimits
from relay.upstream.user_certificate import Signer
from tests.support.faultproxy import FaultProxy
from tests.support.keys import Key, make_key
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async
from tests.upstream.peers import EMPTY, Receiver, Seen, end

PEOPLE = ("alice", "bob", "carol")
LIMITS = MemberLimits(connections_max=64, idle_connections=4, idle_seconds=300, connect_seconds=20, keepalive_seconds=15)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("ca"), "relay_ca")


@pytest.fixture(scope="module")
def trusting(sshd_installed: None, ca: Key, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """An sshd that accepts the relay's certificates for PEOPLE; mallory is not among them."""
    folder: Path = tmp_path_factory.mktemp("principals")
    (folder / "principals").write_text("".join(f"{name}\n" for name in PEOPLE))
    folder.chmod(0o755)
    with Sshd(config=[f"TrustedUserCAKeys {ca.public}", f"AuthorizedPrincipalsFile {folder}/principals"]) as sshd:
        yield sshd


@asynccontextmanager
async def opened(
    sshd: Sshd,
    ca: Key,
    *addresses: tuple[str, int],
    seen: Seen | None = None,
    limits: MemberLimits = LIMITS,
    clock: Callable[[], float] = time.time,
    colleagues: Colleagues | None = None,
    **settings: Any,
) -> AsyncIterator[IdentityPools]:
    given = UserCertificateSettings(ca_key="relay_ca", **settings)
    signer = Signer(given, ca.load(), sshd.user, parse_pinned([sshd.host_key_line])[0], clock)
    pools = IdentityPools("main", list(addresses) or [(sshd.address, sshd.port)], signer.login, limits, given, seen or Seen(), colleagues)
    pools.start()
    try:
        yield pools
    finally:
        await pools.close()
        assert pools.states == EMPTY


PORTS: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()  # by `note_port`


def note_port(connection: Connection) -> int:
    """After its session a connection may be closed at any time, for another identity's sake."""
    if connection not in PORTS:
        with socket.socket(fileno=os.dup(connection._fd)) as sock:
            PORTS[connection] = sock.getsockname()[1]
    return PORTS[connection]


def who(sshd: Sshd, connection: Connection) -> str:
    """The certificate ID of this connection in sshd's log."""
    line = rf"Accepted publickey for \S+ from \S+ port {note_port(connection)} ssh2: ED25519-CERT \S+ ID (\S+) \(serial \d+\) CA"
    return str(re.findall(line, sshd.log_text())[-1])


async def session(pools: IdentityPools, sshd: Sshd, identity: str, stub: str = "exit/7") -> Connection:
    """Runs a session to its end; returns its connection, which is idle again."""
    async with pools.of(identity).lease(sshd.stub(stub), []) as connection:
        note_port(connection)
        await end(Receiver(connection))
    await wait_until_async(lambda: pools.states["dialing"] == 0)
    return connection


async def session_of(pools: IdentityPools, sshd: Sshd, identity: str) -> Connection:
    """Runs a session to its end, whatever other sessions do."""
    async with pools.of(identity).lease(sshd.stub("exit/7"), []) as connection:
        note_port(connection)
        await end(Receiver(connection))
    return connection


async def test_sshd_learns_the_identity_from_the_certificate(trusting: Sshd, ca: Key) -> None:
    mark = trusting.log_mark()
    async with opened(trusting, ca) as pools:
        for name in PEOPLE:
            assert who(trusting, await session(pools, trusting, name)) == name
    said = re.findall(r"Accepted publickey for (\S+) from .* ID (\S+) \(serial (\d+)\) CA ED25519 (\S+)", trusting.log_text(mark))
    assert [(user, name, ca_key) for user, name, _, ca_key in said] == [(trusting.user, name, ca.fingerprint) for name in PEOPLE]
    assert len({serial for _, _, serial, _ in said}) == 3


async def test_no_connection_is_ever_another_identity_s(trusting: Sshd, ca: Key) -> None:
    """Many sessions of several people, at once and one after another, with fewer places than people."""
    used: dict[int, set[str]] = {}
    alive: list[Connection] = []  # keeps the connections, so that no id() is reused

    async def work(pools: IdentityPools, name: str, number: int) -> None:
        served = 0
        while served < 4:
            try:
                async with pools.of(name).lease(trusting.stub(f"emit/{100 + served}/1"), []) as connection:
                    assert who(trusting, connection) == name
                    used.setdefault(id(connection), set()).add(name)
                    alive.append(connection)
                    await end(Receiver(connection))
                    served += 1
            except HostBusy as error:
                assert error.reason == "upstream", error
            await asyncio.sleep(0.02 * (number % 3))

    async with opened(trusting, ca, identities_max=2, connections_max=2) as pools:
        await asyncio.gather(*(work(pools, name, number) for number, name in enumerate(PEOPLE * 3)))
        assert len(pools._kept) <= 2
    assert all(len(names) == 1 for names in used.values())
    assert {name for names in used.values() for name in names} == set(PEOPLE)
    assert len(alive) > len(used), "connections were used again"


async def test_a_connection_is_used_again_by_the_same_identity(trusting: Sshd, ca: Key) -> None:
    seen = Seen()
    async with opened(trusting, ca, seen=seen) as pools:
        first = await session(pools, trusting, "alice")
        assert await session(pools, trusting, "bob") is not first
        assert await session(pools, trusting, "alice") is first
        assert (seen.results, seen.warm) == (["ok", "ok"], [False, False, True])
        assert pools.states == {**EMPTY, "idle": 2}
        assert repr(pools) == "<pools main identities=2 idle=2 leased=0 dialing=0 waiting=0>"


async def test_an_expired_certificate_is_followed_by_a_new_one(trusting: Sshd, ca: Key) -> None:
    """Each login gets a new certificate: one signed by a clock that is an hour late is refused, the next is accepted."""
    late = 3600.0
    async with opened(trusting, ca, clock=lambda: time.time() - late, refused_seconds=0) as pools:
        with pytest.raises(Unavailable) as told:
            await session(pools, trusting, "alice")
        assert told.value.reason == "auth"
        assert "compare the clocks (date -u): it is " in str(told.value)
        late = 0
        assert who(trusting, await session(pools, trusting, "alice")) == "alice"


async def test_an_identity_that_is_refused_does_not_affect_others(trusting: Sshd, ca: Key) -> None:
    seen = Seen()
    async with opened(trusting, ca, seen=seen) as pools:
        for _ in range(5):  # more than take an address down
            with pytest.raises(Unavailable) as told:
                await session(pools, trusting, "mallory")
            assert told.value.reason == "auth"
        assert (seen.health, pools.up) == ([], None)
        assert who(trusting, await session(pools, trusting, "alice")) == "alice"


async def test_a_certificate_that_is_refused_costs_one_login(trusting: Sshd, ca: Key) -> None:
    """However many sessions its owner begins, at once and later, and also in the other workers."""
    mark = trusting.log_mark()
    colleagues = Colleagues()
    sent: list[HostNews] = []
    colleagues.connect(sent.append)
    async with opened(trusting, ca, colleagues=colleagues, refused_seconds=60) as pools, opened(trusting, ca, refused_seconds=60) as other:
        tries = await asyncio.gather(*(session(pools, trusting, "mallory") for _ in range(10)), return_exceptions=True)
        tries += await asyncio.gather(session(pools, trusting, "mallory"), return_exceptions=True)
        assert [error.reason for error in tries if isinstance(error, Unavailable)] == ["auth"] * 11
        assert re.search(r"was refused: .*; not tried again for \d+ s", str(tries[-1]))
        [news] = [news for news in sent if news.identity]
        assert (news.identity, news.reason, news.seconds) == ("mallory", "auth", 60)
        other._colleagues.told(news)
        with pytest.raises(Unavailable, match="not tried again"):
            await session(other, trusting, "mallory")
        assert who(trusting, await session(pools, trusting, "alice")) == "alice"
    assert trusting.connections(mark) == 2, "alice's, and one of mallory's, which OpenSSH from 9.8 on counts against the relay's address"


async def test_a_certificate_that_is_refused_is_tried_again_later(trusting: Sshd, ca: Key) -> None:
    late = 3600.0
    async with opened(trusting, ca, clock=lambda: time.time() - late, refused_seconds=0.2) as pools:
        with pytest.raises(Unavailable):
            await session(pools, trusting, "alice")
        late = 0

        async def served() -> bool:
            try:
                await session(pools, trusting, "alice")
            except Unavailable:
                return False
            return True

        await wait_until_async(served)


async def test_the_connections_of_identities_tell_that_the_address_is_up(trusting: Sshd, ca: Key) -> None:
    mark = trusting.log_mark()
    limits = replace(LIMITS, health_seconds=0.01)
    colleagues = Colleagues()
    colleagues.connect(lambda news: None)  # so that this worker does not probe
    async with opened(trusting, ca, limits=limits, colleagues=colleagues) as pools:
        assert pools.up is None
        await session(pools, trusting, "alice")
        await wait_until_async(lambda: pools.up)
    assert trusting.connections(mark) == trusting.logins(mark) == 1


async def test_the_identity_longest_without_a_session_loses_its_connections(trusting: Sshd, ca: Key) -> None:
    async with opened(trusting, ca, identities_max=2) as pools:
        alice = await session(pools, trusting, "alice")
        bob = await session(pools, trusting, "bob")
        assert await session(pools, trusting, "alice") is alice
        await session(pools, trusting, "carol")
        assert list(pools._kept) == ["alice", "carol"]
        await wait_until_async(lambda: not bob.usable)
        assert await session(pools, trusting, "alice") is alice


async def test_an_identity_with_a_session_keeps_its_place_and_another_waits(trusting: Sshd, ca: Key) -> None:
    async with opened(trusting, ca, identities_max=1) as pools:
        async with pools.of("alice").lease(trusting.stub("exit/7"), []) as connection:
            bob = asyncio.create_task(session(pools, trusting, "bob"))
            await wait_until_async(lambda: pools.waiting == 1)
            alice = asyncio.create_task(session(pools, trusting, "alice"))  # she has a place, but bob waits in front of her
            await wait_until_async(lambda: pools.waiting == 2)
            await end(Receiver(connection))
        assert who(trusting, await bob) == "bob"
        assert who(trusting, await alice) == "alice"


async def test_an_identity_that_never_stops_makes_room_for_another(trusting: Sshd, ca: Key) -> None:
    """alice always has a session: bob is served only once the gate gives her no further place."""
    async with opened(trusting, ca, identities_max=1) as pools:
        stop = asyncio.Event()

        async def keep_busy() -> None:
            while not stop.is_set():
                async with pools.of("alice").lease(trusting.stub("exit/7"), []) as connection:
                    await end(Receiver(connection))

        alice = [asyncio.create_task(keep_busy()) for _ in range(3)]
        await wait_until_async(lambda: pools.states["leased"] == 3)
        for _ in range(3):
            assert who(trusting, await session_of(pools, trusting, "bob")) == "bob"
        stop.set()
        await asyncio.gather(*alice)


async def test_who_makes_room_for_somebody_that_leaves_the_line_goes_on(trusting: Sshd, ca: Key) -> None:
    async with opened(trusting, ca, identities_max=1) as pools, pools.of("alice").lease(trusting.stub("exit/7"), []) as connection:
        bob = asyncio.create_task(session(pools, trusting, "bob"))
        await wait_until_async(lambda: pools.waiting == 1)
        alice = asyncio.create_task(session_of(pools, trusting, "alice"))
        await wait_until_async(lambda: pools.waiting == 2)
        bob.cancel()
        await asyncio.wait([bob])
        assert await alice is not connection
        await end(Receiver(connection))


async def test_each_limit_of_an_identity_s_connections_has_its_reason(trusting: Sshd, ca: Key) -> None:
    limits = replace(LIMITS, connect_seconds=1.5)
    pools_of_one = opened(trusting, ca, limits=limits, identities_max=1, connections_max=1)
    async with pools_of_one as pools, pools.of("alice").lease(trusting.stub("exit/7"), []) as connection:
        with pytest.raises(IdentityBusy):
            await session(pools, trusting, "alice")
        with pytest.raises(HostBusy) as told:
            await session(pools, trusting, "bob")
        assert told.value.reason == "upstream"
        await end(Receiver(connection))


async def test_a_pause_holds_for_identities_that_come_later(trusting: Sshd, ca: Key) -> None:
    async with opened(trusting, ca, limits=replace(LIMITS, wait_seconds=60)) as pools:
        alice = await session(pools, trusting, "alice")
        pools.set_switches(True, frozenset())
        assert not alice.usable
        waiting = [asyncio.create_task(session_of(pools, trusting, name)) for name in ("alice", "bob")]
        await wait_until_async(lambda: pools.waiting == 2)
        [row] = pools.table()
        assert (pools.paused, row.leased, row.idle, row.dialing) == (True, 0, 0, 0)
        pools.set_switches(False, frozenset())
        assert [who(trusting, one) for one in await asyncio.gather(*waiting)] == ["alice", "bob"]


async def test_a_host_that_is_away_is_tried_for_all_identities_by_one(trusting: Sshd, ca: Key) -> None:
    seen = Seen()
    async with FaultProxy(trusting.address, trusting.port) as link:
        link.accept("refuse")
        limits = replace(LIMITS, wait_seconds=60)
        async with opened(trusting, ca, ("127.0.0.1", link.port), seen=seen, limits=limits) as pools:
            first = asyncio.create_task(session_of(pools, trusting, "alice"))
            await wait_until_async(lambda: pools.waiting == 1)
            rest = [asyncio.create_task(session_of(pools, trusting, name)) for name in ("bob", "carol", "bob")]
            await wait_until_async(lambda: seen.results.count("dial") >= 5)
            assert pools.states["dialing"] <= 1
            link.accept("forward")
            served = await asyncio.gather(first, *rest)
            assert len(served) == 4 and {"ok", "dial"} == set(seen.results)


async def test_an_identity_without_sessions_is_forgotten_after_a_while(trusting: Sshd, ca: Key) -> None:
    async with opened(trusting, ca, idle_seconds=0.2) as pools:
        connection = await session(pools, trusting, "alice")
        await wait_until_async(lambda: not pools._kept and not connection.usable)
        assert pools.states == EMPTY
        async with pools.of("alice").lease(trusting.stub("exit/7"), []) as another:
            assert who(trusting, another) == "alice"  # not at the session's end: the pool may have been dropped by then
            await end(Receiver(another))


async def test_checks_are_made_once_for_all_and_spare_each_identity_a_dead_address(trusting: Sshd, ca: Key) -> None:
    seen = Seen()
    limits = replace(LIMITS, health_seconds=0.1, health_fall=1)
    async with FaultProxy(trusting.address, trusting.port) as a, FaultProxy(trusting.address, trusting.port) as b:
        a.accept("refuse")
        async with opened(trusting, ca, ("127.0.0.1", a.port), ("127.0.0.1", b.port), seen=seen, limits=limits) as pools:
            await wait_until_async(lambda: [member.up for member in pools.members] == [False, True])
            for name in PEOPLE:
                connection = await session(pools, trusting, name)
                assert connection.address == f"127.0.0.1:{b.port}"
            assert {address for address, _ in seen.dialed} == {f"127.0.0.1:{b.port}"}
            assert pools.up and sorted(seen.health) == sorted([(f"127.0.0.1:{a.port}", False), (f"127.0.0.1:{b.port}", True)])


async def test_closed_pools_serve_no_session(trusting: Sshd, ca: Key) -> None:
    async with opened(trusting, ca) as pools:
        connection = await session(pools, trusting, "alice")
    assert not connection.usable
    with pytest.raises(Unavailable, match="closing"):
        await session(pools, trusting, "alice")
