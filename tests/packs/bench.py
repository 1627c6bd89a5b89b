"""One session with a Desk, its client and its git hosts in memory, and a real store: for the tests of relay/packs that need no peer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from relay.errors import RelayError
from relay.events import ConnectionRecord, Observer, SessionRecord
from relay.git.conversation import VERSION_2
from relay.git.pktline import pkt_line
from relay.intercept import intercept
from relay.model import Command, Exit, Grant, Identity
from relay.packs.delivery import Delivery
from relay.packs.desk import Desk, Packs
from relay.packs.fill import Fills, Order
from relay.packs.store import Store
from relay.splice import Splice
from relay.ssh.backpressure import Budget
from relay.upstream.libssh2 import Connection
from tests.support.wait import wait_until_async
from tests.test_replay import Judge
from tests.test_splice import Client, Upstream

A, B, C = b"a" * 40, b"b" * 40, b"c" * 40
FLUSH = b"0000"
OK = Exit(status=0)
ADVERTISEMENT = VERSION_2 + pkt_line(b"agent=git/2.39.5\n") + pkt_line(b"ls-refs=unborn\n") + pkt_line(b"fetch=shallow filter\n") + FLUSH
LS = pkt_line(b"command=ls-refs\n") + b"0001" + pkt_line(b"peel\n") + FLUSH
REFS = pkt_line(A + b" refs/heads/main\n") + pkt_line(B + b" refs/tags/v1\n") + FLUSH
PACKFILE, PROGRESS, KEEPALIVE = pkt_line(b"packfile\n"), pkt_line(b"\2Counting\r"), pkt_line(b"\1")
SHALLOW = pkt_line(b"shallow-info\n") + pkt_line(b"shallow " + A + b"\n") + b"0001"
PACK = [pkt_line(b"\1PACK" + bytes(100)), pkt_line(b"\1" + b"x" * 5000)]
ANSWER = PACKFILE + b"".join(PACK) + FLUSH
EMPTY_PACK = PACKFILE + pkt_line(b"\1PACK" + bytes(28)) + FLUSH
ERR = pkt_line(b"ERR upload-pack: not our ref " + C)


def fetch(*wants: bytes, done: bool = True, more: tuple[bytes, ...] = ()) -> bytes:
    """A fetch request of these wants, with more arguments."""
    lines = [b"ofs-delta\n", *more, *(b"want " + want + b"\n" for want in wants), *([b"done\n"] if done else [])]
    return pkt_line(b"command=fetch") + b"0001" + b"".join(map(pkt_line, lines)) + FLUSH


class Told(Observer):
    """What the observer hears of packs."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.bytes: dict[str, int] = {"in": 0, "out": 0}

    def packs_asked(self, session: SessionRecord, result: str) -> None:
        self.asked.append(result)

    def packs_bytes(self, direction: str, count: int) -> None:
        self.bytes[direction] += count


