"""One look through the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.packs import entry
from relay.packs.entry import HEADER_BYTES, Header
from relay.packs.folder import Folder
from relay.packs.sweep import Known, Swept, sweep
from tests.packs.helpers import ABOUT, key_of, names

NOW = 10_000.0


@pytest.fixture
def packs(tmp_path: Path) -> Iterator[Folder]:
    one = Folder(tmp_path / "packs")
    yield one
    one.drop()


def put(packs: Folder, name: int, made: float = NOW, used: float = NOW, bytes: int = 1000, boot: bytes = b"") -> str:
    key = key_of(name)
    path = packs.path / key.hex()
    path.write_bytes(entry.encode(Header(key, "whole", bytes, made, ABOUT, boot)).ljust(HEADER_BYTES, b"\0") + b"x" * bytes)
    os.utime(path, (used, used))
    return key.hex()


def look(packs: Folder, known: Known | None = None, most: int = 1 << 40, short: int = 0) -> Swept:
    return sweep(packs, {} if known is None else known, NOW, 100, most, short)


def told(swept: Swept) -> tuple[int, int, list[tuple[str, str]], list[tuple[str, str]]]:
    assert swept.free_bytes > 0
    return swept.bytes, swept.removed, swept.damaged, swept.stuck


def test_what_is_too_old_goes_and_the_rest_is_counted(packs: Folder) -> None:
    young = put(packs, 1, made=NOW - 99)
    put(packs, 2, made=NOW - 100, used=NOW)
    known: Known = {}
    assert told(look(packs, known)) == (HEADER_BYTES + 1000, 1, [], [])
    assert names(packs.path) == [young]
    assert [made for _, made in known.values()] == [NOW - 99]


def test_those_longest_unused_go(packs: Folder) -> None:
    kept = [put(packs, number, used=NOW - number) for number in range(4)]
    size = HEADER_BYTES + 1000
    assert told(look(packs, most=2 * size + 5)) == (2 * size, 2, [], [])
    assert names(packs.path) == sorted(kept[:2])
    assert told(look(packs, short=1)) == (size, 1, [], [])
    assert names(packs.path) == kept[:1]


def test_what_an_earlier_look_has_read_is_not_read_again(packs: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = put(packs, 1)
    known: Known = {}
    look(packs, known)
    put(packs, 2)
    read: list[str] = []
    real = Folder.read

    def counted(self: Folder, name: str) -> Any:
        read.append(name)
        return real(self, name)

    monkeypatch.setattr(Folder, "read", counted)
    look(packs, known)
    assert read == [key_of(2).hex()]
    (packs.path / first).unlink()
    assert look(packs, known).bytes == HEADER_BYTES + 1000
    assert len(known) == 1


def test_an_entry_in_the_inode_of_an_older_one_of_its_name_is_not_taken_for_it(packs: Folder) -> None:
    """File systems use an inode again at once; rewritten in place it is the same for sure."""
    name = put(packs, 1, made=NOW - 99)
    known: Known = {}
    look(packs, known)
    inode = (packs.path / name).stat().st_ino
    put(packs, 1, made=NOW)
    assert (packs.path / name).stat().st_ino == inode
    assert sweep(packs, known, NOW + 50, 100, 1 << 40, 0).removed == 0
    assert names(packs.path) == [name]


def test_damaged_entries_go_with_a_remark_and_those_of_another_boot_without(packs: Folder) -> None:
    cut, flipped = put(packs, 1), put(packs, 2)
    os.truncate(packs.path / cut, HEADER_BYTES + 999)
    with (packs.path / flipped).open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    other = key_of(3).hex()
    (packs.path / other).write_bytes((packs.path / put(packs, 4)).read_bytes())
    put(packs, 5, boot=b"b" * 16)
    dead = key_of(6)
    (packs.path / dead.hex()).write_bytes(entry.encode(Header(dead, "filling", 0, NOW, ABOUT)).ljust(HEADER_BYTES, b"\0"))
    swept = look(packs)
    assert names(packs.path) == [key_of(4).hex()]
    assert swept.bytes == HEADER_BYTES + 1000 and swept.removed == 5
    assert not swept.stuck
    assert dict(swept.damaged) == {
        cut: "it has 5095 bytes, must have 5096",
        flipped: "the checksum of its header is wrong",
        other: "it holds another entry",
        dead.hex(): "the worker that filled it has died",
    }


def test_what_is_filled_stays_and_what_a_killed_worker_left_goes(packs: Folder) -> None:
    with packs.locked():
        fd = packs.create(key_of(1).hex(), Header(key_of(1), "filling", 0, NOW - 1000, ABOUT))
    assert fd is not None
    living = os.open(packs.path / ".new-living", os.O_RDWR | os.O_CREAT, 0o600)
    entry.hold(living)
    (packs.path / ".new-dead").write_text("")
    (packs.path / ".gone-dead").write_text("")
    (packs.path / "README").write_text("mine")
    assert told(look(packs, most=0)) == (HEADER_BYTES, 0, [], [])
    assert names(packs.path) == sorted([".new-living", key_of(1).hex(), "README"])
    os.close(living)
    os.close(fd)


def test_what_cannot_be_removed_is_told_and_the_rest_is_done(packs: Folder) -> None:
    for name in (key_of(1).hex(), ".gone-folder"):
        (packs.path / name).mkdir()
        (packs.path / name / "file").write_text("mine")
    put(packs, 2, made=0)
    swept = look(packs)
    assert swept.removed == 1
    assert swept.damaged == [(key_of(1).hex(), "it cannot be opened: Is a directory")]
    assert swept.stuck == [(".gone-folder", "Is a directory"), (key_of(1).hex(), "Directory not empty")]
