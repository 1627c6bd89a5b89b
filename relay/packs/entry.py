"""An entry: one answer of a git host in one file, a header of 4096 bytes and then the pkt-lines as they leave for clients.

    offset  bytes  holds
         0      8  magic and version of this layout
         8     16  checksum (BLAKE2b) of the bytes 24 to 2040
        24         key, state, length of the body, when it was made, boot of the machine, About
      2040      8  how often the entry was used
      2048   2048  256 slots of 8 bytes: for each other worker that reads along while the entry is filled, how far its fastest reader is

Who fills an entry holds its lock (flock(2)) until the last byte is written: an entry that is being filled and whose lock is free belongs to
a worker that died. A slot counts as long as its worker holds a lock of its first byte (open file description locks, fcntl(2)), which the
kernel releases when the worker dies. The length of what was filled so far is the file's own size, which the kernel changes after the bytes
are there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import struct
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

HEADER_BYTES: Final = 4096
KEY_BYTES: Final = 32
SLOTS: Final = 256  # the most workers that `workers` allows
UPSTREAM_BYTES: Final = 64
REPOSITORY_BYTES: Final = 1000  # of a longer name the beginning is kept
IDENTITY_BYTES: Final = 256
ASKED_BYTES: Final = 100

UNKNOWN_BOOT: Final = bytes(16)

State = Literal["filling", "whole", "failed"]

_MAGIC: Final = b"RELAYPK1"
_FIXED: Final = struct.Struct(">32sBQd16sH")  # key, state, length, made, boot, bytes of About
_CHECKED: Final = 24  # where what the checksum covers begins
_USES: Final = 2040
_SLOT_BASE: Final = 2048
_NUMBER: Final = struct.Struct(">Q")
_STATES: Final[tuple[State, ...]] = ("filling", "whole", "failed")
_FLOCK: Final = struct.Struct("hhqqi0q")  # struct flock of fcntl(2): l_type, l_whence, l_start, l_len, l_pid


class About(NamedTuple):
    """What people see of an entry in `relay packs`."""

    upstream: str
    repository: str
    identity: str  # empty unless the git host sees a login for each identity
    asked: str  # in short: "full", "depth 1", "filter blob:none"


class EntryFailed(Exception):
    """The entry gives no further bytes: its fill has failed, it is damaged, or the disk has."""


class Damaged(Exception):
    """A file that is no entry, or not the one that it should be. `inode` is the file's, where it is known."""

    inode: tuple[int, int] | None = None


class Outlived(Damaged):
    """An entry that was made before the machine was started: nothing to worry about."""


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed part of an entry's header."""

    key: bytes
    state: State
    length: int  # of the body, once the entry is whole; 0 before
    made: float  # seconds since the epoch
    about: About
    boot: bytes = b""


@cache
def this_boot() -> bytes:
    """Identifies the machine's start: after a crash of the machine a file may have its length without its bytes, and is not used."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip().replace("-", "")
        return bytes.fromhex(text)[:16].ljust(16, b"\0")
    except (OSError, ValueError):  # no procfs, or one of processes alone: systemd's ProcSubset=pid
        return UNKNOWN_BOOT


def clipped(about: About) -> About:
    """What of `about` fits into a header."""
    limits = (UPSTREAM_BYTES, REPOSITORY_BYTES, IDENTITY_BYTES, ASKED_BYTES)
    return About(*(_clip(text, limit) for text, limit in zip(about, limits, strict=True)))


def _clip(text: str, limit: int) -> str:
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def encode(header: Header) -> bytes:
    """The first 2040 bytes of an entry's file."""
    about = msgspec.msgpack.encode(tuple(clipped(header.about)))
    state = _STATES.index(header.state)
    fixed = _FIXED.pack(header.key, state, header.length, header.made, header.boot or this_boot(), len(about)) + about
    checked = fixed.ljust(_USES - _CHECKED, b"\0")
    return _MAGIC + _checksum(checked) + checked


def decode(raw: bytes) -> Header:
    """Raises Damaged for anything but what `encode` made."""
    if len(raw) < _USES:
        raise Damaged(f"it has {len(raw)} bytes, too few for a header")
    if raw[: len(_MAGIC)] != _MAGIC:
        raise Damaged("it does not begin as an entry does")
    checked = raw[_CHECKED:_USES]
    if _checksum(checked) != raw[len(_MAGIC) : _CHECKED]:
        raise Damaged("the checksum of its header is wrong")
    key, state, length, made, boot, about_bytes = _FIXED.unpack_from(checked)
    try:
        about = About(*msgspec.msgpack.decode(checked[_FIXED.size : _FIXED.size + about_bytes], type=tuple[str, str, str, str]))
        return Header(key, _STATES[state], length, made, about, boot)
    except (msgspec.DecodeError, IndexError, UnicodeDecodeError) as error:
        raise Damaged(f"its header cannot be read: {error}") from None


def _checksum(checked: bytes) -> bytes:
    return hashlib.blake2b(checked, digest_size=_CHECKED - len(_MAGIC)).digest()


def read_header(fd: int) -> Header:
    """Raises Damaged, or OSError."""
    raw = os.pread(fd, _USES, 0)
    while True:
        try:
            return decode(raw)
        except Damaged:
            before, raw = raw, os.pread(fd, _USES, 0)
            if raw == before:  # else it was read while its worker wrote it, which no lock forbids
                raise


