"""Who else may change a file: sshd's rule for files that it executes or trusts (safe_path), adapted to containers.

Mode bits are not enough: Kubernetes mounts ConfigMaps and Secrets read-only with mode 0777 or 1777, and nobody can write there.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LINKS_MOST = 40  # that Linux follows in one path

StatVfs = Callable[[Any], os.statvfs_result]


def is_read_only(where: int | str | Path, statvfs: StatVfs | None = None) -> bool:
    """Whether the mount of a descriptor or path is read-only."""
    try:
        return bool((statvfs or os.statvfs)(where).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def everyone_may_write(mode: int, where: int | str | Path, statvfs: StatVfs | None = None) -> bool:
    """Whether everyone can write to a file or folder; `where` is its descriptor or path."""
    return bool(mode & stat.S_IWOTH) and not is_read_only(where, statvfs)


def path_fault(path: Path, statvfs: StatVfs | None = None, *, private_group: bool = False) -> str | None:
    """Why somebody other than root and the relay's user could replace the file at `path`; None if nobody can.

    The file, each folder above it, and each symbolic link on the way with its folders must belong to root or the relay's user, and must not
    be writable for others. There are two exceptions: folders with the sticky bit, where only owners can replace files, and read-only
    mounts. With `private_group` the owner's own group may write, as in Debian's sshd. Raises OSError when there is no such file.
    """
    for place in _walk(path.absolute()):
        if (fault := _fault(place, place.lstat(), statvfs, private_group)) is not None:
            return fault
    return None


def _walk(path: Path) -> Iterator[Path]:
    """Each folder, link and file that the kernel passes on its way to `path` (path_resolution(7))."""
    here, rest, links = Path("/"), list(path.parts[1:]), 0
    yield here
    while rest:
        part = rest.pop(0)
        if part == "..":
            here = here.parent
            continue
        place = here / part
        yield place
        if not place.is_symlink():
            here = place
            continue
        links += 1
        if links > LINKS_MOST:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = place.readlink()
        if target.is_absolute():
            here = Path("/")
        rest = [part for part in target.parts if part != "/"] + rest


def _fault(place: Path, status: os.stat_result, statvfs: StatVfs | None, private_group: bool) -> str | None:
    link = stat.S_ISLNK(status.st_mode)
    if is_read_only(place.parent if link else place, statvfs):
        return None
    if status.st_uid not in (0, os.geteuid()):
        return f"{place} belongs to {_name(status.st_uid)}, must belong to root or to the relay's user"
    if link or (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
        return None
    group = status.st_mode & stat.S_IWGRP and not (private_group and _is_private(status.st_gid, status.st_uid))
    if group or status.st_mode & stat.S_IWOTH:
        return f"{place} may be written by others (mode {stat.S_IMODE(status.st_mode):04o}), must not: chmod go-w {place}"
    return None


def _is_private(group: int, user: int) -> bool:
    """Whether the group is the user's own: it has the same name, and no other member."""
    try:
        found, owner = grp.getgrgid(group), pwd.getpwuid(user)
    except KeyError:
        return False
    return found.gr_name == owner.pw_name and set(found.gr_mem) <= {owner.pw_name}


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"the user {user}"
