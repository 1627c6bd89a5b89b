"""What lies in the folder of packs, for operators."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.packs.folder import FolderFault
from relay.packs.inventory import Removed, clear, inventory
from relay.packs.store import About, Store
from tests.packs.helpers import ABOUT, Clock, filling, keep, key_of, names, read_all, read_some, reading

ROOT = Path(__file__).parents[2]
KEEP = """
import asyncio, os, sys
from pathlib import Path
from tests.packs.helpers import keep, key_of, make_store

async def main():
    os.setegid(12345)
    os.seteuid(12345)
    store = make_store(Path(sys.argv[1]))
    await keep(store, key_of("one"), b"x" * 1000)
    store.close()

asyncio.run(main())
"""
OTHER = About("main", "team/lib", "alice", "depth 1")

MakeStore = Callable[..., Store]


def test_a_folder_that_is_missing_holds_nothing(folder: Path) -> None:
    assert inventory(folder) is None
    assert clear(folder) == Removed(0, 0, 0)
    assert not folder.exists()


async def test_entries_are_listed_with_what_is_known_of_them(make: MakeStore, folder: Path) -> None:
    clock = Clock()
    store = make(clock=clock)
    await keep(store, key_of("one"), b"x" * 1000)
    clock.now += 7
    for _ in range(3):
        reading(store, key_of("one"), "hit").close()
    reader, writer = filling(store, key_of("two"), OTHER)
    writer.write(b"y" * 50)
    await read_some(reader, 50)
    found = inventory(folder)
    assert found is not None and not found.damaged and found.free_bytes > 0
    one, two = sorted(found.entries, key=lambda entry: entry.whole, reverse=True)
    assert (one.about, one.whole, one.bytes, one.made, one.used, one.uses) == (ABOUT, True, 1000, clock.now - 7, clock.now, 3)
    assert (two.about, two.whole, two.bytes, two.uses) == (OTHER, False, 50, 0)
    writer.fail("")
    reader.close()


async def test_entries_of_one_repository_are_removed_and_who_reads_them_reads_on(make: MakeStore, folder: Path) -> None:
    store = make()
    await keep(store, key_of("one"), b"x" * 1000)
    await keep(store, key_of("two"), b"y" * 500, OTHER)
    slow = reading(store, key_of("two"), "hit")
    reader, writer = filling(store, key_of("three"), OTHER)
    writer.write(b"z" * 10)
    assert await read_some(reader, 10) == b"z" * 10
    assert clear(folder, "team") == clear(folder, "team/lib/") == Removed(0, 0, 0)
    assert clear(folder, "team/lib") == Removed(2, 510, 0)
    assert names(folder) == [key_of("one").hex()]
    assert await read_all(slow) == b"y" * 500
    again, second = filling(store, key_of("three"), OTHER)
    writer.write(b"z" * 10)
    writer.publish()
    assert await read_all(reader) == b"z" * 10
    second.publish()
    assert await read_all(again) == b""
    assert names(folder) == sorted([key_of("one").hex(), key_of("three").hex()]), "the end of the old one does not remove the new one"
    for one in (slow, reader, again):
        one.close()


async def test_all_are_removed_and_what_is_no_entry_stays(make: MakeStore, folder: Path) -> None:
    store = make()
    await keep(store, key_of("one"), b"x" * 1000)
    await keep(store, key_of("two"), b"x" * 1000)
    os.truncate(folder / key_of("two").hex(), 5000)
    (folder / "README").write_text("mine")
    found = inventory(folder)
    assert found is not None and len(found.entries) == 1 and found.damaged == 1
    assert clear(folder, "team/app") == Removed(1, 1000, 0), "whose the damaged one was is not known"
    assert clear(folder) == Removed(1, 0, 1)
    assert names(folder) == ["README"]


def test_a_folder_that_a_relay_would_not_use_is_not_used(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(FolderFault, match="0700"):
        inventory(folder)
    with pytest.raises(FolderFault, match="0700"):
        clear(folder)


async def test_root_works_as_the_relays_user_and_others_may_not() -> None:
    if os.geteuid():
        pytest.skip("only root may become another user")
    with tempfile.TemporaryDirectory(prefix="packs-") as parent:  # that every user may enter
        Path(parent).chmod(0o755)
        folder = Path(parent) / "packs"
        folder.mkdir(0o700)
        os.chown(folder, 12_345, 12_345)
        done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", KEEP, str(folder)], cwd=ROOT, check=False)
        assert done.returncode == 0
        found = inventory(folder)
        assert found is not None and len(found.entries) == 1
        assert os.geteuid() == os.getegid() == 0
        assert {path.stat().st_uid for path in folder.iterdir()} == {12_345}
        os.seteuid(23_456)
        try:
            for act in (inventory, clear):
                with pytest.raises(FolderFault, match="only the relay's user and root may look at it"):
                    act(folder)
        finally:
            os.seteuid(0)
        assert clear(folder) == Removed(1, 1000, 0)
