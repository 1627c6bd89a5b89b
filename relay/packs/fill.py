"""Fills an entry: one git host is asked once, and its answer is written down exactly as it leaves for clients.

A fill is a task with a lease of its own, which counts for the identity of the session that began it. It goes on when that session ends,
as long as any session reads the entry, in this worker or another. Progress (sideband 2) is not written down, but offered to those who wait
for the pack in this worker.

An entry is published with the flush-pkt after its pack, not with the exit status that follows: git-upload-pack sends this flush-pkt only
when pack-objects has ended well, and readers would wait for the exit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from relay.errors import RelayError
from relay.events import Observer
from relay.git.conversation import Conversation, Kind, Piece
from relay.git.pktline import FLUSH_PKT, LENGTH_DIGITS
from relay.git.v2_request import Request
from relay.model import Exit
from relay.packs.store import Writer
from relay.tasks import Tasks
from relay.text import printable
from relay.upstream.libssh2 import Connection

ENDS_SECONDS: Final = 5.0  # how long a git host may take to exit after its answer; then its connection is closed
SAID_MOST_BYTES: Final = 1024  # of the git host's words, for the log
SIDEBAND_3: Final = b"\3"

_log = logging.getLogger("relay.packs")


@dataclass(frozen=True, slots=True)
class Order:
    """Whom a session's fill asks."""

    upstream: str
    path: str
    identity: str  # empty unless the git host sees a login for each identity
    lease: Callable[[], AbstractAsyncContextManager[Connection]]


class Waiting(Protocol):
    """Who waits for the pack."""

    def host_progress(self, data: memoryview | bytes) -> None:
        """Packets of progress, or an empty keepalive packet, that the git host has sent."""


class _GivenUp(Exception):
    """The fill ends, and its connection is closed with it."""


