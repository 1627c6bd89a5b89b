"""A session's way through an entry."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.packs.entry import HEADER_BYTES, EntryFailed
from relay.packs.reader import READ_BYTES
from relay.packs.store import Store
from tests.packs.helpers import failure, filling, keep, key_of, names, read_all, read_some, reading, until

BODY = os.urandom(3_000_000)
KEY = key_of("one")

MakeStore = Callable[..., Store]


async def test_reads_have_a_limit_and_share_one_buffer(make: MakeStore) -> None:
    store = make()
    await keep(store, KEY, BODY)
    reader, other = reading(store, KEY, "hit"), reading(store, KEY, "hit")
    first = reader.read()
    assert bytes(first) == BODY[:READ_BYTES] and reader.position == READ_BYTES
    second = other.read()
    assert first.obj is second.obj, "valid until the next read of this worker"
    assert await read_all(reader) == BODY[READ_BYTES:]
    reader.close()
    reader.close()
    other.close()


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EOPNOTSUPP], ids=["not_in_the_page_cache", "a_file_system_that_cannot_tell"])
async def test_bytes_that_would_be_waited_for_are_read_in_a_thread(make: MakeStore, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    store = make()
    await keep(store, KEY, BODY)

    def not_now(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "preadv", not_now)
    reader = reading(store, KEY, "hit")
    reader._in_memory = False
    assert not reader.read() and not reader.read(), "while the thread reads"
    assert await read_all(reader) == BODY
    reader.close()


async def test_bytes_of_a_cold_disk_come(make: MakeStore, folder: Path) -> None:
    store = make()
    await keep(store, KEY, BODY)
    fd = os.open(folder / KEY.hex(), os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    reader = reading(store, KEY, "hit")
    assert await read_all(reader) == BODY
    reader.close()


async def test_who_leaves_while_a_thread_reads_hears_nothing(make: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    await keep(store, KEY, BODY)

    def not_now(*arguments: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", not_now)
    reader = reading(store, KEY, "hit")
    entry = reader._entry
    reader._in_memory = False
    heard: list[str] = []
    assert not reader.read()
    reader.on_news(lambda: heard.append("news"))
    reader.close()
    assert entry._held == 1, "the thread has the descriptor"
    await until(lambda: not entry._held)
    assert not heard


async def test_news_comes_once_and_also_when_it_was_there_before(make: MakeStore) -> None:
    store = make()
    reader, writer = filling(store, KEY)
    heard: list[str] = []
    assert not reader.read()
    reader.on_news(lambda: heard.append("bytes"))
    writer.write(b"abc")
    await until(lambda: heard)
    writer.write(b"def")
    await until(lambda: reader._entry.size == 6)
    await asyncio.sleep(0)
    assert heard == ["bytes"]
    assert bytes(reader.read()) == b"abcdef"
    assert not reader.read()
    writer.publish()
    await until(lambda: reader.whole_read)
    reader.on_news(lambda: heard.append("end"))
    await until(lambda: heard == ["bytes", "end"])
    reader.close()


async def test_a_failure_is_news(make: MakeStore) -> None:
    store = make()
    reader, writer = filling(store, KEY)
    heard: list[str] = []
    reader.on_news(lambda: heard.append("failure"))
    writer.fail("the git host was lost")
    await until(lambda: heard)
    with pytest.raises(EntryFailed, match="the git host was lost"):
        reader.read()
    assert not reader.whole_read
    reader.close()


async def test_who_has_left_hears_nothing_more(make: MakeStore) -> None:
    store = make()
    reader, writer = filling(store, KEY)
    other = reading(store, KEY, "joined")
    heard: list[str] = []
    writer.write(b"abc")
    await until(lambda: other._entry.size)
    reader.on_news(lambda: heard.append("news"))  # the call is on its way
    reader.close()
    await asyncio.sleep(0)
    assert not heard
    writer.fail("")
    other.close()


@pytest.mark.parametrize("thread", [False, True], ids=["at_once", "in_a_thread"])
async def test_an_entry_that_is_cut_while_it_is_read_fails_and_is_removed(
    make: MakeStore, folder: Path, monkeypatch: pytest.MonkeyPatch, thread: bool
) -> None:
    store = make()
    await keep(store, KEY, BODY)
    reader, other = reading(store, KEY, "hit"), reading(store, KEY, "hit")
    await read_some(reader, 1)
    os.truncate(folder / KEY.hex(), HEADER_BYTES + reader.position)
    if thread:

        def not_now(*arguments: object) -> int:
            raise BlockingIOError

        monkeypatch.setattr(os, "preadv", not_now)
        reader._in_memory = False
    position = reader.position
    assert await failure(reader) == f"it ends after {position} bytes, must have {len(BODY)}"
    assert not reader.whole_read
    assert await failure(other), "nobody gets half an answer"
    await until(lambda: names(folder) == [])
    reader.close()
    other.close()


@pytest.mark.parametrize("thread", [False, True], ids=["at_once", "in_a_thread"])
async def test_a_disk_that_cannot_be_read_fails_the_entry(
    make: MakeStore, folder: Path, monkeypatch: pytest.MonkeyPatch, thread: bool
) -> None:
    store = make()
    await keep(store, KEY, BODY)
    reader = reading(store, KEY, "hit")
    reader._in_memory = False

    def broken(*arguments: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def not_now(*arguments: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", not_now if thread else broken)
    monkeypatch.setattr(os, "pread", broken)
    assert await failure(reader) == "it cannot be read: Input/output error"
    await until(lambda: names(folder) == [])
    reader.close()


async def test_a_reader_that_failed_for_a_filler_ends_the_fill(make: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    reader, writer = filling(store, KEY)
    writer.write(b"abc")
    await until(lambda: reader._entry.size)
    reader._entry.fail("it cannot be read: Input/output error", damage=True)
    assert writer.failed == "it cannot be read: Input/output error"
    reader.close()
    assert store.trouble


async def test_a_reader_and_its_entry_show_their_state(make: MakeStore) -> None:
    store = make()
    reader, writer = filling(store, KEY)
    name = KEY.hex()[:12]
    assert repr(reader) == f"<Reader at 0 of <Opened {name} filling, 0 bytes, 1 readers>>"
    writer.write(b"abc")
    writer.publish()
    assert await read_all(reader) == b"abc"
    assert repr(reader) == f"<Reader at 3 of <Opened {name} whole, 3 bytes, 1 readers>>"
    reader.close()
