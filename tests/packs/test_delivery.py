"""An entry on its way to one client: at the client's pace, whole or lost; another goes on as long as no pack data was passed on."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator

import pytest

from relay.errors import ClientGone, ClientIdle, Ended, Lost, RelayError, Stalled, Unavailable
from relay.git.pktline import pkt_line
from relay.model import Exit
from relay.packs import delivery as module
from relay.packs import entry
from relay.packs.delivery import READS_A_TURN
from relay.packs.entry import Damaged, Header
from relay.packs.store import READ_BYTES
from tests.packs.bench import (
    ADVERTISEMENT,
    ANSWER,
    FLUSH,
    KEEPALIVE,
    LS,
    OK,
    PACK,
    PACKFILE,
    PROGRESS,
    SHALLOW,
    A,
    Bench,
    Session,
    fetch,
    kept,
    listed,
    says,
)
from tests.support.wait import wait_until_async

BIG = PACKFILE + b"".join(pkt_line(b"\1" + random.Random(number).randbytes(65_000)) for number in range(60)) + FLUSH
CUT = Lost("cut")


async def hit(bench: Bench, answer: bytes = ANSWER, room: int = 1 << 30) -> Session:
    """A session that is sent a whole entry."""
    await kept(bench, answer=answer)
    session = listed(bench, room=room)
    session.client.waiting = 0
    session.asks(fetch(A))
    await session.parks()
    return session


async def filling(bench: Bench, *more: bytes) -> Session:
    """A session that reads an entry along that it fills, and whose git host has said nothing yet."""
    session = listed(bench)
    session.asks(fetch(A, more=more))
    number = len(bench.hosts)
    await session.parks()
    await bench.host(number)
    return session


# -- how it ends ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["flush", "eof", "flush in two", "flush and eof"])
async def test_a_client_that_has_ended_its_requests_ends_well(bench: Bench, way: str) -> None:
    session = await hit(bench)
    assert session.delivery is not None
    if "flush" in way:  # some clients send it before they have read the answer
        for part in (FLUSH[:2], FLUSH[2:]) if "two" in way else (FLUSH,):
            session.asks(part)
    if "eof" in way:
        session.delivery.client_eof()
    assert await session.outcome() == OK
    assert session.output == ANSWER
    assert session.record.bytes_in == len(LS) + len(fetch(A)) + (len(FLUSH) if "flush" in way else 0)
    assert session.record.bytes_out == len(session.client.stdout)
    assert session.record.served_by == "cache"
    assert bench.told.bytes["out"] == 2 * len(ANSWER)


async def test_a_client_that_closes_after_the_last_byte_ends_well(bench: Bench) -> None:
    session = await hit(bench)
    await session.reads(ANSWER)
    assert session.delivery is not None
    session.delivery.client_gone("closed")
    assert await session.outcome() == Exit()


@pytest.mark.parametrize("when", ["before", "cut", "asking"])
async def test_a_client_that_leaves_earlier_is_gone(bench: Bench, when: str) -> None:
    session = await hit(bench, BIG, room=100_000)
    assert session.delivery is not None
    if when != "before":
        session.client.room = 1 << 30
        session.delivery.client_drained()
        await session.reads(BIG)
        session.client.cut = when == "cut"
        if when == "asking":
            session.asks(LS[:3])
    session.delivery.client_gone("closed")
    assert isinstance(await session.outcome(), ClientGone)


async def test_the_exit_waits_for_the_client_to_end_its_requests(bench: Bench) -> None:
    session = await hit(bench)
    await session.reads(ANSWER)
    for _ in range(10):
        await asyncio.sleep(0)
    assert session.running is not None and not session.running.done()
    session.asks(FLUSH)
    assert await session.outcome() == OK


@pytest.mark.parametrize("parts", [(LS,), (LS[:2], LS[2:]), (FLUSH + LS,), (b"zzzz",)])
async def test_who_asks_for_more_needs_a_git_host(bench: Bench, parts: tuple[bytes, ...]) -> None:
    session = await hit(bench)
    session.asks(*parts)
    assert await session.outcome() is None
    session.connect()
    session.host(ADVERTISEMENT)
    assert session.asked() == b"".join(parts)


async def test_half_a_request_and_eof_is_the_git_hosts_to_answer(bench: Bench) -> None:
    session = await hit(bench)
    await session.reads(ANSWER)
    session.asks(b"00")
    assert session.delivery is not None
    session.delivery.client_eof()
    assert await session.outcome() is None


# -- a client that leaves with the whole answer while the entry is not whole yet -----------------------------------------------


class Disk:
    """Holds back the last that a fill writes, the header that makes its entry whole, until `let_go`; `trouble` comes in its place."""

    def __init__(self) -> None:
        self.trouble: Exception | None = None
        self._go = threading.Event()
        self._write = entry.write_header

    def write_header(self, fd: int, header: Header) -> None:
        if header.state == "whole":
            assert self._go.wait(60)
            if self.trouble is not None:
                raise self.trouble
        self._write(fd, header)

    def let_go(self, trouble: Exception | None = None) -> None:
        self.trouble = trouble
        self._go.set()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    monkeypatch.setattr(entry, "write_header", disk.write_header)
    monkeypatch.setattr(module, "FILL_ENDS_SECONDS", 3600.0)  # no test waits for it by chance
    yield disk
    disk.let_go()  # else the store waits for its thread


async def reading(who: str, bench: Bench, other: Bench) -> Session:
    """A session that is sent an entry while `bench` fills it: `first`, for which it is filled, or one that reads along."""
    if who == "first, without a list of refs":
        session = Session(bench)
        session.host(ADVERTISEMENT)
        session.asks(fetch(A))
        await session.parks()
        await bench.host()
        return session
    session = await filling(bench)
    if who != "first":
        session = listed(bench if who == "joined" else other)
        session.asks(fetch(A))
        await session.parks()
    return session


async def read_all(session: Session, bench: Bench) -> None:
    """The git host of the fill answers, and the session has read all of it; the header alone is written after the last bytes."""
    says(bench.hosts[0], ADVERTISEMENT, ANSWER.removesuffix(FLUSH))
    await session.reads(ANSWER.removesuffix(FLUSH))
    says(bench.hosts[0], FLUSH)
    await session.reads(ANSWER)


async def asleep(session: Session) -> None:
    """The session waits, and nothing that the loop can do now ends it."""
    for _ in range(20):
        await asyncio.sleep(0)
    assert session.running is not None and not session.running.done()


READERS = ["first", "first, without a list of refs", "joined", "in another worker"]
LEAVES = ["closes", "eof, closes", "flush-pkt, closes", "flush-pkt, eof, closes", "disconnects"]


def leaves(session: Session, way: str) -> None:
    assert session.delivery is not None
    if "flush-pkt" in way:
        session.asks(FLUSH)
    if "eof" in way:
        session.delivery.client_eof()
    session.delivery.client_gone("Connection lost" if way == "disconnects" else "the client closed the channel")


@pytest.mark.parametrize("way", LEAVES)
@pytest.mark.parametrize("who", READERS)
async def test_a_client_that_leaves_with_the_whole_answer_before_the_entry_is_whole_ends_well(
    bench: Bench, other: Bench, disk: Disk, who: str, way: str
) -> None:
    session = await reading(who, bench, other)
    await read_all(session, bench)
    before = session.record.bytes_in
    leaves(session, way)
    await asleep(session)
    disk.let_go()
    assert await session.outcome() == Exit()
    assert session.output == ANSWER and session.record.served_by == "cache"
    assert session.record.bytes_in - before == (len(FLUSH) if "flush-pkt" in way else 0)


async def test_a_flush_pkt_that_is_sent_in_two_reads_is_one(bench: Bench, disk: Disk) -> None:
    session = await filling(bench)
    session.client.room = 0  # so the session reads the entry when all of it is there
    begins = PACKFILE + PACK[0]
    packets = [pkt_line(b"\1" + b"x" * 60_000)] * 4
    packets.append(pkt_line(b"\1" + b"y" * (READ_BYTES + 2 - len(begins) - len(b"".join(packets)) - len(FLUSH) - 5)))
    answer = begins + b"".join(packets) + FLUSH
    assert len(answer) == READ_BYTES + 2
    reader = session.desk.reader
    assert reader is not None
    says(bench.hosts[0], ADVERTISEMENT, answer.removesuffix(FLUSH))
    await wait_until_async(lambda: reader._entry.size == len(answer) - len(FLUSH), message="the pack is on the disk")
    says(bench.hosts[0], FLUSH)
    await wait_until_async(lambda: reader._entry.size == len(answer), message="the flush-pkt is on the disk")
    session.client.room = 1 << 30
    assert session.delivery is not None
    session.delivery.client_drained()
    await session.reads(answer)
    leaves(session, "closes")
    await asleep(session)
    disk.let_go()
    assert await session.outcome() == Exit()


@pytest.mark.parametrize("who", READERS)
async def test_a_client_that_left_is_lost_with_a_fill_that_fails_at_its_end(bench: Bench, other: Bench, disk: Disk, who: str) -> None:
    session = await reading(who, bench, other)
    await read_all(session, bench)
    leaves(session, "closes")
    await asleep(session)
    disk.let_go(Damaged("somebody else has changed it"))
    error = await session.outcome()
    assert isinstance(error, Lost) and error.fault == "upstream"
    assert f"after {len(ANSWER)} bytes" in str(error)


async def test_a_full_disk_at_the_end_of_a_fill_fails_no_client_that_left(bench: Bench, disk: Disk) -> None:
    session = await filling(bench)
    await read_all(session, bench)
    leaves(session, "disconnects")
    disk.let_go(OSError(28, "No space left on device"))
    assert await session.outcome() == Exit()


@pytest.mark.parametrize("who", READERS)
@pytest.mark.parametrize("way", LEAVES)
async def test_a_client_that_leaves_before_the_last_byte_is_gone_at_once(
    bench: Bench, other: Bench, disk: Disk, who: str, way: str
) -> None:
    session = await reading(who, bench, other)
    says(bench.hosts[0], ADVERTISEMENT, ANSWER[:-1])
    await session.reads(ANSWER.removesuffix(FLUSH))
    leaves(session, way)
    assert isinstance(await session.outcome(), ClientGone)


async def left_at_what_looks_like_a_flush_pkt(bench: Bench) -> tuple[Session, bytes]:
    """A session whose client leaves after pack data that ends as a whole answer does, and what it was sent."""
    session = await filling(bench)
    part = PACKFILE + pkt_line(b"\1PACK" + FLUSH)
    says(bench.hosts[0], ADVERTISEMENT, part)
    await session.reads(part)
    leaves(session, "closes")
    await asleep(session)
    return session, part


async def test_a_client_that_leaves_where_pack_data_looks_like_a_flush_pkt_is_gone_with_the_next_byte(bench: Bench, disk: Disk) -> None:
    session, part = await left_at_what_looks_like_a_flush_pkt(bench)
    says(bench.hosts[0], PACK[1])
    assert isinstance(await session.outcome(), ClientGone)
    assert session.output == part and session.record.bytes_out == len(session.client.stdout)
    await wait_until_async(lambda: not len(bench.fills), message="nobody reads it any more: the fill has ended")


async def test_a_client_that_left_no_longer_waits_for_a_fill_that_fails_earlier(bench: Bench, disk: Disk) -> None:
    session, _ = await left_at_what_looks_like_a_flush_pkt(bench)
    bench.hosts[0].peer.upstream_ended(Lost("cut"))  # type: ignore[union-attr]
    assert isinstance(await session.outcome(), Lost)
    assert len(bench.hosts) == 1, "none other is asked"


@pytest.mark.parametrize("cut", [False, True], ids=["asking", "cut"])
async def test_a_client_that_leaves_with_something_owed_is_gone_at_once(bench: Bench, disk: Disk, cut: bool) -> None:
    session = await filling(bench)
    await read_all(session, bench)
    session.client.cut = cut
    if not cut:
        session.asks(LS)
    leaves(session, "closes")
    assert isinstance(await session.outcome(), ClientGone)


async def test_a_fill_that_does_not_end_is_not_waited_for_any_longer(
    bench: Bench, other: Bench, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILL_ENDS_SECONDS", 0.05)
    session = await reading("in another worker", bench, other)
    await read_all(session, bench)
    leaves(session, "closes")
    assert isinstance(await session.outcome(), ClientGone)


@pytest.mark.parametrize("who", READERS)
async def test_the_relay_ends_a_session_that_waits_for_its_fill(bench: Bench, other: Bench, disk: Disk, who: str) -> None:
    session = await reading(who, bench, other)
    await read_all(session, bench)
    leaves(session, "closes")
    await asleep(session)
    assert session.delivery is not None
    ended = Ended("drain")
    assert session.delivery.stop(ended)
    assert await session.outcome() is ended
    ended.__traceback__ = None
    assert session.desk.reader is None and session.desk.fill is None
    disk.let_go()
    bench.hosts[0].peer.upstream_ended(OK)  # type: ignore[union-attr]
    await wait_until_async(lambda: not len(bench.fills), message="the fill has ended")
    late = listed(bench)
    late.asks(fetch(A))
    await late.parks()
    await late.reads(ANSWER)
    assert bench.told.asked[-1] == "hit", "the entry is whole"


@pytest.mark.parametrize("error", [Ended("drain"), Stalled("x")])
async def test_the_relay_ends_the_session(bench: Bench, error: RelayError) -> None:
    session = await hit(bench, BIG, room=100_000)
    assert session.delivery is not None
    assert session.delivery.stop(error)
    assert not session.delivery.stop(error)
    assert await session.outcome() is error
    error.__traceback__ = None


# -- at the client's pace ------------------------------------------------------------------------------------------------------


async def test_a_client_that_takes_nothing_is_sent_no_more(bench: Bench) -> None:
    session = await hit(bench, BIG, room=100_000)
    await wait_until_async(lambda: session.client.full, message="the client is full")
    for _ in range(20):
        await asyncio.sleep(0)
    sent = len(session.output)
    assert sent <= 100_000 + READ_BYTES
    assert session.delivery is not None
    session.delivery.client_drained()  # it is full still
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(session.output) == sent
    while len(session.output) < len(BIG):
        session.client.waiting = 0
        session.delivery.client_drained()
        await asyncio.sleep(0.001)
    assert session.output == BIG


async def test_other_sessions_run_between_reads(bench: Bench) -> None:
    await kept(bench, answer=BIG)
    session = listed(bench)
    session.asks(fetch(A))
    await session.parks()
    await asyncio.sleep(0)
    assert len(session.output) <= READS_A_TURN * READ_BYTES < len(BIG)
    await session.reads(BIG)


async def test_a_client_that_takes_nothing_for_too_long_is_stalled(bench: Bench) -> None:
    await kept(bench, answer=BIG)
    session = listed(bench, room=100_000)
    session.asks(fetch(A))
    assert session.asked() == FLUSH
    await session.ended()
    session.deliver(stall_seconds=0.05)
    error = await session.outcome()
    assert isinstance(error, Stalled) and error.fault == "client"


async def test_a_client_that_neither_ends_nor_asks_is_idle(bench: Bench) -> None:
    await kept(bench)
    session = listed(bench)
    session.asks(fetch(A))
    assert session.asked() == FLUSH
    await session.ended()
    session.deliver(idle_seconds=0.05)
    assert isinstance(await session.outcome(), ClientIdle)


async def test_a_client_that_talks_while_it_is_sent_the_entry_is_not_read(bench: Bench) -> None:
    session = await hit(bench, BIG, room=100_000)
    session.asks(LS[:5])
    assert session.client.paused
    session.client.room = 1 << 30
    assert session.delivery is not None
    session.delivery.client_drained()
    await session.reads(BIG)
    assert not session.client.paused


# -- an entry that fails -------------------------------------------------------------------------------------------------------


async def test_progress_is_shown_to_who_waits_for_the_pack(bench: Bench) -> None:
    session = await filling(bench)
    follower = listed(bench)
    follower.asks(fetch(A))
    await follower.parks()
    quiet = listed(bench)
    quiet.asks(fetch(A, more=(b"no-progress\n",)))
    await quiet.parks()
    says(bench.hosts[0], ADVERTISEMENT, PACKFILE)
    everybody = (session, follower, quiet)
    await wait_until_async(lambda: all(one.delivery and one.delivery._held for one in everybody), message="all have read what precedes")
    says(bench.hosts[0], PROGRESS, KEEPALIVE)
    assert [one.output for one in everybody] == [PACKFILE + PROGRESS + KEEPALIVE] * 2 + [PACKFILE + KEEPALIVE]
    says(bench.hosts[0], b"".join(PACK))
    await session.reads(PACKFILE + PROGRESS + KEEPALIVE + b"".join(PACK))
    says(bench.hosts[0], PROGRESS, FLUSH)
    await session.reads(PACKFILE + PROGRESS + KEEPALIVE + b"".join(PACK) + FLUSH)
    await quiet.reads(PACKFILE + KEEPALIVE + b"".join(PACK) + FLUSH)
    for one in everybody:
        one.asks(FLUSH)
        assert await one.outcome() == OK
    assert bench.told.asked == ["filled", "joined", "joined"]
    late = listed(bench)
    late.asks(fetch(A))
    await late.parks()
    await late.reads(ANSWER)


@pytest.mark.parametrize("shown", [False, True])
async def test_a_fill_that_fails_before_pack_data_is_replaced(bench: Bench, shown: bool) -> None:
    session = await filling(bench, b"deepen 1\n")
    says(bench.hosts[0], ADVERTISEMENT, SHALLOW + PACKFILE)
    await wait_until_async(lambda: session.delivery and session.delivery._held)
    if shown:
        says(bench.hosts[0], PROGRESS)
        assert session.output == SHALLOW + PACKFILE + PROGRESS
    bench.hosts[0].peer.upstream_ended(Lost("cut"))  # type: ignore[union-attr]
    says(await bench.host(1), ADVERTISEMENT, SHALLOW + ANSWER)
    await session.reads(SHALLOW + PACKFILE + PROGRESS * shown + ANSWER.removeprefix(PACKFILE))
    session.asks(FLUSH)
    assert await session.outcome() == OK
    assert bench.told.asked == ["filled", "failed", "filled"]


async def test_followers_of_a_fill_that_fails_begin_one_other(bench: Bench) -> None:
    sessions = [await filling(bench)]
    for _ in range(5):
        follower = listed(bench)
        follower.asks(fetch(A))
        await follower.parks()
        sessions.append(follower)
    says(bench.hosts[0], ADVERTISEMENT, PACKFILE)
    bench.hosts[0].peer.upstream_ended(Lost("cut"))  # type: ignore[union-attr]
    says(await bench.host(1), ADVERTISEMENT, ANSWER)
    for one in sessions:
        await one.reads(ANSWER)
        one.asks(FLUSH)
        assert await one.outcome() == OK
    assert len(bench.hosts) == 2


@pytest.mark.parametrize("shown", [False, True])
async def test_after_a_second_failure_the_git_host_is_asked(bench: Bench, shown: bool) -> None:
    session = await filling(bench)
    for number in range(2):
        says(await bench.host(number), ADVERTISEMENT, PACKFILE)
        if shown:
            await wait_until_async(lambda: session.delivery and (session.delivery._held or session.output))
            says(bench.hosts[number], PROGRESS)
        bench.hosts[number].peer.upstream_ended(Lost("cut"))  # type: ignore[union-attr]
    assert await session.outcome() is None
    session.connect()
    assert session.asked() == fetch(A)
    session.host(ADVERTISEMENT, ANSWER)
    progress = session.output.removeprefix(PACKFILE).removesuffix(ANSWER.removeprefix(PACKFILE))
    assert session.output == PACKFILE + progress + ANSWER.removeprefix(PACKFILE) and progress.startswith(PROGRESS * shown)
    assert bench.told.asked == ["filled", "failed", "filled", "failed", "passed"]


async def test_an_answer_that_begins_otherwise_is_never_mixed(bench: Bench) -> None:
    session = await filling(bench, b"deepen 1\n")
    says(bench.hosts[0], ADVERTISEMENT, SHALLOW + PACKFILE)
    await wait_until_async(lambda: session.delivery and session.delivery._held)
    says(bench.hosts[0], PROGRESS)
    bench.hosts[0].peer.upstream_ended(Lost("cut"))  # type: ignore[union-attr]
    says(await bench.host(1), ADVERTISEMENT, ANSWER)
    assert isinstance(await session.outcome(), Lost)
    assert session.output == SHALLOW + PACKFILE + PROGRESS


async def test_a_fill_that_fails_after_pack_data_is_lost(bench: Bench) -> None:
    session = await filling(bench)
    says(bench.hosts[0], ADVERTISEMENT, PACKFILE + PACK[0] + PACK[1][:100])
    await session.reads(PACKFILE + PACK[0] + PACK[1][:100])
    bench.hosts[0].peer.upstream_ended(Lost("cut"))  # type: ignore[union-attr]
    error = await session.outcome()
    assert isinstance(error, Lost) and error.exit_status == 255
    assert len(bench.hosts) == 1


async def test_a_fill_that_gets_no_connection_is_tried_again_and_then_left(bench: Bench) -> None:
    bench.refusals = [Unavailable("down"), Unavailable("down")]
    session = listed(bench)
    session.asks(fetch(A))
    await session.parks()
    assert await session.outcome() is None
    assert bench.told.asked == ["filled", "failed", "filled", "failed"]
    session.connect()
    assert session.asked() == fetch(A)


async def test_an_entry_that_is_damaged_is_replaced(bench: Bench) -> None:
    await kept(bench)
    [path] = [path for path in bench.store.path.iterdir() if len(path.name) == 64]
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"z" * (len(whole) - 4096))  # its length and its header are right
    session = listed(bench)
    session.asks(fetch(A))
    await session.parks()
    await wait_until_async(lambda: len(bench.told.asked) > 1, message="the entry is not used")
    assert session.output == b"" and bench.told.asked[:2] == ["hit", "failed"]
