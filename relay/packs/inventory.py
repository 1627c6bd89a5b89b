"""What lies in the folder of packs, for operators: listed, and removed. Needs no running relay."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from relay.packs import entry
from relay.packs.entry import About, Damaged, Header, Outlived
from relay.packs.folder import Folder, FolderFault, as_owner
from relay.packs.sweep import SWEEP_LOCK_SECONDS


class Listed(NamedTuple):
    """An entry of the folder."""

    name: str
    about: About
    whole: bool  # else it is being filled
    bytes: int  # of the answer, as far as it is there
    made: float  # seconds since the epoch; of one that is being filled when that began
    used: float  # last
    uses: int  # how many fetches were answered from it, besides the one for which it was made


class Inventory(NamedTuple):
    """All entries, and how many files are none: a relay removes them."""

    entries: list[Listed]
    damaged: int
    free_bytes: int  # of the file system


class Removed(NamedTuple):
    """What was removed."""

    entries: int
    bytes: int
    damaged: int  # of these files, which cannot be used any more


def inventory(path: Path) -> Inventory | None:
    """None when there is no folder, so nothing is kept. Raises FolderFault, or OSError."""
    with _opened(path) as folder:
        if folder is None:
            return None
        entries: list[Listed] = []
        damaged = 0
        for name in folder.entries():
            try:
                found = folder.read(name)
            except Outlived:
                continue
            except Damaged:
                damaged += 1
                continue
            if found is not None:
                entries.append(_listed(name, *found))
        return Inventory(entries, damaged, folder.free_bytes())


def clear(path: Path, repository: str | None = None) -> Removed:
    """Removes all entries, or those of one repository, also those that are being filled: who reads them reads on, and the next fetch finds
    none. Raises FolderFault, or OSError."""
    count = size = damaged = 0
    with _opened(path) as folder:
        for name in folder.entries() if folder is not None else ():
            assert folder is not None
            try:
                found = folder.read(name)
                if found is None or (repository is not None and found[0].about.repository != _clipped(repository)):
                    continue
                inode, length = (found[1].st_dev, found[1].st_ino), found[1].st_size - entry.HEADER_BYTES
            except Damaged as error:
                if repository is not None or error.inode is None:
                    continue  # whose it was is not known
                inode, length = error.inode, 0
                damaged += 1
            with folder.locked(SWEEP_LOCK_SECONDS):
                gone = folder.remove(name, inode)
            if gone is not None:
                folder.dispose(gone)
                count += 1
                size += length
    return Removed(count, size, damaged)


def _listed(name: str, header: Header, status: os.stat_result, uses: int) -> Listed:
    length = status.st_size - entry.HEADER_BYTES
    return Listed(name, header.about, header.state == "whole", length, header.made, status.st_mtime, uses)


def _clipped(repository: str) -> str:
    """The name as an entry has it."""
    return entry.clipped(About("", repository, "", "")).repository


@contextmanager
def _opened(path: Path) -> Iterator[Folder | None]:
    """The folder, used as its owner; None when it is missing. Raises FolderFault."""
    try:
        owner = path.lstat().st_uid
    except FileNotFoundError:
        yield None
        return
    except PermissionError:
        owner = -1
    if os.geteuid() not in (0, owner):
        raise FolderFault(f"{path}: only the relay's user and root may look at it")
    with as_owner(path):
        folder = Folder(path, make=False)
        try:
            yield folder
        finally:
            folder.drop()
