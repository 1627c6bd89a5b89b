"""The store of a worker: answers of git hosts that are kept for equal fetches, in a folder that all workers of the machine share.

`Store.ask` says how a fetch is answered: from an entry that is whole, from one that is being filled, by filling one, or not from here. It
and all else is called in the loop's thread. Trouble with the disk never raises: it is a log line and a `pass`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from relay.config import PacksSettings
from relay.packs import entry, seen
from relay.packs.disk import Closed, Disk, Outcome
from relay.packs.entry import About, Damaged, EntryFailed, Header, Outlived
from relay.packs.folder import Busy, Folder, FolderFault, file_system
from relay.packs.opened import Opened
from relay.packs.reader import READ_BYTES, Reader
from relay.packs.room import is_old
from relay.packs.sweep import Known, Swept, sweep
from relay.packs.writer import Writer

__all__ = ["READ_BYTES", "About", "EntryFailed", "Found", "Reader", "Store", "Writer", "open_store"]

SWEEP_SECONDS: Final = 5.0  # between two looks through the folder
LOOK_BYTES: Final = 128 << 20  # that this worker has written make it look, too; each worker may exceed max_bytes by as much
TOUCH_SECONDS: Final = 1.0  # a use is written to an entry at most so often
TROUBLE_SECONDS: Final = 60.0  # between two log lines about the same trouble
TROUBLES: Final = 1000  # that are remembered for this
REFUSED: Final = 1000  # keys that are remembered as such whose answer could not be kept
BUSY_SECONDS: Final = 1.0  # so long the folder is left alone after its lock was not free for LOCK_SECONDS
DISK_TROUBLE_SECONDS: Final = 300.0  # after an error of the disk it is supposed to work again, if no fetch has shown that it does
ATTEMPTS: Final = 3  # at an entry that others make and remove at the same moment
MARGIN_BYTES: Final = 64 << 20  # room is made for so much at once, as each time means a look through the folder
MEMORY_KINDS: Final = frozenset({"tmpfs", "ramfs"})

_log = logging.getLogger("relay.packs")


def open_store(settings: PacksSettings | None, base: Path) -> Store | None:
    """The store of one worker; None when nothing is to be kept. `base`: the folder of the configuration."""
    if settings is None:
        return None
    return Store(
        base / settings.folder,
        max_bytes=settings.max_bytes,
        free_bytes=settings.free_bytes,
        ttl_seconds=settings.ttl_seconds,
        first=settings.first,
    )


class Found(NamedTuple):
    """How a fetch is answered."""

    kind: Literal["hit", "joined", "fill", "pass"]
    reader: Reader | None = None  # for hit, joined and fill
    writer: Writer | None = None  # for fill


PASS: Final = Found("pass")


@dataclass(slots=True)
class _Wish:
    """Room that a writer waits for."""

    count: int
    short: int
    call: Callable[[bool], None]


class Store:
    """One for each worker. `start` begins the regular look through the folder; `ask` works without it."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        free_bytes: int,
        ttl_seconds: float,
        first: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.free_bytes = free_bytes
        self.ttl_seconds = ttl_seconds
        self.first = first
        self.disk_bytes = 0  # of all entries, as of the last look through the folder
        self.trouble = ""  # why nothing is kept; empty when nothing speaks against it
        self._trouble = ("", 0.0)  # its kind, and when it was met last (monotonic)
        self._clock = clock
        self._disk = Disk()
        self._folder: Folder | None = None
        self._in_memory = False
        self._opened: dict[str, Opened] = {}
        self._writers: set[Writer] = set()
        self._measured = False  # whether disk_bytes is known
        self._grown = 0  # bytes that this worker wrote since the last look
        self._growing = 0  # bytes that threads write now
        self._known: Known = {}  # for the look
        self._sweeping = False
        self._busy_until = float("-inf")  # monotonic
        self._wishes: list[_Wish] = []
        self._timer: asyncio.TimerHandle | None = None
        self._refused: dict[bytes, float] = {}  # when an answer could not be kept
        self._told: dict[str, float] = {}  # when a kind of trouble was logged last
        self._closed = False

    def start(self) -> None:
        """Cleans up what a killed worker left, and looks through the folder from now on."""
        self._tick()

    def close(self) -> None:
        """Ends all fills; readers get no further bytes. Waits for what threads write at this moment."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for writer in list(self._writers):
            writer.fail("the relay stops")
        for opened in list(self._opened.values()):
            self._write_uses(opened)
        self._disk.close()
        if self._folder is not None:
            self._folder.drop()
            self._folder = None

    # -- a fetch asks --------------------------------------------------------------------------------------------------------

    def ask(self, key: bytes, about: About) -> Found:
        """How the fetch with this key (32 bytes) is answered. Who gets a reader must close it; who gets a writer must publish or fail
        it."""
        assert len(key) == entry.KEY_BYTES
        if self._closed or time.monotonic() < self._busy_until:
            return PASS
        try:
            return self._ask(key, about)
        except FolderFault as error:
            self._troubled("folder", str(error))
        except OSError as error:
            if isinstance(error, Busy):
                self._busy_until = time.monotonic() + BUSY_SECONDS
            self._troubled("disk", f"{self.path} cannot be used: {error.strerror}")
        return PASS

    def _ask(self, key: bytes, about: About) -> Found:
        folder = self._use_folder()
        name = key.hex()
        for _ in range(ATTEMPTS):
            found = self._find(folder, name, key) or self._begin(folder, name, key, about)
            if found is not None:
                return found
        return PASS

    def _use_folder(self) -> Folder:
        """The folder, opened anew when an operator has replaced it."""
        if self._folder is not None and (fault := self._folder.fault()) is not None:
            self._folder.drop()
            self._folder = None
            _log.info("packs: %s", fault)
        if self._folder is None:
            self._folder = Folder(self.path)
            self._in_memory = file_system(self.path) in MEMORY_KINDS
            self._known = {}
        return self._folder

    # -- an entry that is there ----------------------------------------------------------------------------------------------

    def _find(self, folder: Folder, name: str, key: bytes) -> Found | None:
        opened = self._opened.get(name)
        if opened is not None:
            opened.look()
        if opened is not None and (opened.failed or folder.inode(name) != opened.inode):
            self._opened.pop(name, None)  # who reads it reads on
            opened = None
        if opened is None:
            opened = self._open(folder, name, key)
            if opened is None:
                return None
        opened.hold()
        try:
            if opened.whole and is_old(opened.made, self._clock(), self.ttl_seconds):
                self._remove(name, opened.inode)
                return None
            self._use(folder, opened, key)
            return Found("hit" if opened.whole else "joined", Reader(opened, in_memory=self._in_memory))
        finally:
            opened.drop()

    def _open(self, folder: Folder, name: str, key: bytes) -> Opened | None:
        """Opens an entry; None when there is none, or no more. Raises OSError."""
        try:
            fd = folder.open(name)
        except FileNotFoundError:
            return None
        except OSError as error:
            damaged = folder.unopened(name, error)
            self._damaged(name, str(damaged), damaged.inode)
            return None
        opened = None
        try:
            opened = self._opened_of(name, fd, key)
        except Outlived as error:
            self._remove(name, error.inode)
        except Damaged as error:
            self._damaged(name, str(error), error.inode)
        except BaseException:  # whatever it is is raised again, and nobody else has the descriptor
            os.close(fd)
            raise
        if opened is None:
            os.close(fd)
        return opened

    def _opened_of(self, name: str, fd: int, key: bytes) -> Opened | None:
        header, status = entry.inspect(fd, key)
        if header.state == "failed":  # its worker takes the name away in a moment
            self._remove(name, (status.st_dev, status.st_ino))
            return None
        opened = Opened(name, fd, header, status, self._disk)
        if header.state == "filling" and not opened.follow():
            raise OSError(0, f"{entry.SLOTS} other workers read an entry along")
        self._keep(opened)
        return opened

    def _keep(self, opened: Opened) -> None:
        self._opened[opened.name] = opened
        opened.on_close = self._closing
        opened.on_damage = lambda entry: self._damaged(entry.name, entry.failed, entry.inode)

    def _closing(self, opened: Opened) -> None:
        if opened.used and not opened.failed:
            self._write_uses(opened)
        if self._opened.get(opened.name) is opened:
            del self._opened[opened.name]

    def _use(self, folder: Folder, opened: Opened, key: bytes) -> None:
        """Counts a use of an entry: those longest unused leave first."""
        opened.used += 1
        if abs(self._clock() - opened.used_at) < TOUCH_SECONDS:
            return
        self._write_uses(opened)
        if self.first:
            return
        try:
            with folder.locked():  # when the entry is gone for its age, the next fetch makes it anew at once
                seen.mark(folder.seen_fd, key, self._clock(), self.ttl_seconds)
        except OSError as error:
            self._troubled("disk", f"{self.path} cannot be written: {error.strerror}")

    def _write_uses(self, opened: Opened) -> None:
        opened.used_at = now = self._clock()
        try:
            if opened.used and entry.add_uses(opened.fd, opened.used):
                opened.used = 0
            os.utime(opened.fd, (now, now))
        except OSError as error:
            self._troubled("disk", f"{self.path} cannot be written: {error.strerror}")

    # -- an entry that is not there ------------------------------------------------------------------------------------------

    def _begin(self, folder: Folder, name: str, key: bytes, about: About) -> Found | None:
        """Begins to fill an entry, or lets the fetch pass; None when another worker has just made the entry."""
        now = self._clock()
        header = Header(key, "filling", 0, now, about)
        with folder.locked():
            if folder.inode(name) is not None:
                return None
            if self._is_refused(folder, key, now):
                return PASS
            if not self.first and not seen.mark(folder.seen_fd, key, now, self.ttl_seconds):
                return PASS
            if folder.free_bytes() < self.free_bytes:
                self._troubled("free_bytes", f"the file system of {self.path} has less than packs.free_bytes ({self.free_bytes})")
                self.look()
                return PASS
            fd = folder.create(name, header)
        if fd is None:
            return None
        opened = Opened(name, fd, header, os.fstat(fd), self._disk)
        self._keep(opened)
        reader = Reader(opened, in_memory=self._in_memory)
        writer = Writer(opened, header, self)
        self._writers = {one for one in self._writers if not one.over} | {writer}
        return Found("fill", reader, writer)

    # -- what writers ask (Keeper) -------------------------------------------------------------------------------------------

    def now(self) -> float:
        return self._clock()

    def take_room(self, count: int) -> bool:
        if not self._measured or not self._has_room(count):
            return False
        self._growing += count
        return True

    def _has_room(self, count: int) -> bool:
        return self.disk_bytes + self._grown + self._growing + count <= self.max_bytes

    def return_room(self, count: int, *, written: bool) -> None:
        self._growing -= count
        if written:
            self._grown += count
            self._works()
            if self._grown >= LOOK_BYTES:
                self.look()

    def make_room(self, count: int, short: int, call: Callable[[bool], None]) -> None:
        self._wishes.append(_Wish(count, short, call))
        self.look()

    def given_up(self, opened: Opened, why: str, blame: str) -> None:
        if blame == "damage":
            self._damaged(opened.name, why, opened.inode)
            return
        self._remove(opened.name, opened.inode)
        if blame:
            self._refuse(bytes.fromhex(opened.name))
        if blame == "max_bytes":
            if self._is_news(blame):
                _log.warning("packs: the answer for %s is not kept: %s", opened.about.repository, why)
        elif blame:
            self._troubled(blame, f"{self.path}: {why}")

    def _refuse(self, key: bytes) -> None:
        """What could not be kept once is not tried again for ttl_seconds, by no worker: each try may cost sessions of other workers."""
        folder, now = self._folder, self._clock()
        if len(self._refused) >= REFUSED:
            self._refused.clear()
        self._refused[key] = now
        if folder is None:
            return
        try:
            with folder.locked():
                seen.refuse(folder.seen_fd, key, now)
        except OSError:
            pass  # the disk may be full, which was told; then this worker alone knows

    def _is_refused(self, folder: Folder, key: bytes, now: float) -> bool:
        """Raises OSError."""
        if abs(now - self._refused.get(key, float("-inf"))) < self.ttl_seconds:
            return True
        return seen.is_refused(folder.seen_fd, key, now, self.ttl_seconds)

    # -- removing ------------------------------------------------------------------------------------------------------------

    def _damaged(self, name: str, why: str, inode: tuple[int, int] | None = None) -> None:
        if self._is_news(name):
            _log.warning("packs: the entry %s is not used, and removed: %s", self.path / name, why)
        self._remove(name, inode)

    def _remove(self, name: str, inode: tuple[int, int] | None) -> None:
        """Takes an entry's name away, if it is still this file. Who reads it reads on."""
        opened = self._opened.get(name)
        if opened is not None and inode in (None, opened.inode):
            del self._opened[name]
        folder = self._folder
        if folder is None:
            return
        try:
            with folder.locked():
                gone = folder.remove(name, inode)
            if gone is not None and self._closed:  # no thread begins anything new
                folder.dispose(gone)
                return
        except OSError as error:
            self._stuck(name, error.strerror or str(error))
            return
        if gone is not None:
            folder.hold()
            self._disk.run(lambda: folder.dispose(gone), lambda result: self._disposed(result, folder, gone))

    def _disposed(self, result: Outcome[None], folder: Folder, gone: str) -> None:
        folder.drop()
        if result.error is not None and not isinstance(result.error, Closed):
            self._stuck(gone, result.why)

    def _stuck(self, name: str, why: str) -> None:
        if self._is_news(f"{name} stays"):
            _log.warning("packs: %s cannot be removed: %s", self.path / name, why)

    # -- looking through the folder ------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if not self._closed:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._tick)
            self.look()

    def look(self) -> None:
        """Looks through the folder in a thread: what is too old, too much or left by a killed worker goes."""
        if self._sweeping or self._closed:
            return
        try:
            folder = self._use_folder()
        except (FolderFault, OSError) as error:
            self._troubled("folder", str(error))
            wishes, self._wishes = self._wishes, []
            self._grant(wishes)
            return
        self._sweeping = True
        folder.hold()
        grown, wishes, known, now = self._grown, self._wishes, self._known, self._clock()
        self._wishes = []
        growth = max((wish.count for wish in wishes), default=0)
        if growth:
            growth = max(growth, min(MARGIN_BYTES, self.max_bytes // 16))
        short = max((wish.short for wish in wishes), default=0)
        ttl, most, free = self.ttl_seconds, max(0, self.max_bytes - growth), self.free_bytes

        def work() -> Swept:
            return sweep(folder, known, now, ttl, most, max(short, free - folder.free_bytes()))

        self._disk.run(work, lambda result: self._looked(result, folder, grown, wishes))

    def _looked(self, result: Outcome[Swept], folder: Folder, grown: int, wishes: list[_Wish]) -> None:
        self._sweeping = False
        folder.drop()
        if (swept := result.value) is not None:
            self.disk_bytes = swept.bytes
            self._measured = True
            self._reconsider(swept.free_bytes)
            self._grown -= grown
            for name, why in swept.damaged:
                if self._is_news(name):
                    _log.warning("packs: the entry %s is not used, and removed: %s", self.path / name, why)
            for name, why in swept.stuck:
                self._stuck(name, why)
        elif not isinstance(result.error, Closed):
            self._troubled("disk", f"{self.path} cannot be looked through: {result.why}")
        self._grant(wishes)
        if self._wishes:
            self.look()

    def _grant(self, wishes: list[_Wish]) -> None:
        for wish in wishes:
            asyncio.get_running_loop().call_soon(wish.call, self._measured and self._has_room(wish.count))

    # -- telling -------------------------------------------------------------------------------------------------------------

    def _works(self) -> None:
        if self.trouble:
            _log.info("packs: %s is used again", self.path)
            self.trouble = ""

    def _reconsider(self, free_bytes: int) -> None:
        """Whether the trouble is over, without a fetch that shows it: alerts wait for that."""
        kind, since = self._trouble
        if self.trouble and (
            kind == "folder"
            or (kind == "free_bytes" and free_bytes >= self.free_bytes)
            or (kind == "disk" and time.monotonic() - since >= DISK_TROUBLE_SECONDS)
        ):
            self._works()

    def _troubled(self, kind: str, text: str) -> None:
        self.trouble = text
        self._trouble = (kind, time.monotonic())
        if self._is_news(kind):
            _log.warning("packs: nothing is kept: %s", text)

    def _is_news(self, kind: str) -> bool:
        """Whether a line about this is due: at most one a minute."""
        now = time.monotonic()
        if len(self._told) >= TROUBLES:
            self._told.clear()
        if now - self._told.get(kind, float("-inf")) < TROUBLE_SECONDS:
            return False
        self._told[kind] = now
        return True
