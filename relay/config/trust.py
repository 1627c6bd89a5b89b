"""Who else may change a file: sshd's rule for what it executes and believes (safe_path), for file systems as containers have them.

Mode bits alone do not say it. Kubernetes mounts ConfigMaps and Secrets with mode 0777 or 1777, read-only: nobody can write there.
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

LINKS_MOST = 40  # as Linux follows in one path

StatVfs = Callable[[Any], os.statvfs_result]


def is_read_only(where: int | str | Path, statvfs: StatVfs | None = None) -> bool:
    """Whether the mount that a descriptor or a path is on takes no writes."""
    try:
        return bool((statvfs or os.statvfs)(where).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def everyone_may_write(mode: int, where: int | str | Path, statvfs: StatVfs | None = None) -> bool:
    """Whether anybody can write to a file, or into a folder; `where` is its descriptor or path."""
    return bool(mode & stat.S_IWOTH) and not is_read_only(where, statvfs)


def path_fault(path: Path, statvfs: StatVfs | None = None, *, private_group: bool = False) -> str | None:
    """Why somebody besides root and the relay's user could put something else in the place of the file at `path`; None if nobody can.

    The file, every folder above it, and the same for each symbolic link on the way: each belongs to root or the relay's user and is not
    writable for others. A folder with the sticky bit may be, for there only owners replace what is theirs; so may what is mounted
    read-only. With `private_group` the owner's own group may write, as Debian's sshd has it. Raises OSError when there is no such file.
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
    """Whether the group has nobody in it but the user: a user's own, of the same name."""
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
