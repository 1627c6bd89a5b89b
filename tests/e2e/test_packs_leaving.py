"""Clients that leave with a whole clone before the entry that they were sent is whole: the session ends as its fill does.

The test fills the entry itself, as another worker on the relay's folder, so that it decides when the fill ends and how.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from asyncssh import SSHClientConnection

from relay.packs.entry import HEADER_BYTES, inspect
from relay.packs.store import Store, Writer
from tests.e2e.helpers import audited
from tests.e2e.packing import Fetcher, entries, packs
from tests.e2e.test_leaving import leave
from tests.packs.helpers import make_store
from tests.support.gitrepo import make_repo
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async

MAIN = b"refs/heads/main"
WAYS = ("close", "eof and close", "disconnect", "reset")


@dataclass
class Filling:
    """An entry that this process fills: all of it is written, and its readers do not know yet that it is all."""

    relay: RelayProcess
    writer: Writer
    body: bytes
    seen: int = 0  # audit lines

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Fetcher]:
        """A client that has read the whole entry."""
        self.seen = len(self.relay.audit_lines())
        async with Fetcher.at(self.relay, "team/app") as fetcher:
            await fetcher.list()
            fetcher.ask(fetcher.refs[MAIN])
            assert await fetcher.answer() == self.body
            yield fetcher

    async def leaves(self, way: str) -> None:
        """A client reads the whole entry and leaves; returns when the relay knows that it has left."""
        async with self.client() as fetcher:
            connection = fetcher.process.channel.get_connection()
            assert isinstance(connection, SSHClientConnection)
            await leave(fetcher.process, connection, way)
            await fetcher.process.wait_closed()
        await wait_until_async(lambda: self.relay.metric("relay_connections_open") == 0, message="the client is gone")
        assert len(self.relay.audit_lines()) == self.seen, "the session waits for the end of the fill"

    async def line(self) -> dict[str, Any]:
        [line] = await asyncio.to_thread(audited, self.relay, self.seen, 1, event="session")
        return line


@asynccontextmanager
async def filling(relay: RelayProcess, folder: Path) -> AsyncIterator[Filling]:
    """Has the relay keep a clone, and puts an entry of the same bytes in its place."""
    seen = len(relay.audit_lines())
    async with Fetcher.at(relay, "team/app") as fetcher:
        await fetcher.list()
        fetcher.ask(fetcher.refs[MAIN])
        body = await fetcher.answer()
        assert await fetcher.end() == 0
    await asyncio.to_thread(audited, relay, seen, 1, event="session")
    [path] = entries(folder)
    fd = os.open(path, os.O_RDONLY)
    try:
        header, _ = inspect(fd, bytes.fromhex(path.name))
    finally:
        os.close(fd)
    assert header.length == len(body)
    path.unlink()
    store: Store = make_store(folder)
    try:
        found = store.ask(header.key, header.about)
        assert found.kind == "fill" and found.writer is not None and found.reader is not None
        found.writer.write(body)
        await wait_until_async(lambda: path.stat().st_size == HEADER_BYTES + len(body), message="the entry is written")
        yield Filling(relay, found.writer, body)
        found.reader.close()
    finally:
        store.close()
        await asyncio.sleep(0)  # results of threads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packs")


@pytest.fixture(scope="module")
def relay(sshd: Sshd, folder: Path) -> Iterator[RelayProcess]:
    make_repo(sshd.root / "team" / "app.git")
    with RelayProcess(sshd, config={"workers": 1, **packs(folder, first=True)}) as process:
        yield process


@pytest.mark.parametrize("way", WAYS)
async def test_the_session_is_ok_when_the_fill_ends_well(relay: RelayProcess, folder: Path, way: str) -> None:
    async with filling(relay, folder) as entry:
        await entry.leaves(way)
        entry.writer.publish()
        line = await entry.line()
    assert (line["result"], line["reason"], line["exit_status"], line["served_by"]) == ("ok", "ok", None, "cache")


@pytest.mark.parametrize("way", WAYS)
async def test_the_session_is_lost_when_the_fill_fails(relay: RelayProcess, folder: Path, way: str) -> None:
    async with filling(relay, folder) as entry:
        await entry.leaves(way)
        entry.writer.fail("the test wants it to")
        line = await entry.line()
    assert (line["result"], line["reason"], line["exit_status"]) == ("upstream", "lost", None)
    assert "the worker that filled it has given up" in line["detail"]


async def test_the_client_is_gone_when_it_had_not_all(relay: RelayProcess, folder: Path) -> None:
    async with filling(relay, folder) as entry:
        await entry.leaves("disconnect")
        entry.writer.write(b"0000")
        line = await entry.line()
        entry.writer.fail("it was no answer")
    assert (line["result"], line["reason"], line["exit_status"]) == ("client", "client_gone", None)


async def test_a_drain_ends_a_session_that_waits_for_its_fill(make_relay: Callable[..., RelayProcess], sshd: Sshd, tmp_path: Path) -> None:
    relay = make_relay(sshd, config={"workers": 1, "limits": {"drain_seconds": 1}, **packs(tmp_path / "packs", first=True)})
    if not (sshd.root / "team" / "app.git").exists():
        make_repo(sshd.root / "team" / "app.git")
    async with filling(relay, tmp_path / "packs") as entry:
        await entry.leaves("disconnect")
        relay.signal(signal.SIGTERM)
        assert await asyncio.to_thread(relay.wait) == 0
        line = await entry.line()
        entry.writer.fail("the test is over")
    assert (line["reason"], line["detail"], line["exit_status"]) == ("drained", "the worker was stopped", None)