class Fill:
    """One fill: the Peer of a connection to a git host (relay.upstream.libssh2)."""

    def __init__(self, request: Request, order: Order, writer: Writer, hold: Callable[[int], bool]) -> None:
        self.refused = False  # whether the git host has answered by an ERR packet or sideband 3
        self.written = 0
        self.waiting: set[Waiting] = set()
        self._request = request
        self._order = order
        self._writer = writer
        self._hold = hold
        self._talk = Conversation()
        self._talk.client_data(request.raw)
        self._talk.spooling = True
        self._connection: Connection | None = None
        self._paused = False
        self._said = b""  # on stderr
        self._published = False
        self._why = ""  # it failed
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<fill of {self._order.path} at {self._order.upstream}: {self.written} bytes>"

    @property
    def published(self) -> bool:
        return self._published

    async def run(self) -> None:
        try:
            async with self._order.lease() as connection:
                self._connection = connection
                connection.attach(self)
                connection.send(self._request.raw)
                await self._ended
        except _GivenUp as error:
            self._fail(str(error))
        except RelayError as error:  # no connection came, or it was lost
            self._fail(str(error))
        finally:
            self._connection = None

    def close(self) -> str:
        """The task has ended, or was cancelled; returns why the entry is not whole, or an empty text."""
        self._fail("nobody read it any more, or the worker stops")
        if self._timer is not None:
            self._timer.cancel()
        self.waiting.clear()
        return self._why

    def _fail(self, why: str) -> None:
        if not (self._published or self._why):
            self._why = why
            self._writer.fail(why)

    def _give_up(self, why: str) -> None:
        if not self._ended.done():
            self._ended.set_exception(_GivenUp(why))

    def _end_soon(self) -> None:
        """The git host has nothing more to say that is of use."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(ENDS_SECONDS, self._give_up, "the git host did not end")

    # -- what the git host sends -------------------------------------------------------------------------------------------

    def upstream_data(self, data: memoryview | bytes) -> None:
        for piece in self._talk.host_data(data):
            self._take(piece)
        if self._talk.aside and not (self.refused or self._published):
            reason = self._talk.reason
            self._give_up(f"the git host's answer is not understood: {reason.value if reason is not None else self._talk}")
        writer = self._writer
        if self._why or self._published:
            return
        if writer.failed is not None:
            self._give_up(writer.failed)
        elif writer.full and not self._paused and self._connection is not None:
            self._paused = True
            self._connection.pause()
            writer.on_room(self._resume)

    def _take(self, piece: Piece) -> None:
        if self._why or self._published:
            return
        if piece.kind in (Kind.ANSWER, Kind.PACK):
            self.written += len(piece.data)
            self._writer.write(piece.data)
            if piece.last and self._writer.failed is None:
                self._published = True
                self._writer.publish()
                assert self._connection is not None
                self._connection.send(FLUSH_PKT)
                self._end_soon()
        elif piece.kind is Kind.PROGRESS:
            for one in tuple(self.waiting):
                one.host_progress(piece.data)
        elif piece.kind is Kind.ERROR:
            self.refused = True
            words = bytes(piece.data[LENGTH_DIGITS:SAID_MOST_BYTES]).removeprefix(SIDEBAND_3)
            self._fail(f"the git host says: {printable(words.decode('utf-8', 'replace').strip())}")
            self._end_soon()

    def _resume(self) -> None:
        if self._paused and self._connection is not None:
            self._paused = False
            self._hold(0)
            self._connection.resume()

    def upstream_stderr(self, data: memoryview | bytes) -> None:
        if len(self._said) < SAID_MOST_BYTES:
            self._said += bytes(data[:SAID_MOST_BYTES])

    def upstream_unread(self, count: int) -> bool:
        return self._hold(count)

    def budget_allows(self) -> None:
        """The sessions of this worker hold less: the connection may receive again while it is paused."""
        if self._connection is not None:
            self._connection.receive_again()

    def upstream_accepted(self) -> None: ...

    def upstream_eof(self) -> None:
        self._end_soon()  # a host that ends its output and does not exit would keep all readers waiting

    def upstream_ended(self, how: Exit | RelayError) -> None:
        if self._ended.done():
            return
        if isinstance(how, RelayError):
            self._ended.set_exception(how)
            return
        said = f": {printable(self._said.decode('utf-8', 'replace').strip())}" if self._said else ""
        ended = f"signal {how.signal}" if how.signal is not None else f"status {how.status}"
        self._fail(f"git ended with {ended} before its answer was whole{said}")
        self._ended.set_result(None)

    @property
    def owed(self) -> None:
        """The git host never waits for a fill."""
        return None

    def give_way(self) -> bool:
        return False


class Fills:
    """The fills of one worker."""

    def __init__(self, observer: Observer, share: Callable[[Callable[[], None]], Share]) -> None:
        """`share` gives a part of the bytes that the worker's sessions may hold, as relay.ssh.backpressure.Budget.share."""
        self._observer = observer
        self._share = share
        self._running: dict[bytes, Fill] = {}
        self._tasks = Tasks()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def of(self, key: bytes) -> Fill | None:
        """The one that fills this entry, if it runs in this worker."""
        return self._running.get(key)

    def begin(self, key: bytes, request: Request, order: Order, writer: Writer, session: str) -> Fill:
        """Begins to fill the entry of `writer`, for the session of this id."""
        share = self._share(lambda: fill.budget_allows())
        fill = Fill(request, order, writer, share.hold)
        if self._closed:
            fill.close()
            return fill
        self._running[key] = fill
        task = self._tasks.start(fill.run(), f"fill for session {session}")

        def ended(_: asyncio.Task[None]) -> None:
            why = fill.close()
            share.close()
            if self._running.get(key) is fill:
                del self._running[key]
            self._observer.packs_bytes("in", fill.written)
            if why:
                _log.info("packs: what session %s asked upstream %s is not kept: %s", session, order.upstream, why)

        task.add_done_callback(ended)  # asyncio skips the whole body of a task that is cancelled before its first step

        def unwanted() -> None:
            if not fill.published:
                task.cancel()

        writer.on_unwanted(unwanted)
        return fill

    async def close(self) -> None:
        """Ends all fills; who reads along starts over, or is lost."""
        self._closed = True
        await self._tasks.cancel()


class Share(Protocol):
    """As relay.ssh.backpressure.Share."""

    def hold(self, count: int) -> bool: ...

    def close(self) -> None: ...
