"""The store of a worker: hit, joined, fill, pass; two workers on one folder."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.config import PacksSettings
from relay.packs import entry
from relay.packs import store as module
from relay.packs.entry import HEADER_BYTES, Header
from relay.packs.store import Store, open_store
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


# -- damaged entries ---------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def flipped(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(60)
        byte = file.read(1)[0]
        file.seek(60)
        file.write(bytes([byte ^ 1]))


def of_another_key(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    header = entry.decode(bytes(raw[:HEADER_BYTES]))
    raw[:2040] = entry.encode(Header(key_of("two"), header.state, header.length, header.made, header.about))
    path.write_bytes(raw)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


def folder_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def of_a_dead_worker(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[:2040] = entry.encode(Header(KEY, "filling", 0, time.time(), ABOUT))
    path.write_bytes(raw)


def of_another_user(path: Path) -> None:
    os.chown(path, 12_345, -1)


HARMS = [cut, longer, emptied, flipped, of_another_key, link, dangling, folder_there, pipe, of_a_dead_worker, of_another_user]


@pytest.mark.parametrize("found_by", ["a fetch", "a look through the folder"])
@pytest.mark.parametrize("harm", HARMS)
async def test_a_damaged_entry_is_a_miss_and_a_log_line_and_goes(
    make: MakeStore, folder: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None], found_by: str
) -> None:
    if harm is of_another_user and os.geteuid():
        pytest.skip("only root may give a file away")
    store = make()
    await keep(store, KEY, BODY)
    path = folder / KEY.hex()
    harm(path)
    if found_by == "a fetch":
        reader, writer = filling(store, KEY)
        writer.write(b"anew")
        writer.publish()
        assert await read_all(reader) == b"anew"
        reader.close()
        assert path.is_file() and not path.is_symlink()
    else:
        store.look()
        await until(lambda: not os.path.lexists(path) and not store._sweeping)
    assert f"packs: the entry {path} is not used, and removed: " in caplog.text
    assert not store.trouble


async def test_an_entry_of_another_boot_goes_without_a_word(
    make: MakeStore, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make()
    await keep(store, KEY, BODY)
    monkeypatch.setattr(entry, "this_boot", lambda: b"another boot    ")
    reader, writer = filling(store, KEY)
    writer.fail("")
    reader.close()
    assert not caplog.records


async def test_a_folder_of_somebody_in_an_entrys_place_is_left_alone(
    make: MakeStore, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = make()
    await keep(store, key_of("two"), BODY)
    path = folder / KEY.hex()
    path.mkdir()
    (path / "mine").write_text("mine")
    assert store.ask(KEY, ABOUT).kind == "pass"
    assert (path / "mine").read_text() == "mine"
    assert f"packs: {path} cannot be removed: Directory not empty" in caplog.text
    reading(store, key_of("two"), "hit").close()


# -- a folder that cannot be used --------------------------------------------------------------------------------------------


async def test_a_folder_that_others_may_read_is_not_used_until_that_is_mended(
    make: MakeStore, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = make()
    await keep(store, KEY, BODY)
    slow = reading(store, KEY, "hit")
    folder.chmod(0o755)
    for _ in range(3):
        assert store.ask(KEY, ABOUT).kind == "pass"
    assert await read_all(slow) == BODY
    slow.close()
    assert store.trouble == f"{folder} has the mode 0755, must have 0700: chmod 0700 {folder}"
    assert caplog.text.count("packs: nothing is kept: ") == 1, "once a minute"
    folder.chmod(0o700)
    store.look()
    await until(lambda: not store._sweeping)
    assert not store.trouble, "without a fetch that shows it"
    reading(store, KEY, "hit").close()


async def test_a_folder_that_is_removed_is_made_again(make: MakeStore, folder: Path) -> None:
    store = make()
    await keep(store, KEY, BODY)
    slow = reading(store, KEY, "hit")
    filled, filler = filling(store, key_of("two"))
    shutil.rmtree(folder)
    again, writer = filling(store, KEY)
    writer.write(b"anew")
    writer.publish()
    assert await read_all(again) == b"anew"
    assert await read_all(slow) == BODY
    filler.write(b"abc")
    filler.publish()
    assert await read_all(filled) == b"abc", "who reads along goes on"
    assert names(folder) == [KEY.hex()]
    for reader in (slow, again, filled):
        reader.close()
    shutil.rmtree(folder)
    folder.write_text("")
    assert store.ask(KEY, ABOUT).kind == "pass"
    assert store.trouble == f"{folder} is no folder, must be one"


async def test_a_folder_that_cannot_be_made(make: MakeStore, folder: Path) -> None:
    store = make()
    folder.parent.rename(folder.parent.with_name("gone"))
    try:
        assert store.ask(KEY, ABOUT).kind == "pass"
        assert "lies in a folder that is missing" in store.trouble or "cannot be made" in store.trouble
    finally:
        folder.parent.with_name("gone").rename(folder.parent)


async def test_a_lock_that_is_held_for_long_is_waited_for_once(make: MakeStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    await keep(store, KEY, BODY)
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    begun = time.monotonic()
    assert store.ask(key_of("two"), ABOUT).kind == "pass"
    assert time.monotonic() - begun >= 0.25
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setattr(module, "BUSY_SECONDS", 1000.0)
    store._busy_until = time.monotonic() + 1000
    for _ in range(100):
        assert store.ask(key_of("two"), ABOUT).kind == "pass"
    assert not waited, "the loop does not wait again and again for a process that hangs"
    os.close(held)
    store._busy_until = 0.0
    reader, writer = filling(store, key_of("two"))
    writer.fail("")
    reader.close()


@pytest.mark.parametrize("call", ["link", "ftruncate", "pwrite"])
async def test_a_disk_that_takes_no_new_entry_is_a_miss(make: MakeStore, folder: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    store = make()
    await keep(store, KEY, BODY)
    before = len(list(Path("/proc/self/fd").iterdir()))

    def full(*arguments: object, **named: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        assert store.ask(key_of("two"), ABOUT).kind == "pass"
    assert store.trouble == f"{folder} cannot be used: No space left on device"
    assert names(folder) == [KEY.hex()]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    await keep(store, key_of("two"), BODY)
    assert not store.trouble


async def test_trouble_with_the_disk_is_believed_to_be_over_after_a_while(make: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    store._troubled("disk", "it cannot be written")
    store._reconsider(1 << 40)
    assert store.trouble
    monkeypatch.setattr(module, "DISK_TROUBLE_SECONDS", 0.0)
    store._reconsider(1 << 40)
    assert not store.trouble
    poor = make(free_bytes=1000)
    poor._troubled("free_bytes", "too little")
    poor._reconsider(999)
    assert poor.trouble
    poor._reconsider(1000)
    assert not poor.trouble


# -- a worker's start and end ------------------------------------------------------------------------------------------------


async def test_a_start_cleans_up_and_looks_again_and_again(make: MakeStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.01)
    folder.mkdir(0o700)
    (folder / ".new-dead").write_text("")
    (folder / ".gone-dead").write_text("")
    store = make()
    store.start()
    await until(lambda: names(folder) == [])
    (folder / ".gone-dead").write_text("")
    await until(lambda: names(folder) == [])
    await keep(store, KEY, BODY)
    await until(lambda: store.disk_bytes == HEADER_BYTES + len(BODY))


async def test_a_store_that_is_closed_ends_its_fills_and_keeps_nothing(make: MakeStore, folder: Path) -> None:
    store, other = make(), make()
    await keep(store, key_of("two"), BODY)
    whole = reading(store, key_of("two"), "hit")
    reader, writer = filling(store, KEY)
    follower = reading(other, KEY, "joined")
    writer.write(BODY)
    store.close()
    store.close()
    assert writer.failed == "the relay stops"
    assert await failure(reader) == "the relay stops"
    assert await failure(follower)
    assert store.ask(key_of("two"), ABOUT).kind == "pass"
    assert await read_all(whole) == BODY
    await until(lambda: names(folder) == [key_of("two").hex()])
    for one in (reader, follower, whole):
        one.close()


def test_nothing_is_opened_without_packs(tmp_path: Path) -> None:
    assert open_store(None, tmp_path) is None
    store = open_store(PacksSettings(folder="packs", max_bytes=100_000, free_bytes=5, ttl_seconds=7, first=True), tmp_path)
    assert store is not None
    assert (store.path, store.max_bytes, store.free_bytes, store.ttl_seconds, store.first) == (tmp_path / "packs", 100_000, 5, 7, True)
    store.close()
