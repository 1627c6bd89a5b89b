"""An entry's file: its header, the lock of who fills it, its slots, its uses."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.packs import entry
from relay.packs.entry import HEADER_BYTES, SLOTS, About, Damaged, Header, Outlived
from tests.packs.helpers import ABOUT, key_of
from tests.packs.peer import Peer

KEY = key_of("one")
WHOLE = Header(KEY, "whole", 100, 1_000.0, ABOUT)

OpenFile = Callable[[], int]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[OpenFile]:
    """Opens one file, each time anew."""
    opened: list[int] = []

    def open_file() -> int:
        opened.append(os.open(tmp_path / "entry", os.O_RDWR | os.O_CREAT, 0o600))
        return opened[-1]

    yield open_file
    for fd in opened:
        os.close(fd)


@given(
    header=st.builds(
        Header,
        st.binary(min_size=32, max_size=32),
        st.sampled_from(["filling", "whole", "failed"]),
        st.integers(0, 1 << 62),
        st.floats(0, 1e11),
        st.builds(About, *[st.text(max_size=30)] * 4),
        st.just(entry.this_boot()),
    )
)
def test_a_header_is_read_as_it_was_written(header: Header) -> None:
    read = entry.decode(entry.encode(header))
    assert read == Header(header.key, header.state, header.length, header.made, entry.clipped(header.about), header.boot)


@given(text=st.text())
def test_a_name_of_any_length_and_of_any_letters_fits(text: str) -> None:
    raw = entry.encode(Header(KEY, "filling", 0, 0.0, About(text, text + "é" * 2000, text, text)))
    assert len(raw) == 2040
    assert entry.decode(raw).about.repository.startswith(text.encode("utf-8", "replace").decode()[:900])


@given(at=st.integers(0, 2039), bit=st.integers(0, 7))
def test_a_header_with_one_bit_changed_is_damaged(at: int, bit: int) -> None:
    raw = bytearray(entry.encode(WHOLE))
    raw[at] ^= 1 << bit
    with pytest.raises(Damaged):
        entry.decode(bytes(raw))


@given(raw=st.binary(max_size=4096))
def test_bytes_that_are_no_header_are_damaged(raw: bytes) -> None:
    with pytest.raises(Damaged):
        entry.decode(raw)


@pytest.mark.parametrize("about", [b"\xc1", b"\x93\xa1a\xa1a\xa1a", b"\x94\xa1\xff\xa1a\xa1a\xa1a", b""])
def test_a_header_whose_checksum_is_right_and_whose_words_are_not_is_damaged(about: bytes) -> None:
    fixed = entry._FIXED.pack(KEY, 1, 0, 0.0, entry.this_boot(), len(about)) + about
    checked = fixed.ljust(2040 - 24, b"\0")
    with pytest.raises(Damaged):
        entry.decode(b"RELAYPK1" + entry._checksum(checked) + checked)


def test_a_state_that_is_not_known_is_damaged() -> None:
    checked = entry._FIXED.pack(KEY, 3, 0, 0.0, entry.this_boot(), 5).ljust(2040 - 24, b"\0")
    with pytest.raises(Damaged):
        entry.decode(b"RELAYPK1" + entry._checksum(checked) + checked)


def write(fd: int, header: Header, body: int) -> None:
    entry.write_header(fd, header)
    os.ftruncate(fd, HEADER_BYTES + body)


def test_an_entry_is_inspected_when_it_is_opened(file: OpenFile) -> None:
    write(file(), WHOLE, 100)
    header, status = entry.inspect(file(), KEY)
    assert header == Header(KEY, "whole", 100, 1_000.0, ABOUT, entry.this_boot()) and status.st_size == HEADER_BYTES + 100


@pytest.mark.parametrize(
    ("header", "body", "why"),
    [
        (WHOLE, 99, "must have 4196"),
        (WHOLE, 101, "must have 4196"),
        (WHOLE, -4000, "too few for a header"),
        (Header(key_of("two"), "whole", 100, 1_000.0, ABOUT), 100, "another entry"),
        (Header(KEY, "filling", 0, 1_000.0, ABOUT), -1, "too few for a header"),
        (Header(KEY, "filling", 0, 1_000.0, ABOUT), 50, "has died"),
        (Header(KEY, "whole", 100, 1_000.0, ABOUT, b"another boot\0\0\0\0"), 100, "before the machine was started"),
    ],
)
def test_a_file_that_is_not_what_its_header_says_is_damaged(file: OpenFile, header: Header, body: int, why: str) -> None:
    fd = file()
    write(fd, header, body)
    with pytest.raises(Damaged, match=why) as caught:
        entry.inspect(file(), KEY)
    status = os.fstat(fd)
    assert caught.value.inode == (status.st_dev, status.st_ino)
    assert isinstance(caught.value, Outlived) == ("started" in why)


def test_without_a_boot_id_the_machines_uptime_decides(file: OpenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "this_boot", lambda: entry.UNKNOWN_BOOT)
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    write(file(), Header(KEY, "whole", 100, started + 60, ABOUT), 100)
    assert entry.inspect(file(), KEY)[0].state == "whole"
    write(file(), Header(KEY, "whole", 100, started - 60, ABOUT), 100)
    with pytest.raises(Outlived):
        entry.inspect(file(), KEY)


def test_the_boot_is_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert entry.this_boot.__wrapped__().hex() == Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")

    def hidden(*arguments: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", hidden)
    assert entry.this_boot.__wrapped__() == entry.UNKNOWN_BOOT


def test_a_file_of_another_user_is_damaged(file: OpenFile) -> None:
    if os.geteuid():
        pytest.skip("only root may give a file away")
    fd = file()
    write(fd, WHOLE, 100)
    os.fchown(fd, 12_345, -1)
    with pytest.raises(Damaged, match="belongs to the user 12345"):
        entry.inspect(file(), KEY)


def test_a_header_that_is_read_while_it_is_written_is_read_again(file: OpenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = file()
    write(fd, WHOLE, 100)
    real = os.pread
    torn = [entry.encode(WHOLE)[:1000] + bytes(1040)]
    monkeypatch.setattr(os, "pread", lambda *where: torn.pop() if torn else real(*where))
    assert entry.read_header(fd).state == "whole"
    assert not torn


def test_the_lock_of_who_fills_is_free_when_its_descriptor_is_closed(file: OpenFile, tmp_path: Path) -> None:
    writer = os.open(tmp_path / "entry", os.O_RDWR | os.O_CREAT, 0o600)
    entry.hold(writer)
    fd = file()
    assert entry.is_held(fd)
    write(writer, Header(KEY, "filling", 0, 0.0, ABOUT), 50)
    assert entry.inspect(fd, KEY)[0].state == "filling"
    os.close(writer)
    assert not entry.is_held(fd)


def test_the_fastest_of_all_slots_counts(file: OpenFile) -> None:
    writer, one, other = file(), file(), file()
    write(writer, WHOLE, 100)
    assert entry.fastest_slot(writer) is None
    first, second = entry.claim_slot(one), entry.claim_slot(other)
    assert (first, second) == (0, 1)
    assert entry.fastest_slot(writer) == 0
    entry.set_slot(one, 0, 500)
    entry.set_slot(other, 1, 70)
    assert entry.fastest_slot(writer) == 500
    entry.free_slot(one, 0)
    assert entry.fastest_slot(writer) == 70
    entry.free_slot(other, 1)
    assert entry.fastest_slot(writer) is None


def test_a_slot_whose_worker_died_does_not_count_and_is_taken_again(file: OpenFile, tmp_path: Path) -> None:
    writer, one = file(), os.open(tmp_path / "entry", os.O_RDWR | os.O_CREAT, 0o600)
    write(writer, WHOLE, 100)
    entry.claim_slot(one)
    entry.set_slot(one, 0, 1 << 40)
    alive = file()
    assert entry.claim_slot(alive) == 1
    entry.set_slot(alive, 1, 3)
    os.close(one)  # as the kernel does for a worker that is killed
    assert entry.fastest_slot(writer) == 3
    again = file()
    assert entry.claim_slot(again) == 0
    assert entry.fastest_slot(writer) == 3


def test_there_are_slots_for_as_many_workers_as_there_may_be(file: OpenFile) -> None:
    fds = [file() for _ in range(SLOTS + 1)]
    write(fds[0], WHOLE, 0)
    assert [entry.claim_slot(fd) for fd in fds] == [*range(SLOTS), None]
    os.fstat(fds[0])
    assert os.fstat(fds[0]).st_size == HEADER_BYTES
    assert entry.decode(os.pread(fds[0], 2040, 0)).key == KEY, "the slots lie behind the header"


def test_uses_are_added_up_unless_another_worker_adds_at_this_moment(file: OpenFile) -> None:
    one, other = file(), file()
    write(one, WHOLE, 100)
    assert entry.uses(one) == 0
    assert entry.add_uses(one, 2) and entry.add_uses(other, 3)
    assert entry.uses(one) == 5
    entry._lock(one, 2040)
    assert not entry.add_uses(other, 1)
    entry._unlock(one, 2040)
    assert entry.uses(one) == 5 and entry.add_uses(other, 1)
    assert entry.inspect(other, KEY)[0].key == KEY, "the checksum does not cover them"


async def test_locks_and_slots_hold_between_processes_and_end_with_them(tmp_path: Path) -> None:
    async with Peer(tmp_path / "packs") as filler, Peer(tmp_path / "packs") as follower:
        assert await filler.do("ask", "one") == "fill"
        fd = os.open(tmp_path / "packs" / KEY.hex(), os.O_RDWR)
        try:
            assert entry.is_held(fd) and entry.fastest_slot(fd) is None
            assert await follower.do("ask", "one") == "joined"
            assert entry.fastest_slot(fd) == 0
            await follower.kill()
            assert entry.fastest_slot(fd) is None
            await filler.kill()
            assert not entry.is_held(fd)
        finally:
            os.close(fd)
