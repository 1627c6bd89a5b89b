"""Filling an entry."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.packs import store as store_module
from relay.packs import writer as module
from relay.packs.entry import HEADER_BYTES
from relay.packs.store import Store
from relay.packs.writer import AHEAD_BYTES, AHEAD_LOW_BYTES, UNWRITTEN_BYTES, write_all
from tests.packs.helpers import ABOUT, Clock, failure, filling, keep, key_of, make_store, names, read_all, read_some, reading, until
from tests.packs.peer import Peer

KEY = key_of("one")
MiB = 1 << 20

MakeStore = Callable[..., Store]


@given(pieces=st.lists(st.binary(max_size=20), max_size=20), limit=st.integers(1, 7))
def test_what_the_kernel_takes_in_parts_is_written_whole(pieces: list[bytes], limit: int) -> None:
    fd = os.memfd_create("entry")
    real = os.pwritev

    def some(fd: int, pieces: list[bytes | memoryview], offset: int) -> int:
        return real(fd, [b"".join(pieces)[:limit]], offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwritev", some)
        write_all(fd, pieces, 5)
    assert os.pread(fd, 1000, 0) == (b"\0" * 5 + b"".join(pieces) if any(pieces) else b"")
    os.close(fd)


async def test_what_is_written_is_copied(make: MakeStore) -> None:
    reader, writer = filling(make(), KEY)
    data = bytearray(b"abc")
    writer.write(memoryview(data))
    data[:] = b"xyz"
    writer.publish()
    assert await read_all(reader) == b"abc"
    reader.close()


async def test_the_git_host_waits_while_too_much_is_not_on_the_disk(make: MakeStore) -> None:
    reader, writer = filling(make(), KEY)
    writer.write(bytes(UNWRITTEN_BYTES))
    assert not writer.full
    writer.write(b"x")
    assert writer.full
    room: list[bool] = []
    writer.on_room(lambda: room.append(writer.full))
    await until(lambda: room)
    assert room == [False]
    writer.fail("")
    reader.close()


@pytest.mark.parametrize("same", [True, False], ids=["of_the_same_worker", "of_another_worker"])
async def test_the_fill_is_not_much_ahead_of_its_fastest_reader(make: MakeStore, folder: Path, same: bool) -> None:
    one = make()
    other = one if same else make()
    first, writer = filling(one, KEY)
    slow, fast = reading(other, KEY, "joined"), reading(other, KEY, "joined")
    while not writer.full:
        writer.write(bytes(MiB))
        await until(lambda: first._entry.size == writer.length)
    assert writer.length == AHEAD_BYTES + MiB
    room: list[int] = []
    writer.on_room(lambda: room.append(fast.position))
    await read_some(fast, MiB)
    await read_some(slow, MiB)
    first.close()
    while not room:
        await read_some(fast, MiB)
        await asyncio.sleep(0)  # else nothing that was called comes
        await until(lambda: room or writer._fastest() == fast.position)
    assert writer.length - room[0] <= AHEAD_LOW_BYTES and not writer.full
    assert slow.position < 2 * MiB
    fast.close()
    await until(lambda: writer._fastest() == slow.position)
    slow.close()
    writer.fail("")


async def test_a_fill_is_wanted_as_long_as_anybody_reads(make: MakeStore, folder: Path) -> None:
    reader, writer = filling(make(), KEY)
    unwanted: list[str] = []
    writer.on_unwanted(lambda: unwanted.append("here"))
    async with Peer(folder) as peer, Peer(folder) as doomed:
        assert await peer.do("ask", "one") == "joined"
        assert await doomed.do("ask", "one") == "joined"
        reader.close()
        assert writer.wanted
        writer.write(b"abc")
        assert await peer.do("read", "one", 3) is not None
        await peer.do("close", "one")
        await until(lambda: writer._elsewhere == 0)
        assert writer.wanted and not unwanted
        await doomed.kill()
        await until(lambda: unwanted)
    assert not writer.wanted and writer.full
    writer.fail("nobody reads it")
    assert unwanted == ["here"]


async def test_nobody_is_told_of_a_fill_that_somebody_reads_again(make: MakeStore) -> None:
    store = make()
    reader, writer = filling(store, KEY)
    unwanted: list[str] = []
    writer.on_unwanted(lambda: unwanted.append("here"))
    reader.close()
    reader = reading(store, KEY, "joined")
    writer.write(b"abc")
    assert await read_some(reader, 3) == b"abc"
    assert not unwanted
    reader.close()
    await until(lambda: unwanted)
    writer.fail("")


async def test_a_write_after_a_failure_goes_nowhere(make: MakeStore, folder: Path) -> None:
    reader, writer = filling(make(), KEY)
    writer.write(bytes(MiB))  # a thread writes it
    writer.fail("the git host was lost")
    writer.fail("another time")
    writer.write(b"abc")
    writer.publish()
    assert writer.failed == "the git host was lost" and not writer.full
    room: list[str] = []
    writer.on_room(lambda: room.append("room"))
    await until(lambda: room)
    assert await failure(reader) == "the git host was lost"
    await until(lambda: names(folder) == [])
    reader.close()


async def test_a_fill_that_is_given_up_while_it_is_published_is_not_found(make: MakeStore, folder: Path) -> None:
    store = make()
    reader, writer = filling(store, KEY)
    store.look()
    await until(lambda: store._measured)
    writer.publish()
    assert writer._writing
    writer.fail("the relay stops")
    assert await failure(reader) == "the relay stops"
    await until(lambda: names(folder) == [])
    reader.close()


@contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """Longer files cannot be written: EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_who_reads_does_not_notice_a_disk_that_takes_no_more_and_nothing_is_kept(
    make: MakeStore, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = make()
    reader, writer = filling(store, KEY)
    with files_of_at_most(HEADER_BYTES + MiB):
        writer.write(b"a" * (MiB + 1))
        assert await read_some(reader, MiB + 1) == b"a" * (MiB + 1)
    assert (writer.failed, writer.unkept) == (None, "it cannot be written: File too large")
    assert store.trouble == f"{folder}: it cannot be written: File too large"
    assert f"packs: nothing is kept: {store.trouble}" in caplog.text
    await until(lambda: names(folder) == [])
    for _ in range(20):
        writer.write(b"b" * 100_000)
        assert await read_some(reader, 100_000) == b"b" * 100_000
    writer.write(b"the end")
    writer.publish()
    assert await read_all(reader) == b"the end" and writer.over
    reader.close()
    assert store.ask(KEY, ABOUT).kind == "pass", "it is not tried again for ttl_seconds"
    await keep(store, key_of("another"), bytes(MiB))
    assert not store.trouble


async def test_what_could_not_be_kept_passes_in_every_worker_for_ttl_seconds(make: MakeStore) -> None:
    clock = Clock()
    store, other = make(max_bytes=MiB, clock=clock), make(max_bytes=MiB, clock=clock)
    reader, writer = filling(store, KEY)
    writer.write(bytes(2 * MiB))
    assert len(await read_some(reader, 2 * MiB)) == 2 * MiB
    reader.close()
    writer.fail("nobody reads it")
    clock.now += 299
    assert [one.ask(KEY, ABOUT).kind for one in (store, other)] == ["pass", "pass"]
    clock.now += 2
    reader, writer = filling(other, KEY)
    writer.fail("")
    reader.close()


async def test_readers_of_other_workers_fail_when_the_disk_takes_no_more(make: MakeStore) -> None:
    store, other = make(), make()
    reader, writer = filling(store, KEY)
    far = reading(other, KEY, "joined")
    with files_of_at_most(HEADER_BYTES + MiB):
        writer.write(bytes(2 * MiB))
        assert await failure(far) == "the worker that filled it has given up"
        assert len(await read_some(reader, 2 * MiB)) == 2 * MiB
    writer.publish()
    assert await read_all(reader) == b""
    reader.close()
    far.close()


async def test_with_readers_in_other_workers_alone_a_disk_that_takes_no_more_ends_the_fill(make: MakeStore) -> None:
    store, other = make(), make()
    reader, writer = filling(store, KEY)
    far = reading(other, KEY, "joined")
    reader.close()
    with files_of_at_most(HEADER_BYTES + MiB):
        writer.write(bytes(2 * MiB))
        await until(lambda: writer.failed == "it cannot be written: File too large")
    far.close()


async def test_the_git_host_waits_for_the_slowest_while_the_rest_is_in_memory(make: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNWRITTEN_BYTES", MiB)
    monkeypatch.setattr(module, "UNWRITTEN_LOW_BYTES", MiB // 2)
    store = make(max_bytes=MiB)
    reader, writer = filling(store, KEY)
    slow = reading(store, KEY, "joined")
    for number in range(40):
        writer.write(bytes([number]) * 100_000)
    assert len(await read_some(reader, 4_000_000)) == 4_000_000
    assert writer.unkept and writer.full
    told: list[bool] = []
    writer.on_room(lambda: told.append(True))
    assert await read_some(slow, 4_000_000) == b"".join(bytes([number]) * 100_000 for number in range(40))
    await until(lambda: told)
    assert not writer.full
    slow.close()
    writer.write(b"the end")
    writer.publish()
    assert await read_all(reader) == b"the end"
    reader.close()


async def test_a_fill_that_fails_after_the_disk_did_fails_its_readers(make: MakeStore) -> None:
    store = make(max_bytes=MiB)
    reader, writer = filling(store, KEY)
    writer.write(bytes(2 * MiB))
    assert len(await read_some(reader, 2 * MiB)) == 2 * MiB
    writer.fail("the git host was lost")
    assert await failure(reader) == "the git host was lost"
    reader.close()


async def test_nobody_reads_any_more_what_the_disk_did_not_take(make: MakeStore) -> None:
    store = make(max_bytes=MiB)
    reader, writer = filling(store, KEY)
    writer.write(bytes(2 * MiB))
    assert len(await read_some(reader, 2 * MiB)) == 2 * MiB
    told: list[bool] = []
    writer.on_unwanted(lambda: told.append(True))
    reader.close()
    await until(lambda: told)
    writer.fail("nobody reads it")


async def test_a_file_system_that_is_full_fails_no_reader(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root may mount")
    folder = tmp_path / "mounted"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "packs", str(folder)], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("may not mount a tmpfs")
    try:
        store = make_store(folder)
        reader, writer = filling(store, KEY)
        for _ in range(30):
            writer.write(bytes(100_000))
        writer.publish()
        assert await read_all(reader) == bytes(3_000_000)
        assert writer.unkept == "it cannot be written: No space left on device"
        reader.close()
        await until(lambda: names(folder) == [])
        await keep(store, key_of("another"), bytes(MiB))
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_an_answer_larger_than_max_bytes_is_not_kept(make: MakeStore, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = make(max_bytes=MiB)
    reader, writer = filling(store, KEY)
    writer.write(bytes(MiB - HEADER_BYTES))
    await until(lambda: reader._entry.size == MiB - HEADER_BYTES)
    assert writer.unkept == ""
    writer.write(b"x")
    await until(lambda: writer.unkept == "it is larger than packs.max_bytes (1048576)")
    writer.publish()
    assert await read_all(reader) == bytes(MiB - HEADER_BYTES) + b"x"
    reader.close()
    assert "packs: the answer for team/app is not kept: it is larger than packs.max_bytes (1048576)" in caplog.text
    assert not store.trouble, "smaller ones are kept"


async def test_entries_longest_unused_make_room_and_those_being_filled_do_not(make: MakeStore, folder: Path) -> None:
    store = make(max_bytes=10 * MiB)
    for number in range(8):
        await keep(store, key_of(number), bytes(MiB))
        os.utime(folder / key_of(number).hex(), (1000 + number, 1000 + number))
    os.utime(folder / key_of(3).hex(), (5000, 5000))
    reader, writer = filling(store, KEY)
    for _ in range(5):
        writer.write(bytes(MiB))
    assert len(await read_some(reader, 5 * MiB)) == 5 * MiB
    left = [number for number in range(8) if (folder / key_of(number).hex()).exists()]
    assert left == [3, 5, 6, 7] or left == [3, 6, 7]
    second = store.ask(key_of("two"), ABOUT)
    assert second.reader is not None and second.writer is not None
    for _ in range(6):
        second.writer.write(bytes(MiB))
    assert len(await read_some(second.reader, 6 * MiB)) == 6 * MiB
    assert second.writer.unkept == "packs.max_bytes is used up by entries that are being filled"
    assert not any((folder / key_of(number).hex()).exists() for number in range(8))
    writer.publish()
    await until(lambda: reader.whole_read)
    reader.close()
    second.writer.fail("")
    second.reader.close()
    reading(store, KEY, "hit").close()


async def test_two_workers_that_fill_at_once_stay_below_max_bytes_together(make: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LOOK_BYTES", MiB)
    stores = [make(max_bytes=20 * MiB) for _ in range(2)]
    found = [filling(store, key_of(number)) for number, store in enumerate(stores)]
    while not any(writer.unkept for _, writer in found):
        for reader, writer in found:
            writer.write(bytes(MiB // 2))
            await until(lambda reader=reader, writer=writer: writer.unkept or reader._entry.size == writer.length)  # type: ignore[misc]
            await until(lambda: not any(store._sweeping for store in stores))
    total = sum(writer.length for _, writer in found)
    assert 15 * MiB <= total <= 22 * MiB, "there is no more room then, and not before"
    for reader, writer in found:
        writer.fail("")
        reader.close()


async def test_nothing_is_kept_when_the_file_system_has_too_little(
    make: MakeStore, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = make(free_bytes=100 * MiB)
    free = [1000 * MiB]
    real = os.fstatvfs

    def told(fd: int) -> os.statvfs_result:
        values = list(real(fd))
        values[0] = values[1] = 1  # f_bsize, f_frsize
        values[4] = free[0]  # f_bavail
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "fstatvfs", told)
    await keep(store, key_of(0), bytes(MiB))
    reader, writer = filling(store, KEY)
    free[0] = 100 * MiB
    writer.write(b"abc")
    assert await read_some(reader, 3) == b"abc"
    assert writer.unkept == "the file system has less than packs.free_bytes"
    writer.publish()
    assert await read_all(reader) == b""
    reader.close()
    await until(lambda: names(folder) == [])  # the entries that were there gave their room first
    free[0] = 100 * MiB - 1
    assert store.ask(key_of("another"), ABOUT).kind == "pass"
    assert store.trouble == f"the file system of {folder} has less than packs.free_bytes (104857600)"
    assert len(caplog.records) == 1, "once a minute"
    free[0] = 200 * MiB
    await keep(store, key_of("another"), b"abc")
    assert not store.trouble


@pytest.mark.parametrize("length", [HEADER_BYTES + 10, HEADER_BYTES + 2000])
async def test_a_file_that_somebody_else_changes_is_not_written_on(make: MakeStore, folder: Path, length: int) -> None:
    reader, writer = filling(make(), KEY)
    writer.write(bytes(1000))
    await read_some(reader, 500)
    os.truncate(folder / KEY.hex(), length)
    writer.write(b"abc")
    why = f"somebody else has changed it: it has {length} bytes, must have {HEADER_BYTES + 1000}"
    await until(lambda: writer.failed == why)
    reader.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
async def test_no_error_of_the_disk_is_a_failure_of_who_reads(make: MakeStore, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    store = make()
    reader, writer = filling(store, KEY)

    def broken(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwritev", broken)
    writer.write(b"abc")
    writer.publish()
    assert await read_all(reader) == b"abc"
    assert writer.unkept == f"it cannot be written: {os.strerror(code)}"
    assert store.ask(key_of("two"), ABOUT).kind == "fill"
    reader.close()


async def test_a_writer_shows_its_state(make: MakeStore) -> None:
    reader, writer = filling(make(), KEY)
    writer.write(b"abc")
    assert repr(writer).startswith("<Writer of 3 bytes, ")
    writer.fail("")
    reader.close()
