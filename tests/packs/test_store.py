"""The store of a worker: hit, joined, fill, pass; two workers on one folder."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.packs.store import Store
from tests.packs.helpers import ABOUT, Clock, failure, filling, keep, key_of, names, read_all, read_some, reading, until

BODY = os.urandom(3_000_000)
KEY = key_of("one")

MakeStore = Callable[..., Store]


async def test_what_was_published_is_a_hit_in_every_worker(make: MakeStore, folder: Path) -> None:
    one, other = make(), make()
    await keep(one, KEY, BODY)
    for store in (one, other):
        reader = reading(store, KEY, "hit")
        assert await read_all(reader) == BODY
        assert reader.position == len(BODY)
        reader.close()
    assert names(folder) == [KEY.hex()]
    assert folder.stat().st_mode & 0o7777 == 0o700
    assert (folder / KEY.hex()).stat().st_mode & 0o7777 == 0o600


async def test_an_empty_answer_is_an_entry_too(make: MakeStore) -> None:
    store = make()
    await keep(store, KEY, b"")
    reader = reading(store, KEY, "hit")
    assert reader.whole_read and not reader.read()
    reader.close()


@pytest.mark.parametrize("same", [True, False], ids=["in_the_same_worker", "in_another_worker"])
async def test_who_comes_while_an_entry_is_filled_reads_along(make: MakeStore, same: bool) -> None:
    one = make()
    other = one if same else make()
    first, writer = filling(one, KEY)
    writer.write(BODY[:1000])
    follower = reading(other, KEY, "joined")
    assert await read_some(follower, 1000) == BODY[:1000]
    assert not follower.read() and not follower.whole_read
    writer.write(memoryview(BODY)[1000:])
    writer.publish()
    assert await read_all(follower) == BODY[1000:]
    assert await read_all(first) == BODY
    for reader in (first, follower):
        assert reader.whole_read
        reader.close()


@pytest.mark.parametrize("same", [True, False], ids=["in_the_same_worker", "in_another_worker"])
async def test_a_fill_that_fails_fails_its_readers_and_leaves_nothing(make: MakeStore, folder: Path, same: bool) -> None:
    one = make()
    other = one if same else make()
    first, writer = filling(one, KEY)
    follower = reading(other, KEY, "joined")
    writer.write(BODY[:5000])
    assert await read_some(follower, 5000) == BODY[:5000]
    writer.fail("the git host was lost")
    assert writer.failed == "the git host was lost"
    assert await failure(first) == "the git host was lost"
    assert await failure(follower)
    await until(lambda: names(folder) == [])
    again, second = filling(other, KEY)
    second.write(BODY)
    second.publish()
    assert await read_all(again) == BODY
    for reader in (first, follower, again):
        reader.close()


async def test_of_two_workers_that_ask_at_once_one_fills(make: MakeStore) -> None:
    stores = [make() for _ in range(4)]
    found = [store.ask(KEY, ABOUT) for store in stores for _ in range(3)]
    assert sorted(one.kind for one in found) == ["fill"] + ["joined"] * 11
    (writer,) = (one.writer for one in found if one.writer is not None)
    writer.write(BODY)
    writer.publish()
    readers = [one.reader for one in found if one.reader is not None]
    assert await asyncio.gather(*map(read_all, readers)) == [BODY] * 12
    for reader in readers:
        reader.close()


async def test_the_second_equal_fetch_is_the_first_that_is_kept(make: MakeStore) -> None:
    clock = Clock()
    one, other = (make(first=False, ttl_seconds=100, clock=clock) for _ in range(2))
    assert one.ask(KEY, ABOUT).kind == "pass"
    assert one.ask(key_of("two"), ABOUT).kind == "pass"
    clock.now += 99
    reader, writer = filling(other, KEY)
    writer.fail("")
    reader.close()
    clock.now += 100
    assert one.ask(KEY, ABOUT).kind == "pass", "ttl_seconds after the last one it is the first again"


async def test_an_entry_that_is_used_until_its_age_is_over_is_filled_again_at_once(make: MakeStore) -> None:
    clock = Clock()
    store = make(first=False, ttl_seconds=100, clock=clock)
    assert store.ask(KEY, ABOUT).kind == "pass"
    await keep(store, KEY, BODY)
    clock.now += 99
    reading(store, KEY, "hit").close()
    clock.now += 2
    reader, writer = filling(store, KEY)
    writer.fail("")
    reader.close()


async def test_an_entry_older_than_its_ttl_is_a_miss_and_goes(make: MakeStore, folder: Path) -> None:
    clock = Clock()
    store = make(ttl_seconds=100, clock=clock)
    await keep(store, KEY, b"old")
    reader = reading(store, KEY, "hit")
    clock.now += 100
    other, writer = filling(store, KEY)
    writer.write(b"new")
    writer.publish()
    assert await read_all(other) == b"new"
    assert await read_all(reader) == b"old", "who reads it reads on"
    reader.close()
    other.close()
    clock.now += 100
    store.look()
    await until(lambda: names(folder) == [])


async def test_a_clock_that_was_set_back_makes_no_entry_live_longer(make: MakeStore) -> None:
    clock = Clock()
    store = make(ttl_seconds=100, clock=clock)
    await keep(store, KEY, BODY)
    clock.now -= 100
    reader, writer = filling(store, KEY)
    writer.fail("")
    reader.close()


async def test_the_age_counts_from_the_end_of_the_fill(make: MakeStore) -> None:
    clock = Clock()
    store = make(ttl_seconds=100, clock=clock)
    reader, writer = filling(store, KEY)
    clock.now += 1000
    reading(store, KEY, "joined").close()
    writer.write(BODY)
    writer.publish()
    assert await read_all(reader) == BODY
    reading(store, KEY, "hit").close()
    reader.close()
    reading(store, KEY, "hit").close()


async def test_the_age_counts_from_the_end_also_where_another_worker_read_along(make: MakeStore) -> None:
    clock = Clock()
    one, other = (make(ttl_seconds=100, clock=clock) for _ in range(2))
    reader, writer = filling(one, KEY)
    follower = reading(other, KEY, "joined")
    clock.now += 1000
    writer.publish()
    assert await read_all(follower) == b""
    reading(other, KEY, "hit").close()
    reader.close()
    follower.close()


async def test_who_reads_an_entry_that_is_removed_reads_on(make: MakeStore, folder: Path) -> None:
    store = make()
    await keep(store, KEY, BODY)
    reader = reading(store, KEY, "hit")
    (folder / KEY.hex()).unlink()
    assert await read_all(reader) == BODY
    again, writer = filling(store, KEY)
    writer.fail("")
    again.close()
    reader.close()
