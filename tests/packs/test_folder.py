"""The folder of entries: who may use it, its lock, its files."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.packs import entry, folder
from relay.packs.entry import Damaged, Header
from relay.packs.folder import Busy, Folder, FolderFault, file_system, folder_fault
from tests.packs.helpers import ABOUT, key_of, names

KEY = key_of("one")
NAME = KEY.hex()
FILLING = Header(KEY, "filling", 0, 1_000.0, ABOUT)


@pytest.fixture
def packs(tmp_path: Path) -> Iterator[Folder]:
    one = Folder(tmp_path / "packs")
    yield one
    one.drop()


def test_a_folder_that_is_missing_is_made_for_the_relays_user_alone(tmp_path: Path) -> None:
    before = os.umask(0o077 ^ 0o777)
    try:
        Folder(tmp_path / "packs").drop()
    finally:
        os.umask(before)
    assert (tmp_path / "packs").stat().st_mode & 0o7777 == 0o700
    assert folder_fault(tmp_path / "packs") is None


def test_a_folder_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "packs"
    path.mkdir()
    for mode in (0o755, 0o750, 0o1700, 0o500, 0o2700):
        path.chmod(mode)
        fault = folder_fault(path)
        assert fault == f"{path} has the mode {mode:04o}, must have 0700: chmod 0700 {path}"
        with pytest.raises(FolderFault, match="0700"):
            Folder(path)
    path.chmod(0o700)
    assert folder_fault(path) is None


def test_a_symbolic_link_to_a_folder_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(0o700)
    (tmp_path / "packs").symlink_to("real")
    with pytest.raises(FolderFault, match="is a symbolic link, must be a folder itself"):
        Folder(tmp_path / "packs")
    (tmp_path / "nowhere").symlink_to("missing")
    with pytest.raises(FolderFault, match="is a symbolic link"):
        Folder(tmp_path / "nowhere")
    assert not (tmp_path / "missing").exists()


def test_a_folder_of_another_user_is_not_used(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root may give a folder away")
    (tmp_path / "packs").mkdir(0o700)
    os.chown(tmp_path / "packs", 12_345, -1)
    with pytest.raises(FolderFault, match="belongs to the user 12345, must belong to the relay's user"):
        Folder(tmp_path / "packs")


def test_a_folder_that_is_replaced_while_it_is_opened_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "packs").mkdir(0o700)
    real = os.open

    def replaced(path: Any, flags: int, *rest: int, **named: int) -> int:
        if path == tmp_path / "packs":
            (tmp_path / "packs").chmod(0o777)
        return real(path, flags, *rest, **named)

    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(os, "open", replaced)
    with pytest.raises(FolderFault, match="has the mode 0777"):
        Folder(tmp_path / "packs")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_and_a_path_without_its_parent_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "packs").write_text("")
    assert "is no folder" in (folder_fault(tmp_path / "packs") or "")
    assert "lies in a folder that is missing" in (folder_fault(tmp_path / "a" / "b") or "")
    assert "cannot be looked at: Not a directory" in (folder_fault(tmp_path / "packs" / "a") or "")


def test_a_folder_in_one_that_may_not_be_written_cannot_be_made() -> None:
    if not os.geteuid():
        pytest.skip("root may write everywhere")
    assert "its folder may not be written" in (folder_fault(Path("/packs")) or "")


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/srv/packs", "nfs4"),
        ("/srv/packs/deeper", "nfs4"),
        ("/srv/packs2", "xfs"),
        ("/srv/with space/x", "fuse.sshfs"),
        ("/srv/twice", "ext4"),
        ("/other", "ext4"),
    ],
)
def test_the_kind_of_a_file_system_is_that_of_the_nearest_mount(tmp_path: Path, place: str, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "23 22 254:1 / /srv rw - xfs /dev/vdb rw\n"
        "24 23 0:40 / /srv/packs rw shared:3 master:1 - nfs4 host:/packs rw\n"
        "25 23 0:41 / /srv/with\\040space rw - fuse.sshfs host: rw\n"
        "26 23 0:42 / /srv/twice rw - nfs host: rw\n"
        "27 26 0:43 / /srv/twice rw - ext4 /dev/vdc rw\n"
        "a line of another form\n"
    )
    assert file_system(Path(place), mounts) == kind


def test_a_machine_without_mountinfo_has_file_systems_of_no_known_kind(tmp_path: Path) -> None:
    assert file_system(tmp_path, tmp_path / "missing") == ""
    assert file_system(Path("/proc")) == "proc"


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "file_system", lambda path: "nfs4")
    fault = f"{tmp_path} lies on a network file system (nfs4), must lie on a disk of this machine"
    assert folder_fault(tmp_path / "packs") == fault
    (tmp_path / "packs").mkdir(0o700)
    with pytest.raises(FolderFault, match="network file system"):
        Folder(tmp_path / "packs")


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(entry, "try_locks", no_locks)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FolderFault, match=r"without locks \(No locks available\)"):
        Folder(tmp_path / "packs")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_lock_keeps_out_threads_and_processes(packs: Folder) -> None:
    order = []
    with packs.locked():

        def other() -> None:
            with packs.locked(60):
                order.append("other")

        thread = threading.Thread(target=other)
        thread.start()
        program = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        status = subprocess.run([sys.executable, "-c", program, str(packs.path)], stderr=subprocess.PIPE)
        assert status.returncode and b"BlockingIOError" in status.stderr
        order.append("first")
    thread.join(60)
    assert order == ["first", "other"]


def test_a_lock_that_is_held_for_long_is_not_waited_for(packs: Folder) -> None:
    program = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    holder = subprocess.Popen([sys.executable, "-c", program, str(packs.path)], stdin=pipe, stdout=pipe)
    assert holder.stdout is not None and holder.stdout.readline()
    begun = time.monotonic()
    with pytest.raises(Busy, match=r"held the lock of .*/packs for 0.25 s"), packs.locked():
        raise AssertionError("two held the lock")
    assert time.monotonic() - begun >= 0.25
    holder.kill()
    holder.communicate()
    with packs.locked(60):
        pass


def test_a_folder_that_goes_or_changes_is_noticed(packs: Folder, tmp_path: Path) -> None:
    assert packs.fault() is None
    packs.path.chmod(0o755)
    assert "0755" in (packs.fault() or "")
    packs.path.chmod(0o700)
    packs.path.rename(tmp_path / "moved")
    assert "cannot be looked at: No such file" in (packs.fault() or "")
    packs.path.mkdir(0o700)
    assert "was replaced by another folder" in (packs.fault() or "")


def test_an_entry_appears_with_its_lock_held_and_only_once(packs: Folder) -> None:
    with packs.locked():
        fd = packs.create(NAME, FILLING)
        assert fd is not None
        assert packs.create(NAME, FILLING) is None, "another was first"
    assert names(packs.path) == [NAME]
    assert os.fstat(fd).st_nlink == 1
    found = packs.read(NAME)
    assert found is not None and found[0].state == "filling"
    os.close(fd)
    with pytest.raises(Damaged, match="has died"):
        packs.read(NAME)


def test_an_entry_is_removed_only_if_it_is_still_that_file(packs: Folder) -> None:
    with packs.locked():
        fd = packs.create(NAME, FILLING)
        assert fd is not None
        inode = packs.inode(NAME)
        assert packs.remove(NAME, (0, 0)) is None and names(packs.path) == [NAME]
        gone = packs.remove(NAME, inode)
        assert gone is not None and names(packs.path) == [gone]
        assert packs.remove(NAME, inode) is None
    packs.dispose(gone)
    packs.dispose(gone)
    assert names(packs.path) == []
    os.close(fd)


def test_what_is_no_entry_is_damaged_and_left_alone_or_removed(packs: Folder, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("mine")
    (packs.path / NAME).symlink_to(tmp_path / "outside")
    with pytest.raises(Damaged, match="Too many levels of symbolic links") as caught:
        packs.read(NAME)
    with packs.locked():
        gone = packs.remove(NAME, caught.value.inode)
    assert gone is not None
    packs.dispose(gone)
    assert (tmp_path / "outside").read_text() == "mine"

    (packs.path / NAME).mkdir()
    with pytest.raises(Damaged, match="Is a directory"):
        packs.read(NAME)
    (packs.path / NAME / "file").write_text("mine")
    with pytest.raises(OSError, match="not empty"), packs.locked():
        packs.remove(NAME)
    (packs.path / NAME / "file").unlink()
    with packs.locked():
        assert packs.remove(NAME) is None
    assert names(packs.path) == []

    os.mkfifo(packs.path / NAME)
    with pytest.raises(Damaged, match="no regular file"):
        packs.read(NAME)


def test_only_entries_are_entries(packs: Folder) -> None:
    for name in ("README", "a" * 63, "A" * 64, "." + "a" * 64, "g" * 64, NAME):
        (packs.path / name).write_text("")
    assert list(packs.entries()) == [NAME]
    assert packs.read("b" * 64) is None


def test_the_folder_is_closed_when_the_last_has_dropped_it(tmp_path: Path) -> None:
    one = Folder(tmp_path / "packs")
    one.hold()
    one.drop()
    os.fstat(one.fd)
    one.drop()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(one.fd)
