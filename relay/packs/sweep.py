"""One look through the folder: removes entries that are too old or too much, and what a killed worker left."""

from __future__ import annotations

import os
from typing import NamedTuple

from relay.packs import entry
from relay.packs.entry import Damaged, Outlived
from relay.packs.folder import Folder
from relay.packs.room import Kept, leaving

SWEEP_LOCK_SECONDS = 5.0  # for the lock of the folder; a thread may wait longer for it than a loop


class Swept(NamedTuple):
    """What a look has found."""

    bytes: int  # of the entries that stay
    free_bytes: int  # of the file system, at the end
    removed: int
    damaged: list[tuple[str, str]]  # entries that were removed for that, and why
    stuck: list[tuple[str, str]]  # what cannot be removed, and why


Known = dict[tuple[str, tuple[int, int]], tuple[int, float]]
"""For whole entries, by name and inode: the last change of the file (st_ctime_ns), and when the entry was made."""


def sweep(folder: Folder, known: Known, now: float, ttl_seconds: float, max_bytes: int, short_bytes: int) -> Swept:
    """`known` has the whole entries that an earlier look has read; it is brought up to date. Raises OSError. Runs in a thread."""
    entries: list[Kept] = []
    damaged: list[tuple[str, str]] = []
    stuck: list[tuple[str, str]] = []
    removed = 0
    for name in folder.names():
        if name.startswith(".gone-"):
            _dispose(folder, name, stuck)
        elif name.startswith(".new-"):
            _remove_orphan(folder, name)
    for name in folder.entries():
        try:
            if (kept := _look(folder, name, known)) is not None:
                entries.append(kept)
        except Damaged as error:
            if not isinstance(error, Outlived):
                damaged.append((name, str(error)))
            removed += _remove(folder, name, error.inode, stuck)
    going, total = leaving(entries, now, ttl_seconds, max_bytes, short_bytes)
    for one in going:
        removed += _remove(folder, one.name, one.inode, stuck)
    gone = {(one.name, one.inode) for one in going}
    there = {(one.name, one.inode) for one in entries} - gone
    for key in [key for key in known if key not in there]:
        del known[key]
    return Swept(total, folder.free_bytes(), removed, damaged, stuck)


def _look(folder: Folder, name: str, known: Known) -> Kept | None:
    try:
        status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    inode = (status.st_dev, status.st_ino)
    changed, made = known.get((name, inode), (0, 0.0))
    if changed == status.st_ctime_ns:  # else it may be the next entry of this name, in an inode that is used again
        return Kept(name, inode, status.st_size, made, status.st_mtime, True)
    found = folder.read(name)
    if found is None:
        return None
    header, status, _ = found
    inode = (status.st_dev, status.st_ino)
    if header.state == "whole":
        known[name, inode] = status.st_ctime_ns, header.made
    return Kept(name, inode, status.st_size, header.made, status.st_mtime, header.state == "whole")


def _remove(folder: Folder, name: str, inode: tuple[int, int] | None, stuck: list[tuple[str, str]]) -> int:
    try:
        with folder.locked(SWEEP_LOCK_SECONDS):
            gone = folder.remove(name, inode)
    except OSError as error:
        stuck.append((name, error.strerror or str(error)))
        return 0
    if gone is None:
        return 0
    _dispose(folder, gone, stuck)
    return 1


def _dispose(folder: Folder, gone: str, stuck: list[tuple[str, str]]) -> None:
    try:
        folder.dispose(gone)
    except OSError as error:
        stuck.append((gone, error.strerror or str(error)))


def _remove_orphan(folder: Folder, name: str) -> None:
    """Removes a file that a worker made without naming it, unless that worker lives."""
    with folder.locked(SWEEP_LOCK_SECONDS):  # who makes one holds it
        try:
            fd = folder.open(name)
        except OSError:  # gone, or nothing that a relay made
            return
        try:
            if not entry.is_held(fd):
                folder.dispose(name)
        finally:
            os.close(fd)
