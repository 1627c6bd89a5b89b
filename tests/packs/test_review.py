"""What `relay check` says about [packs]."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from relay.config import PacksSettings
from relay.packs import entry, folder
from relay.packs.review import review_packs

SMALL = PacksSettings(folder="packs", max_bytes=100_000, free_bytes=0)


def test_nothing_is_said_without_packs_and_about_a_good_folder(tmp_path: Path) -> None:
    assert review_packs(None, tmp_path) == []
    assert review_packs(SMALL, tmp_path) == []
    assert not (tmp_path / "packs").exists()
    (tmp_path / "packs").mkdir(0o700)
    assert review_packs(SMALL, tmp_path) == []


def test_a_folder_of_another_kind_or_mode_or_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "packs"
    path.mkdir(0o755)
    path.chmod(0o755)
    assert review_packs(SMALL, tmp_path) == [
        ("folder", f"{path} has the mode 0755, must have 0700: chmod 0700 {path}; until then nothing is kept")
    ]
    path.chmod(0o700)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "file_system", lambda path: "nfs4")
        [(field, text)] = review_packs(SMALL, tmp_path)
        assert field == "folder" and "network file system (nfs4)" in text

    def no_locks(fd: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(entry, "try_locks", no_locks)
    [(field, text)] = review_packs(SMALL, tmp_path)
    assert field == "folder" and "without locks" in text


@pytest.mark.parametrize("made", [False, True])
def test_a_file_system_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool) -> None:
    if made:
        (tmp_path / "packs").mkdir(0o700)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((1000, 1000, 100_000, 50_000, 30_000, 0, 0, 0, 0, 255)))
    path = tmp_path / "packs"

    def said(most: int, free: int) -> list[tuple[str, str]]:
        return review_packs(PacksSettings(folder="packs", max_bytes=most, free_bytes=free), tmp_path)

    assert said(70_000_000, 30_000_000) == []
    assert said(80_000_000, 30_000_000) == [("max_bytes", f"is 80.0 MB, and the file system of {path} holds 70.0 MB beside free_bytes")]
    assert said(1_000_000, 30_000_001) == [("free_bytes", f"is 30.0 MB, and {path} has 30.0 MB free: nothing is kept")]
    assert [field for field, _ in said(1_000_000, 200_000_000)] == ["free_bytes", "max_bytes"]


def test_root_judges_the_folder_of_the_relays_user() -> None:
    if os.geteuid():
        pytest.skip("only root may give a folder away")
    with tempfile.TemporaryDirectory(prefix="packs-") as parent:  # that every user may enter
        Path(parent).chmod(0o755)
        path = Path(parent) / "packs"
        path.mkdir(0o700)
        os.chown(path, 12_345, 12_345)
        assert review_packs(SMALL, Path(parent)) == []
        assert {one.stat().st_uid for one in path.iterdir()} == {12_345}
        path.chmod(0o750)
        assert [field for field, _ in review_packs(SMALL, Path(parent))] == ["folder"]
        assert os.geteuid() == os.getegid() == 0


def test_a_folder_that_vanishes_while_it_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: Path) -> os.statvfs_result:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "statvfs", gone)
    [(field, text)] = review_packs(SMALL, tmp_path)
    assert field == "folder" and "No such file or directory" in text
