"""The files of a run: content with checksums, repositories of the right size, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import zlib
from pathlib import Path

import msgspec
import pytest

from benchmarks.processes import MeasureError
from benchmarks.sizes import TINY
from benchmarks.user import current
from benchmarks.workspace import BLOCK_BYTES, Workspace, place, workspace


def test_a_blob_has_its_size_and_both_checksums(space: Workspace) -> None:
    blob = space.blob(BLOCK_BYTES + 12_345)
    content = blob.path.read_bytes()
    assert len(content) == blob.size == BLOCK_BYTES + 12_345
    assert blob.crc32 == zlib.crc32(content)
    assert blob.cksum.split()[1] == str(blob.size)
    assert len(zlib.compress(content[:100_000], 1)) > 99_000
    assert space.blob(blob.size) is blob


def test_a_repository_holds_incompressible_bytes_on_its_branches(space: Workspace) -> None:
    path = space.repository("team", 5_000_000)
    packed = sum(file.stat().st_size for file in (path / "objects").rglob("*") if file.is_file())
    assert 5_000_000 < packed < 5_100_000
    assert len(list((path / "objects" / "pack").glob("*.pack"))) == 1
    refs = subprocess.run(["git", "-C", path, "for-each-ref"], env=space.env, capture_output=True, text=True, check=True).stdout
    assert len(refs.splitlines()) == 20
    assert len(space.head(path)) == 40
    assert space.size("team") == 5_000_000
    subprocess.run(["git", "-C", path, "fsck", "--strict"], env=space.env, capture_output=True, check=True)


def test_nothing_is_left_also_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), workspace(tmp_path, current()) as space:
        private = space.key("one").private
        assert private.stat().st_mode & 0o777 == 0o600
        assert space.root.stat().st_mode & 0o777 == 0o755
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_blanks_is_refused(tmp_path: Path) -> None:
    blank = tmp_path / "a b"
    blank.mkdir()
    with pytest.raises(MeasureError, match="blanks"), workspace(blank, current()):
        pass


def test_memory_is_taken_only_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = msgspec.structs.replace(TINY, repository_bytes=1 << 60)
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/the/temporary/folder")
    assert place(huge) == Path("/the/temporary/folder")
    room = shutil._ntuple_diskusage(1 << 62, 0, 1 << 62)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_AVPHYS_PAGES": 1 << 50, "SC_PAGE_SIZE": 4096}[name])
    monkeypatch.setattr(os, "access", lambda *_: True)
    monkeypatch.setattr(Path, "is_dir", lambda _: True)
    assert place(TINY) == Path("/dev/shm")
