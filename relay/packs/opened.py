"""An entry that a worker has open: one descriptor for all its sessions that read it, and how far its bytes can be read."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final, Protocol

from relay.packs import entry
from relay.packs.disk import Disk
from relay.packs.entry import About, Damaged, Header
from relay.packs.rest import Rest

LOOK_SECONDS: Final = 0.02  # between two looks at an entry that another worker fills
LOCK_LOOKS: Final = 10  # so many looks without news, and it is asked whether that worker lives
SLOT_BYTES: Final = 4 << 20  # who fills the entry hears of a reader's progress at once after so many bytes, else with the next look


class Listener(Protocol):
    """Who reads an entry."""

    position: int

    def news(self) -> None:
        """There are more bytes, or the end, or the entry has failed."""


class Filler(Protocol):
    """Who fills an entry in this worker."""

    def moved(self) -> None:
        """A reader has read on, or has left."""

    def broke(self, why: str) -> None:
        """The entry has failed, perhaps because a reader could not read it."""


class Opened:
    """Closed when all who hold it have dropped it: its readers, its writer, and threads that work with its descriptor."""

    def __init__(self, name: str, fd: int, header: Header, status: os.stat_result, disk: Disk) -> None:
        self.name = name
        self.fd = fd
        self.about: About = header.about
        self.made = header.made
        self.inode = (status.st_dev, status.st_ino)
        self.disk = disk
        self.size = status.st_size - entry.HEADER_BYTES  # of the body, as far as it can be read
        self.rest: Rest | None = None  # of the body, if the disk takes no more of it while it is filled here
        self.whole = header.state == "whole"
        self.failed = ""  # why
        self.readers: list[Listener] = []
        self.filler: Filler | None = None  # of this worker, while it fills
        self.on_close: Callable[[Opened], None] = lambda entry: None
        self.on_damage: Callable[[Opened], None] = lambda entry: None
        self.used = 0  # times that are not written to the file yet
        self.used_at = 0.0  # when that was written last
        self._held = 0
        self._slot: int | None = None
        self._slot_position = 0
        self._timer: asyncio.TimerHandle | None = None
        self._quiet = 0

    def __repr__(self) -> str:
        state = f"failed: {self.failed}" if self.failed else "whole" if self.whole else "filling" if self.filler else "filled elsewhere"
        return f"<Opened {self.name[:12]} {state}, {self.size} bytes, {len(self.readers)} readers>"

    def hold(self) -> None:
        self._held += 1

    def drop(self) -> None:
        self._held -= 1
        if not self._held:
            self._stop_looking()
            self.on_close(self)
            os.close(self.fd)  # which releases its locks

    # -- readers -------------------------------------------------------------------------------------------------------------

    def join(self, reader: Listener) -> None:
        self.hold()
        self.readers.append(reader)

    def leave(self, reader: Listener) -> None:
        self.readers.remove(reader)
        self.moved()
        self.drop()

    def fastest(self) -> int | None:
        """How far the fastest reader of this worker is; None when there is none."""
        return max((reader.position for reader in self.readers), default=None)

    def slowest(self) -> int | None:
        """How far the slowest reader of this worker is; None when there is none."""
        return min((reader.position for reader in self.readers), default=None)

    def moved(self) -> None:
        """A reader has read on, or has left."""
        if self.filler is not None:
            self.filler.moved()
        elif self._slot is not None and (fastest := self.fastest()) is not None and fastest - self._slot_position >= SLOT_BYTES:
            self._tell_position(fastest)

    # -- what becomes of it --------------------------------------------------------------------------------------------------

    def grew(self, size: int) -> None:
        self.size = size
        self._tell()

    def became_whole(self) -> None:
        self.whole = True
        self.filler = None
        self._stop_looking()
        self._tell()

    def fail(self, why: str, *, damage: bool = False) -> None:
        """Its readers get no further bytes. With `damage` whoever keeps it hears of it: the file itself is to blame."""
        if self.failed:
            return
        self.failed = why
        filler, self.filler = self.filler, None
        self._stop_looking()
        if damage:
            self.on_damage(self)
        if filler is not None:
            filler.broke(why)
        self._tell()

    def _tell(self) -> None:
        for reader in list(self.readers):
            reader.news()

    # -- while another worker fills it ---------------------------------------------------------------------------------------

    def follow(self) -> bool:
        """Begins to look at what another worker writes; False when there is no slot free. Raises OSError."""
        self._slot = entry.claim_slot(self.fd)
        if self._slot is None:
            return False
        self._slot_position = 0
        self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)
        return True

    def look(self) -> None:
        """Looks at once what the other worker has done, and whether it lives."""
        if self._slot is not None:
            self._quiet = LOCK_LOOKS
            self._look_now()

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)
        self._look_now()

    def _look_now(self) -> None:
        try:
            if (fastest := self.fastest()) is not None and fastest != self._slot_position:
                self._tell_position(fastest)
            before = self.size
            self._see(check_lock=self._quiet >= LOCK_LOOKS)
            self._quiet = 0 if self.size > before or self._quiet >= LOCK_LOOKS else self._quiet + 1
        except Damaged as error:
            self.fail(str(error), damage=True)
        except OSError as error:
            self.fail(f"it cannot be read: {error.strerror}", damage=True)

    def _see(self, check_lock: bool) -> None:
        dead = check_lock and not entry.is_held(self.fd)  # before the state: a worker publishes, then gives the lock back
        header = entry.read_header(self.fd)
        size = entry.body_bytes(self.fd)
        if header.state == "failed":
            self.fail("the worker that filled it has given up")
        elif header.state == "whole":
            if size != header.length:
                raise Damaged(f"it has {size} bytes, must have {header.length}")
            self.size = size
            self.made = header.made  # its age counts from its end
            self.became_whole()
        elif dead:
            raise Damaged("the worker that filled it has died")
        elif size < self.size:
            raise Damaged(f"it was cut to {size} bytes while it was filled")
        elif size > self.size:
            self.grew(size)

    def _tell_position(self, position: int) -> None:
        assert self._slot is not None
        self._slot_position = position
        entry.set_slot(self.fd, self._slot, position)

    def _stop_looking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._slot is not None:
            slot, self._slot = self._slot, None
            try:
                entry.free_slot(self.fd, slot)
            except OSError:
                pass  # closing the descriptor gives the slot's lock back
