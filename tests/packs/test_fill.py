"""A fill: what of a git host's answer is written down, when it is published, and everything that must not be."""

from __future__ import annotations

import asyncio
import logging

import pytest

from relay.errors import HostBusy, Lost, NoExit, RelayError, Unavailable
from relay.git.pktline import pkt_line
from relay.git.v2_request import read_request
from relay.model import Exit
from relay.packs import fill as module
from relay.packs.fill import Fill
from relay.packs.store import About, EntryFailed, Reader, Writer
from tests.packs.bench import ADVERTISEMENT, ANSWER, ERR, FLUSH, PACK, PACKFILE, PROGRESS, SHALLOW, A, Bench, fetch, says
from tests.support.wait import wait_until_async

KEY = bytes(32)
SIDEBAND_3 = pkt_line(b"\3it failed")


class Run:
    """A fill, and one who reads along."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        found = bench.store.ask(KEY, About("main", "team/app", "", "full"))
        assert found.kind == "fill" and found.reader is not None and found.writer is not None
        self.reader: Reader = found.reader
        self.writer: Writer = found.writer
        self.fill: Fill = bench.fills.begin(KEY, read_request(fetch(A)), bench.order("main"), found.writer, "1-1")
        self.text = b""

    async def says(self, *data: bytes) -> None:
        says(await self.bench.host(), *data)

    async def ends(self, how: Exit | RelayError) -> None:
        host = await self.bench.host()
        assert host.peer is not None
        host.peer.upstream_ended(how)
        await self.over()

    async def over(self) -> None:
        await wait_until_async(lambda: len(self.bench.fills) == 0, message="the fill is over")

    async def read(self) -> bytes:
        """All of the entry. Raises EntryFailed."""
        async with asyncio.timeout(60):
            while not self.reader.whole_read:
                if data := self.reader.read():
                    self.text += data
                    continue
                news = asyncio.Event()
                self.reader.on_news(news.set)
                if not self.reader.whole_read:
                    await news.wait()
        return self.text

    async def failed(self) -> str:
        with pytest.raises(EntryFailed) as error:
            await self.read()
        assert self.bench.store.ask(KEY, About("main", "team/app", "", "full")).kind == "fill", "the entry is gone"
        return str(error.value)


async def test_an_answer_is_written_down_as_it_leaves_for_clients(bench: Bench) -> None:
    run = Run(bench)
    assert (await bench.host()).waiting == fetch(A)
    await run.says(ADVERTISEMENT + SHALLOW, PACKFILE, PROGRESS + PACK[0], PROGRESS, PACK[1][:1000], PACK[1][1000:] + FLUSH)
    assert await run.read() == SHALLOW + ANSWER, "published without the exit"
    assert bench.hosts[0].waiting == fetch(A) + FLUSH
    await run.ends(Exit(status=0))
    assert bench.given_back == [True]
    assert bench.told.bytes["in"] == len(SHALLOW + ANSWER)
    assert bench.store.ask(KEY, About("main", "team/app", "", "full")).kind == "hit"


@pytest.mark.parametrize("how", [Lost("cut"), NoExit("no"), Exit(status=1), Exit(signal="KILL")])
async def test_what_follows_the_whole_answer_changes_nothing(bench: Bench, how: Exit | RelayError) -> None:
    run = Run(bench)
    await run.says(ADVERTISEMENT + ANSWER)
    await run.ends(how)
    assert await run.read() == ANSWER


async def test_a_host_that_does_not_exit_is_closed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENDS_SECONDS", 0.01)
    run = Run(bench)
    await run.says(ADVERTISEMENT + ANSWER)
    await run.over()
    assert bench.given_back == [False] and await run.read() == ANSWER


@pytest.mark.parametrize("said", [b"", PACKFILE, PACKFILE + PACK[0]], ids=["nothing", "a header", "half a pack"])
async def test_a_host_that_ends_its_output_and_does_not_exit_keeps_no_reader_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(module, "ENDS_SECONDS", 0.01)
    run = Run(bench)
    await run.says(ADVERTISEMENT + said)
    run.fill.upstream_eof()
    assert "the git host did not end" in await run.failed()
    await run.over()
    assert bench.given_back == [False]


@pytest.mark.parametrize("said", [ERR, PACKFILE + SIDEBAND_3, PACKFILE + PACK[0] + SIDEBAND_3, PACKFILE + PACK[0] + ERR], ids=range(4))
async def test_a_refusal_is_not_kept_and_is_told(bench: Bench, said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run = Run(bench)
    await run.says(ADVERTISEMENT + said)
    assert run.fill.refused
    assert "the git host says" in await run.failed()
    await run.ends(Exit(status=128))
    assert bench.given_back == [True], "an answer is no fault"
    assert "packs: what session 1-1 asked upstream main is not kept: the git host says" in caplog.text


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (Lost("192.0.2.1:22: cut"), "cut"),
        (NoExit("no exit"), "no exit"),
        (Exit(status=0), "status 0 before its answer was whole: fatal: words"),
        (Exit(status=128), "status 128"),
        (Exit(signal="KILL"), "signal KILL"),
    ],
)
@pytest.mark.parametrize("before", [b"", ADVERTISEMENT, ADVERTISEMENT + PACKFILE, ADVERTISEMENT + ANSWER[:-4]], ids=range(4))
async def test_an_answer_that_is_cut_is_gone(bench: Bench, how: Exit | RelayError, said: str, before: bytes) -> None:
    run = Run(bench)
    host = await bench.host()
    assert host.peer is not None
    host.peer.upstream_stderr(memoryview(b"fatal: words\n"))
    if before:
        await run.says(before)
    await run.ends(how)
    assert said in await run.failed()
    assert not run.fill.refused


@pytest.mark.parametrize("said", [b"000eversion 1\n", ADVERTISEMENT + b"zzzz", ADVERTISEMENT + PACKFILE + pkt_line(b"\7x")])
async def test_an_answer_that_is_not_understood_is_gone(bench: Bench, said: bytes) -> None:
    run = Run(bench)
    await run.says(said)
    await run.over()
    assert "not understood" in await run.failed()
    assert bench.given_back == [False]


@pytest.mark.parametrize("error", [Unavailable("down"), HostBusy("busy")])
async def test_no_connection_is_a_failure(bench: Bench, error: RelayError) -> None:
    bench.refusals = [error]
    run = Run(bench)
    assert await run.failed() == str(error)


async def test_an_entry_that_fails_ends_the_fill(bench: Bench) -> None:
    run = Run(bench)
    await run.says(ADVERTISEMENT + PACKFILE)
    run.writer.fail("it cannot be read")
    await run.says(PACK[0])
    await run.over()
    assert bench.given_back == [False]
    assert await run.failed() == "it cannot be read"


async def test_a_disk_that_is_full_ends_no_fill(bench: Bench) -> None:
    run = Run(bench)
    await run.says(ADVERTISEMENT + PACKFILE)
    await wait_until_async(lambda: run.writer._entry.size == len(PACKFILE))
    run.writer._leave_disk("the disk is full", "disk")
    await run.says(PACK[0], PACK[1], FLUSH)
    assert await run.read() == ANSWER
    await run.ends(Exit(status=0))
    assert bench.given_back == [True]
    assert bench.store.ask(KEY, About("main", "team/app", "", "full")).kind == "pass"


async def test_nobody_reads_any_more(bench: Bench) -> None:
    run = Run(bench)
    await run.says(ADVERTISEMENT + PACKFILE + PACK[0])
    run.reader.close()
    await run.over()
    assert bench.given_back == [False]
    assert bench.store.ask(KEY, About("main", "team/app", "", "full")).kind == "fill"


async def test_nobody_reads_any_more_what_is_whole(bench: Bench) -> None:
    """The connection goes back to the pool all the same."""
    run = Run(bench)
    await run.says(ADVERTISEMENT + ANSWER)
    await run.read()
    run.reader.close()
    await run.ends(Exit(status=0))
    assert bench.given_back == [True]


async def test_a_fill_that_is_ended_before_its_first_step_is_gone(bench: Bench) -> None:
    run = Run(bench)
    await bench.fills.close()
    assert not bench.hosts
    with pytest.raises(EntryFailed):
        await run.read()


async def test_a_worker_that_stops_fills_no_more(bench: Bench) -> None:
    await bench.fills.close()
    run = Run(bench)
    with pytest.raises(EntryFailed):
        await run.read()
    assert not bench.hosts and len(bench.fills) == 0


async def test_the_host_waits_while_the_disk_or_the_readers_are_behind(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.packs.writer.AHEAD_BYTES", 100_000)
    monkeypatch.setattr("relay.packs.writer.AHEAD_LOW_BYTES", 50_000)
    run = Run(bench)
    big = pkt_line(b"\1" + bytes(60_000))
    await run.says(ADVERTISEMENT + PACKFILE + big + big)
    assert bench.hosts[0].paused
    bench.hosts[0].receive(1 << 20)
    assert not bench.hosts[0].withheld, "the worker's sessions hold little"
    await wait_until_async(lambda: run.reader.read(), message="it is on the disk")
    await wait_until_async(lambda: run.reader.read() or not bench.hosts[0].paused, message="the host goes on")
    await wait_until_async(lambda: run.reader.read() or not bench.hosts[0].paused, message="the host goes on")
    assert not bench.hosts[0].paused