def write_header(fd: int, header: Header) -> None:
    """Writes the fixed part. Raises OSError."""
    raw = encode(header)
    if os.pwrite(fd, raw, 0) != len(raw):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def inspect(fd: int, key: bytes) -> tuple[Header, os.stat_result]:
    """Reads the header of an entry that was just opened, and compares it with the file. Raises Damaged, or OSError.

    An entry that is being filled has a worker that lives.
    """
    status = os.fstat(fd)
    try:
        header, status = _inspect(fd, key, status)
        if header.state == "filling" and not is_held(fd):
            header, status = _inspect(fd, key, status)  # its worker may have published it since
            if header.state == "filling":
                raise Damaged("the worker that filled it has died")
    except Damaged as error:
        error.inode = (status.st_dev, status.st_ino)
        raise
    return header, status


def _inspect(fd: int, key: bytes, status: os.stat_result) -> tuple[Header, os.stat_result]:
    if not stat.S_ISREG(status.st_mode):
        raise Damaged("it is no regular file")
    if status.st_uid != os.geteuid():
        raise Damaged(f"it belongs to the user {status.st_uid}")
    header = read_header(fd)
    status = os.fstat(fd)  # after the header: a whole entry does not grow any more
    if header.key != key:
        raise Damaged("it holds another entry")
    if header.boot != this_boot() or (header.boot == UNKNOWN_BOOT and header.made < time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)):
        raise Outlived("it was made before the machine was started")
    if header.state == "whole" and status.st_size != HEADER_BYTES + header.length:
        raise Damaged(f"it has {status.st_size} bytes, must have {HEADER_BYTES + header.length}")
    if status.st_size < HEADER_BYTES:
        raise Damaged(f"it has {status.st_size} bytes, too few for a header")
    return header, status


def body_bytes(fd: int) -> int:
    """How many bytes of the body are there. Raises OSError."""
    return max(0, os.fstat(fd).st_size - HEADER_BYTES)


# -- the lock of who fills ---------------------------------------------------------------------------------------------------


def hold(fd: int) -> None:
    """Takes the lock of an entry that nobody else knows yet. Raises OSError."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def release(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_UN)


def is_held(fd: int) -> bool:
    """Whether a worker holds the lock; `fd` must be of another open file description than the worker's. Raises OSError."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


# -- how often it was used ---------------------------------------------------------------------------------------------------


def uses(fd: int) -> int:
    raw = os.pread(fd, _NUMBER.size, _USES)
    return int(_NUMBER.unpack(raw)[0]) if len(raw) == _NUMBER.size else 0


def add_uses(fd: int, count: int) -> bool:
    """Adds `count`; False when another worker is adding at this moment: nothing was added then. Raises OSError."""
    if not _lock(fd, _USES):
        return False
    try:
        os.pwrite(fd, _NUMBER.pack(uses(fd) + count), _USES)
    finally:
        _unlock(fd, _USES)
    return True


def try_locks(fd: int) -> None:
    """Tries the kinds of locks that entries need, which not every file system has. Raises OSError where there are none."""
    is_held(fd)
    if _lock(fd, 0):
        _unlock(fd, 0)


# -- the slots of workers that read along ------------------------------------------------------------------------------------


def claim_slot(fd: int) -> int | None:
    """Takes a free slot for this worker; None when all are taken. Raises OSError."""
    for slot in range(SLOTS):
        if _lock(fd, _SLOT_BASE + _NUMBER.size * slot):
            set_slot(fd, slot, 0)
            return slot
    return None


def set_slot(fd: int, slot: int, position: int) -> None:
    """Tells who fills the entry how far this worker's fastest reader is. Raises OSError."""
    os.pwrite(fd, _NUMBER.pack(position + 1), _SLOT_BASE + _NUMBER.size * slot)  # 0 is a slot that is not taken


def free_slot(fd: int, slot: int) -> None:
    """Raises OSError."""
    os.pwrite(fd, bytes(_NUMBER.size), _SLOT_BASE + _NUMBER.size * slot)
    _unlock(fd, _SLOT_BASE + _NUMBER.size * slot)


def fastest_slot(fd: int) -> int | None:
    """How far the fastest reader of all other workers is; None when no other worker reads. Raises OSError."""
    if not _is_locked(fd, _SLOT_BASE, _NUMBER.size * SLOTS):
        return None
    raw = os.pread(fd, _NUMBER.size * SLOTS, _SLOT_BASE)
    positions = [position for (position,) in _NUMBER.iter_unpack(raw[: len(raw) // _NUMBER.size * _NUMBER.size])]
    known = [
        position - 1
        for slot, position in enumerate(positions)
        if position and _is_locked(fd, _SLOT_BASE + _NUMBER.size * slot, 1)  # else of a worker that died
    ]
    return max(known, default=0)  # a slot that is locked, and not written yet


def _lock(fd: int, offset: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: fcntl(2)
        return False
    return True


def _unlock(fd: int, offset: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, offset, 1, 0))


def _is_locked(fd: int, offset: int, length: int) -> bool:
    """Whether another open file description has a lock there."""
    raw = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, length, 0))
    return bool(_FLOCK.unpack(raw)[0] != fcntl.F_UNLCK)
