"""An entry that a worker has open: who holds it, and what it hears of an entry that another worker fills."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.packs import entry
from relay.packs.entry import HEADER_BYTES
from relay.packs.opened import SLOT_BYTES
from relay.packs.store import Store
from tests.packs.helpers import failure, filling, keep, key_of, names, news, read_some, reading, until
from tests.packs.peer import Peer, body

KEY = key_of("one")

MakeStore = Callable[..., Store]


async def test_all_readers_of_a_worker_share_a_descriptor_that_is_closed_with_the_last(make: MakeStore) -> None:
    store = make()
    await keep(store, KEY, b"abc")
    before = len(list(Path("/proc/self/fd").iterdir()))
    readers = [reading(store, KEY, "hit") for _ in range(5)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    for reader in readers:
        reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not store._opened


async def test_an_entry_of_another_worker_grows_and_ends(folder: Path, make: MakeStore) -> None:
    async with Peer(folder) as peer:
        assert await peer.do("ask", "one") == "fill"
        reader = reading(make(), KEY, "joined")
        for _ in range(3):
            assert await peer.do("write", "one", 1000)
            start = reader.position
            assert await read_some(reader, 1000) == body("one", start, 1000)
        assert not reader.read()
        assert await peer.do("publish", "one")
        await news(reader)
        assert not reader.read() and reader.whole_read
        assert entry.fastest_slot(os.open(folder / KEY.hex(), os.O_RDWR)) is None, "a whole entry needs no slot"
        reader.close()


async def test_an_entry_whose_worker_gives_up_or_dies_fails(folder: Path, make: MakeStore) -> None:
    store = make()
    async with Peer(folder) as peer:
        assert await peer.do("ask", "one") == "fill"
        reader = reading(store, KEY, "joined")
        assert await peer.do("write", "one", 1000)
        assert await read_some(reader, 1000) == body("one", 0, 1000)
        assert await peer.do("fail", "one")
        assert await failure(reader) == "the worker that filled it has given up"
        reader.close()
        assert await peer.do("ask", "one") == "fill"
        reader = reading(store, KEY, "joined")
        assert await peer.do("write", "one", 1000)
        assert await read_some(reader, 1000) == body("one", 0, 1000)
        await peer.kill()
        assert await failure(reader) == "the worker that filled it has died"
        await until(lambda: names(folder) == [])
        reader.close()
    again, writer = filling(store, KEY)
    writer.fail("")
    again.close()


async def test_who_fills_elsewhere_hears_how_far_the_fastest_is(make: MakeStore) -> None:
    one, other = make(), make()
    first, writer = filling(one, KEY)
    writer.write(bytes(3 * SLOT_BYTES))
    slow, fast = reading(other, KEY, "joined"), reading(other, KEY, "joined")
    await read_some(fast, 2 * SLOT_BYTES)
    await read_some(slow, 1000)
    await until(lambda: (entry.fastest_slot(first._entry.fd) or 0) >= fast.position)
    fast.close()
    await until(lambda: entry.fastest_slot(first._entry.fd) == slow.position)
    slow.close()
    assert entry.fastest_slot(first._entry.fd) is None
    writer.fail("")
    first.close()


@pytest.mark.parametrize("harm", ["cut", "header", "longer"])
async def test_an_entry_that_is_changed_while_another_worker_fills_it_fails(make: MakeStore, folder: Path, harm: str) -> None:
    one, other = make(), make()
    first, writer = filling(one, KEY)
    writer.write(bytes(1000))
    reader = reading(other, KEY, "joined")
    await read_some(reader, 1000)
    path = folder / KEY.hex()
    match harm:
        case "cut":
            os.truncate(path, HEADER_BYTES + 10)
        case "header":
            with path.open("r+b") as file:
                file.seek(100)
                file.write(b"\xff")
        case "longer":
            with path.open("ab") as file:
                file.write(b"more")
            writer.publish()
    assert await failure(reader)
    reader.close()
    writer.fail("")
    first.close()
    again, writer = filling(other, KEY)
    writer.fail("")
    again.close()


async def test_a_worker_for_which_there_is_no_slot_passes(make: MakeStore, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    one, other = make(), make()
    first, writer = filling(one, KEY)
    monkeypatch.setattr(entry, "SLOTS", 1)
    third = reading(make(), KEY, "joined")
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert other.ask(KEY, first._entry.about).kind == "pass"
    assert other.trouble == f"{folder} cannot be used: 1 other workers read an entry along"
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 2, "its folder and the table in it"
    third.close()
    writer.fail("")
    first.close()