class Bench:
    """What the sessions of one worker share."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        options = {"max_bytes": 1 << 30, "free_bytes": 0, "ttl_seconds": 300, "first": True, **settings}
        self.store = Store(folder, **options)
        self.told = Told()
        self.fills = Fills(self.told, Budget(1 << 30).share)
        self.packs = Packs(self.store, self.fills, self.told)
        self.hosts: list[Upstream] = []  # of fills
        self.refusals: list[RelayError] = []  # of the next leases of fills
        self.given_back: list[bool] = []  # of each lease of a fill that has ended: whether its connection may serve again

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Connection]:
        if self.refusals:
            raise self.refusals.pop(0)
        host = Upstream()
        self.hosts.append(host)
        try:
            yield cast(Connection, host)
        except BaseException:
            self.given_back.append(False)
            raise
        self.given_back.append(True)

    async def host(self, number: int = 0) -> Upstream:
        """The git host of a fill, once it was asked."""
        await wait_until_async(lambda: len(self.hosts) > number and self.hosts[number].peer is not None, message="a fill has its git host")
        return self.hosts[number]

    def order(self, upstream: str) -> Order:
        return Order(upstream, "/srv/app.git", "", self.lease)

    async def close(self) -> None:
        await self.fills.close()
        self.store.close()


def says(host: Upstream, *data: bytes) -> None:
    assert host.peer is not None
    for part in data:
        host.peer.upstream_data(memoryview(part))


class Session:
    """A client with its Desk, and what carries its bytes: one Splice after another, or a Delivery."""

    def __init__(self, bench: Bench, *, yes: bool = True, room: int = 1 << 30) -> None:
        identity = Identity(name="alice", fingerprint="SHA256:x")
        self.record = SessionRecord(id="1-1", connection=ConnectionRecord(id="1", address="127.0.0.1", port=1), identity=identity)
        command = self.record.command = Command(service="git-upload-pack", repository="team/app", protocol="version=2")
        self.record.upstream = "main"
        self.client, self.judge = Client(room), Judge(yes)
        self.desk = Desk(command, self.judge, bench.packs, self.record, bench.order)
        self.reader = intercept(command, Grant(access="read"), self.record, 60)
        self.splice: Splice | None = None
        self.delivery: Delivery | None = None
        self.running: asyncio.Task[Exit | None] | None = None
        self.early: list[bytes] = []
        self.connect()

    def connect(self) -> None:
        """Another connection to a git host."""
        self.upstream = Upstream()
        before = self.splice
        reader = self.reader if before is None else before.interceptor
        self.splice = Splice(self.client, self.upstream, self.record, 60, reader, replay=self.desk, before=before)
        early, self.early = self.early, []
        self.asks(*early)

    def asks(self, *data: bytes) -> None:
        for part in data:
            carrier = self.delivery if self.delivery is not None else self.splice
            assert carrier is not None
            carrier.client_data(part)

    def host(self, *data: bytes) -> None:
        says(self.upstream, *data)

    def asked(self) -> bytes:
        """What the present git host was asked since the last call."""
        self.upstream.taken, taken = b"", self.upstream.waiting
        self.upstream.waiting = b""
        return taken

    async def ended(self, how: Exit | RelayError = OK) -> Exit | RelayError:
        """The git host has ended; how the Splice did."""
        assert self.splice is not None
        self.splice.upstream_ended(how)
        return await self.left()

    async def left(self) -> Exit | RelayError:
        assert self.splice is not None
        try:
            async with asyncio.timeout(60):
                how: Exit | RelayError = await self.splice.run()
        except RelayError as error:
            how = error.with_traceback(None)
        self.early = self.splice.late
        return how

    async def parks(self) -> None:
        """The git host reads that nothing more is asked for, and exits; the entry is sent from now on."""
        assert self.asked() == FLUSH
        await self.ended()
        assert self.splice is not None and self.splice.moved and self.desk.parked
        self.deliver()

    def deliver(self, stall_seconds: float = 60.0, idle_seconds: float = 60.0) -> None:
        self.delivery = Delivery(self.client, self.desk, self.record, stall_seconds, idle_seconds)
        early, self.early = self.early, []
        self.asks(*early)
        self.running = asyncio.ensure_future(self.delivery.run())
        self.running.add_done_callback(lambda task: task.cancelled() or task.exception())  # a test may not ask for `outcome`

    async def outcome(self) -> Exit | RelayError | None:
        """How the Delivery ended."""
        assert self.running is not None and self.delivery is not None
        try:
            async with asyncio.timeout(60):
                how: Exit | RelayError | None = await self.running
        except RelayError as error:
            how = error.with_traceback(None)
        self.early, self.delivery = self.delivery.late, None
        return how

    async def reads(self, text: bytes) -> None:
        """The client has read so much after the refs."""
        await wait_until_async(lambda: self.output == text, message=f"the client reads {text[:60]!r}")

    @property
    def output(self) -> bytes:
        """What the client has read but for advertisement and refs."""
        return self.client.stdout.removeprefix(ADVERTISEMENT).removeprefix(REFS)


def listed(bench: Bench, **options: Any) -> Session:
    """A session that has the refs."""
    session = Session(bench, **options)
    session.host(ADVERTISEMENT)
    session.asks(LS)
    assert session.asked() == LS
    session.host(REFS)
    return session


async def kept(bench: Bench, request: bytes = b"", answer: bytes = ANSWER) -> None:
    """The answer to `request` is in the store; by default to a fetch of main."""
    session = listed(bench)
    session.asks(request or fetch(A))
    await session.parks()
    host = await bench.host(len(bench.hosts))
    says(host, ADVERTISEMENT, answer)
    host.peer.upstream_ended(Exit(status=0))  # type: ignore[union-attr]
    await session.reads(answer)
    session.asks(FLUSH)
    assert await session.outcome() == Exit(status=0)
    session.desk.close()
    bench.told.asked.clear()
