"""The store against a model: two workers on one folder, with everything that clients, git hosts, operators and time do to it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from relay.packs.store import EntryFailed, Reader, Store, Writer
from tests.packs.helpers import ABOUT, Clock, key_of, make_store, read_all, read_some, until
from tests.packs.peer import Peer, body

KEYS = ("one", "one", "one", "two")
TTL = 100.0
DISTURBANCES = ("wait", "wait", "age", "clear", "look", "look", "restart")


@dataclass
class Entry:
    """What was promised to the readers of one fill."""

    key: str
    writer: Writer
    written: int = 0
    ended: str = ""  # published | failed
    published_at: float = 0.0
    removed: bool = False


@dataclass
class Client:
    """Who reads an entry."""

    reader: Reader
    entry: Entry
    got: int = 0
    over: bool = False


@dataclass
class Model:
    """Per key the entry that the next client gets, if any."""

    current: dict[str, Entry] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)


class Packs(RuleBasedStateMachine):
    clients = Bundle("clients")
    fills = Bundle("fills")

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name) / "packs"
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.stores = [self._store() for _ in range(2)]
        self.model = Model()
        self.readers: list[Client] = []

    def _store(self) -> Store:
        return make_store(self.path, first=False, ttl_seconds=TTL, clock=self.clock)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        async def end() -> None:
            for store in self.stores:
                store.close()
            for client in self.readers:
                client.reader.close()
            await asyncio.sleep(0)

        self.run(end())
        self.loop.close()
        self._folder.cleanup()

    def _live(self, key: str) -> Entry | None:
        entry = self.model.current.get(key)
        if entry is None or entry.removed or entry.ended == "failed":
            return None
        if entry.ended == "published" and self.clock.now - entry.published_at >= TTL:
            return None
        return entry

    # -- clients

    @rule(target=clients, worker=st.integers(0, 1), key=st.sampled_from(KEYS))
    def ask(self, worker: int, key: str) -> Client | None:
        live = self._live(key)

        async def ask() -> Any:
            return self.stores[worker].ask(key_of(key), ABOUT)

        found = self.run(ask())
        if live is not None:
            assert found.kind == ("hit" if live.ended else "joined"), (found, live)
            self.model.seen[key] = self.clock.now
            client = Client(found.reader, live)
        else:
            known = self.clock.now - self.model.seen.get(key, float("-inf")) < TTL
            assert found.kind == ("fill" if known else "pass"), (found, self.model)
            self.model.seen[key] = self.clock.now
            if not known:
                return None
            self.model.current[key] = entry = Entry(key, found.writer)
            client = Client(found.reader, entry)
        self.readers.append(client)
        return client

    @rule(client=clients)
    def read(self, client: Client | None) -> None:
        if client is None or client.over:
            return
        entry = client.entry

        async def read() -> None:
            try:
                if entry.ended == "failed":
                    await read_all(client.reader)
                    raise AssertionError("an entry that failed was read to its end")
                got = await read_some(client.reader, entry.written - client.got) if entry.written > client.got else b""
                assert got == body(entry.key, client.got, len(got))
                client.got += len(got)
                if entry.ended:
                    assert await read_all(client.reader) == b"" and client.reader.whole_read
                else:
                    assert not client.reader.whole_read
            except EntryFailed:
                assert entry.ended == "failed"

        self.run(read())
        assert client.got <= entry.written

    @rule(client=consumes(clients))
    def leave(self, client: Client | None) -> None:
        if client is None:
            return

        async def leave() -> None:
            client.reader.close()

        client.over = True
        self.run(leave())

    # -- git hosts

    def _filling(self, key: str) -> Entry | None:
        entry = self.model.current.get(key)
        return entry if entry is not None and not entry.ended else None

    @rule(key=st.sampled_from(KEYS), count=st.integers(0, 100_000))
    def write(self, key: str, count: int) -> None:
        if (entry := self._filling(key)) is not None:

            async def write() -> None:
                entry.writer.write(body(key, entry.written, count))

            self.run(write())
            entry.written += count

    @rule(key=st.sampled_from(KEYS), whole=st.sampled_from([True, True, True, False]))
    def end(self, key: str, whole: bool) -> None:
        if (entry := self._filling(key)) is None:
            return

        async def end() -> None:
            if whole:
                entry.writer.publish()
                await until(lambda: entry.writer.over)
            else:
                entry.writer.fail("the git host was lost")

        self.run(end())
        assert entry.writer.failed is None if whole else entry.writer.failed
        entry.ended = "published" if whole else "failed"
        entry.published_at = self.clock.now

    # -- time, operators, reloads: one rule, so that most steps are those of clients and git hosts

    @rule(what=st.sampled_from(DISTURBANCES), worker=st.integers(0, 1), key=st.sampled_from(KEYS))
    def disturb(self, what: str, worker: int, key: str) -> None:
        match what:
            case "wait":
                self.clock.now += TTL / 2 - 1
            case "age":
                self.clock.now += TTL
            case "clear":
                self._clear(key)
            case "look":
                self._look(worker)
            case "restart":
                self._restart(worker)

    def _clear(self, key: str) -> None:
        (self.path / key_of(key).hex()).unlink(missing_ok=True)
        if (entry := self.model.current.get(key)) is not None:
            entry.removed = True

    def _look(self, worker: int) -> None:
        store = self.stores[worker]

        async def look() -> None:
            store.look()
            await until(lambda: not store._sweeping)

        self.run(look())

    def _restart(self, worker: int) -> None:
        """The worker stops: its fills end, and its clients are gone with it."""
        old = self.stores[worker]
        self.stores[worker] = self._store()

        async def stop() -> None:
            mine = set(old._writers)
            old.close()
            for entry in self.model.current.values():
                if entry.writer in mine and not entry.ended:
                    entry.ended = "failed"
            for client in self.readers:
                if client.reader._entry.disk is old._disk and not client.over:
                    client.over = True
                    client.reader.close()
            await asyncio.sleep(0)

        self.run(stop())

    @invariant()
    def nothing_is_left_open(self) -> None:
        """A store has an entry open only as long as somebody reads or fills it."""
        for store in self.stores:
            for opened in store._opened.values():
                assert opened.readers or opened.filler is not None, opened


Packs.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))
TestPacks = Packs.TestCase


async def test_of_several_processes_that_ask_at_once_exactly_one_fills(tmp_path: Path) -> None:
    async with Peer(tmp_path / "packs") as one, Peer(tmp_path / "packs") as two, Peer(tmp_path / "packs") as three:
        peers = (one, two, three)
        for number in range(40):
            name = f"entry{number}"
            kinds = await asyncio.gather(*(peer.do("ask", name) for peer in peers))
            assert sorted(kinds) == ["fill", "joined", "joined"]
            filler = peers[kinds.index("fill")]
            await filler.do("write", name, 100_000)
            await filler.do("publish", name)
            assert await asyncio.gather(*(peer.do("all", name) for peer in peers)) == [100_000] * 3
            for peer in peers:
                await peer.do("close", name)


async def test_of_several_processes_exactly_one_is_the_first(tmp_path: Path) -> None:
    async with Peer(tmp_path / "packs", first=False) as one, Peer(tmp_path / "packs", first=False) as two:
        for number in range(40):
            kinds = await asyncio.gather(*(peer.do("ask", f"entry{number}") for peer in (one, two)))
            assert sorted(kinds) == ["fill", "pass"]


async def test_a_worker_that_is_stopped_while_it_fills_is_waited_for_and_one_that_is_killed_is_replaced(tmp_path: Path) -> None:
    async with Peer(tmp_path / "packs") as filler, Peer(tmp_path / "packs") as follower:
        assert await filler.do("ask", "one") == "fill"
        assert await follower.do("ask", "one") == "joined"
        await filler.do("write", "one", 1000)
        assert await follower.do("read", "one", 1000)
        await filler.stop()
        store = make_store(tmp_path / "packs")
        found = store.ask(key_of("one"), ABOUT)
        assert found.kind == "joined" and found.reader is not None, "a worker that gets no processor lives"
        found.reader.close()
        await filler.go_on()
        await filler.do("write", "one", 1000)
        assert await follower.do("read", "one", 1000)
        await filler.kill()
        assert await follower.do("failure", "one") == "the worker that filled it has died"
        assert await follower.do("ask", "one") == "fill"
        await follower.do("write", "one", 5000)
        await follower.do("publish", "one")
        assert await follower.do("all", "one") == 5000
        store.close()
