"""The folder of entries: whether it can be used, its lock, and what lies in it.

    <64 hexadecimal digits>   an entry
    .new-*                    an entry that has no name yet
    .gone-*                   an entry that was removed, until its blocks are given back
    .seen                     which fetches were asked for once (relay.packs.seen)

Everything else in it belongs to somebody else and is left alone. The lock of the folder is a flock(2) of the folder itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from relay.packs import entry
from relay.packs.entry import Damaged, Header

SEEN: Final = ".seen"
LOCK_SECONDS: Final = 0.25  # for the lock of the folder, which others hold for some system calls; then the folder is not used for a while
LOCK_PAUSE_SECONDS: Final = 0.0005
FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700
NETWORK_KINDS: Final = frozenset(  # of file systems, whose locks other machines may not see, or whose bytes come later than their length
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "lustre", "gfs2", "ocfs2", "afs", "9p", "virtiofs", "beegfs", "gpfs"}
    | {"coda", "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs", "fuse.juicefs", "fuse.ceph", "orangefs"}
)

_ENTRY: Final = re.compile(r"[0-9a-f]{64}")
_OPEN: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # O_NONBLOCK: a pipe must not stop who opens it


class FolderFault(Exception):
    """The folder cannot be used; the text has its path and what it must be."""


class Busy(OSError):
    """The lock of the folder was held for LOCK_SECONDS."""


def folder_fault(path: Path) -> str | None:
    """Why entries cannot be kept in the folder at `path`; None when they can, or when it is missing and can be made."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        if not path.parent.is_dir():
            return f"{path} lies in a folder that is missing, must be a folder of mode 0700 of the relay's user"
        if not os.access(path.parent, os.W_OK | os.X_OK):
            return f"{path} is missing, and its folder may not be written: make it, with mode 0700, for the relay's user"
        return _kind_fault(path.parent)
    except OSError as error:
        return f"{path} cannot be looked at: {error.strerror}"
    return status_fault(path, status) or _kind_fault(path)


def status_fault(path: Path, status: os.stat_result) -> str | None:
    """Why others could read or change entries in the folder at `path`, or it is no folder."""
    if stat.S_ISLNK(status.st_mode):
        return f"{path} is a symbolic link, must be a folder itself"
    if not stat.S_ISDIR(status.st_mode):
        return f"{path} is no folder, must be one"
    if status.st_uid != os.geteuid():
        return f"{path} belongs to the user {status.st_uid}, must belong to the relay's user ({os.geteuid()})"
    if (mode := stat.S_IMODE(status.st_mode)) != FOLDER_MODE:
        return f"{path} has the mode {mode:04o}, must have 0700: chmod 0700 {path}"
    return None


def _kind_fault(path: Path) -> str | None:
    kind = file_system(path)
    if kind in NETWORK_KINDS:
        return f"{path} lies on a network file system ({kind}), must lie on a disk of this machine"
    return None


def file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The kind of the file system that holds `path`, as ext4 or nfs4; empty where that is not known."""
    try:
        place = path.resolve()
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return ""
    found, kind = -1, ""
    for line in lines:  # proc_pid_mountinfo(5): id, parent, device, root, mount point, options, optional fields, "-", kind, ...
        fields = line.split(" ")
        if "-" not in fields or len(fields) < 5:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        if place.is_relative_to(point) and len(point.parts) >= found:  # of two mounts at one place the later one is seen
            found, kind = len(point.parts), fields[fields.index("-") + 1]
    return kind


class Folder:
    """The open folder; closed when the last of those that hold it has dropped it. Raises FolderFault when it cannot be used."""

    def __init__(self, path: Path, *, make: bool = True) -> None:
        self.path = path
        self._held = 1
        if make and not os.path.lexists(path):
            _make(path)
        if (fault := folder_fault(path)) is not None:
            raise FolderFault(fault)
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise FolderFault(f"{path} cannot be opened: {error.strerror}") from None
        try:
            self._status = os.fstat(self.fd)
            if (fault := status_fault(path, self._status)) is not None:
                raise FolderFault(fault)  # it was replaced after it was looked at
            self.seen_fd = os.open(SEEN, _OPEN | os.O_CREAT, FILE_MODE, dir_fd=self.fd)
        except FolderFault:
            os.close(self.fd)
            raise
        except OSError as error:
            os.close(self.fd)
            raise FolderFault(f"{path} cannot be used: {SEEN}: {error.strerror}") from None
        try:
            entry.try_locks(self.seen_fd)
        except OSError as error:
            self.drop()
            raise FolderFault(f"{path} lies on a file system without locks ({error.strerror}), must lie on a local disk") from None

    def hold(self) -> None:
        self._held += 1

    def drop(self) -> None:
        self._held -= 1
        if not self._held:
            os.close(self.seen_fd)
            os.close(self.fd)

    def fault(self) -> str | None:
        """Why the folder cannot be used any more; asked before each use, as operators remove and replace folders."""
        try:
            status = self.path.lstat()
        except OSError as error:
            return f"{self.path} cannot be looked at: {error.strerror}"
        if (status.st_dev, status.st_ino) != (self._status.st_dev, self._status.st_ino):
            return f"{self.path} was replaced by another folder"
        return status_fault(self.path, status)

    @contextmanager
    def locked(self, seconds: float = LOCK_SECONDS) -> Iterator[None]:
        """Holds the lock of the folder, which all workers respect. Raises Busy."""
        end = time.monotonic() + seconds
        # a descriptor of its own: threads of a worker exclude each other too
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise Busy(errno.EBUSY, f"another process held the lock of {self.path} for {seconds:g} s") from None
                time.sleep(LOCK_PAUSE_SECONDS)
            yield
        finally:
            os.close(fd)

    def free_bytes(self) -> int:
        """What the file system has for users other than root. Raises OSError."""
        status = os.fstatvfs(self.fd)
        return status.f_bavail * status.f_frsize

    # -- entries -------------------------------------------------------------------------------------------------------------

    def open(self, name: str) -> int:
        """A descriptor of an entry's file, of any kind. Raises OSError."""
        return os.open(name, _OPEN, dir_fd=self.fd)

    def inode(self, name: str) -> tuple[int, int] | None:
        """What has this name; None when nothing has. Raises OSError."""
        try:
            status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def create(self, name: str, header: Header) -> int | None:
        """Makes an entry that is being filled, whose lock is held by the descriptor that is returned; None when there is one of this
        name. The lock of the folder must be held. Raises OSError."""
        temporary = f".new-{secrets.token_hex(8)}"
        fd = os.open(temporary, _OPEN | os.O_CREAT | os.O_EXCL, FILE_MODE, dir_fd=self.fd)
        try:
            entry.hold(fd)
            entry.write_header(fd, header)
            os.ftruncate(fd, entry.HEADER_BYTES)
            os.link(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd, follow_symlinks=False)
        except FileExistsError:
            os.close(fd)
            return None
        except BaseException:  # whatever it is is raised again, and nobody else has the descriptor
            os.close(fd)
            raise
        finally:
            os.unlink(temporary, dir_fd=self.fd)
        return fd

    def remove(self, name: str, inode: tuple[int, int] | None = None) -> str | None:
        """Takes an entry's name away, if it still is the file `inode`, and returns the name under which its blocks wait for `dispose`:
        giving back a large file takes long. None when it was removed already, or is another file. A folder of this name is removed only
        when it is empty, as no relay made it. The lock of the folder must be held. Raises OSError."""
        found = self.inode(name)
        if found is None or (inode is not None and found != inode):
            return None
        if stat.S_ISDIR(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode):
            os.rmdir(name, dir_fd=self.fd)
            return None
        gone = f".gone-{secrets.token_hex(8)}"
        os.rename(name, gone, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        return gone

    def dispose(self, gone: str) -> None:
        """Gives back the blocks of a file that was removed. Raises OSError, except when another worker was first."""
        try:
            os.unlink(gone, dir_fd=self.fd)
        except FileNotFoundError:
            pass

    def unopened(self, name: str, error: OSError) -> Damaged:
        """What is wrong with an entry that cannot be opened: a symbolic link, a folder, or not ours to read."""
        damaged = Damaged(f"it cannot be opened: {error.strerror}")
        damaged.inode = self.inode(name)
        return damaged

    def entries(self) -> Iterator[str]:
        """The names of all entries. Raises OSError."""
        yield from (name for name in self.names() if _ENTRY.fullmatch(name))

    def names(self) -> list[str]:
        with os.scandir(self.fd) as found:
            return [one.name for one in found]

    def read(self, name: str) -> tuple[Header, os.stat_result, int] | None:
        """Header, status and uses of an entry; None when it is gone. Raises Damaged, or OSError."""
        try:
            fd = self.open(name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.unopened(name, error) from None
        try:
            header, status = entry.inspect(fd, bytes.fromhex(name))
            return header, status, entry.uses(fd)
        finally:
            os.close(fd)


@contextmanager
def as_owner(path: Path) -> Iterator[None]:
    """For commands: root acts as the owner of the folder, if it is there. So files that it makes are the relay's, and a link that somebody
    put there leads to nothing that only root may touch. Others act as themselves."""
    user, group = os.geteuid(), os.getegid()
    try:
        status = path.lstat()
    except OSError:
        status = None
    try:
        if status is not None and user == 0 and status.st_uid != 0:
            os.setegid(status.st_gid)
            os.seteuid(status.st_uid)
        yield
    finally:
        if os.geteuid() != user:
            os.seteuid(user)
            os.setegid(group)


def _make(path: Path) -> None:
    try:
        path.mkdir(FOLDER_MODE)
        path.chmod(FOLDER_MODE)  # whatever the umask is
    except FileExistsError:
        pass  # another worker was first
    except OSError as error:
        raise FolderFault(f"{path} cannot be made: {error.strerror}") from None
