"""Sends an entry to one client, in the place of a Splice: the session holds no connection to a git host meanwhile.

The entry's bytes go from the reader to the client's channel as they are. What precedes the pack is held back until pack data is there, or
progress is to be shown, and is noted by the Desk: as long as no byte of the pack has left, another entry or a git host may go on in place
of one that fails. After that the session is lost. It ends well only when the client has ended its requests, by a flush-pkt, by EOF or by
closing, after the last byte.

The client reads the last byte before the entry is whole: the fill has yet to write its header, and a reader of another worker has yet to
look. So a client that closes after a flush-pkt may have the whole answer, and whether it has is decided by how the fill ends.
"""

from __future__ import annotations

import asyncio
from typing import Final

from relay.errors import ClientGone, Lost, NoExit, RelayError
from relay.events import SessionRecord
from relay.git.conversation import KEPT_MOST_BYTES, Conversation, HostState, Kind, Reason
from relay.git.pktline import FLUSH_PKT
from relay.model import Exit
from relay.packs.desk import Desk
from relay.packs.entry import EntryFailed
from relay.splice import Client
from relay.stall_watch import StallWatch

READS_A_TURN: Final = 4  # reads of the entry, before other sessions run
NO_PROGRESS: Final = b"no-progress"
FILL_ENDS_SECONDS: Final = 30.0  # how long the fill may take to end after a client disconnected that may have the whole answer
FLUSH_END: Final = FLUSH_PKT[-1]
KEEPALIVE: Final = b"0005\x01"  # an empty packet of pack data, with which git-upload-pack shows that it lives


class Delivery:
    """Sends what `desk` has found. It carries bytes from `run` on."""

    def __init__(self, client: Client, desk: Desk, record: SessionRecord, stall_seconds: float, client_idle_seconds: float) -> None:
        self.late: list[bytes] = []  # what the client sent meanwhile; not counted yet
        self._client = client
        self._desk = desk
        self._record = record
        self._stall_seconds, self._idle_seconds = stall_seconds, client_idle_seconds
        self._eof = False
        self._client_paused = False
        self._waits_for_room = False
        self._again: asyncio.Handle | None = None
        self._whole = False
        self._whole_at = 0.0
        self._sent = 0
        self._tail = b""  # the end of what was sent, if it may be a flush-pkt
        self._client_left: ClientGone | None = None  # set when the client disconnects while the fill has time to end
        self._fill_timer: asyncio.TimerHandle | None = None  # the end of that time
        self._shows_progress = NO_PROGRESS not in desk.request.arguments
        self._done: asyncio.Future[Exit | None] = asyncio.get_running_loop().create_future()
        self._begin()

    def _begin(self) -> None:
        """An entry is to be sent, from its beginning."""
        self._opening: Conversation | None = Conversation(opened=True)  # reads what precedes the pack; None once that has left
        self._opening.client_data(self._desk.request.raw)
        self._held: list[bytes] = []  # of it
        self._held_bytes = 0
        if self._desk.fill is not None:
            self._desk.fill.waiting.add(self)

    async def run(self) -> Exit | None:
        """Returns the exit when the client has ended its requests; None when the session needs a git host.

        Raises ClientGone, Lost, Stalled, ClientIdle, or what `stop` was given.
        """
        loop = asyncio.get_running_loop()
        watch = StallWatch(self, self._stall_seconds, self._idle_seconds, loop)
        self._client.keeps(self._desk.bytes_kept)
        self._desk.begins()
        self._turn()
        try:
            return await self._done
        finally:
            watch.stop()
            if self._again is not None:
                self._again.cancel()
            if self._fill_timer is not None:
                self._fill_timer.cancel()
            self._stop_waiting()
            self._desk.drop_reader()
            self._desk.sent(self._sent)
            del self._desk  # it leads back to the session

    def stop(self, error: RelayError) -> bool:
        """Ends the session with `error`. False when it has ended already."""
        if self._done.done():
            return False
        self._done.set_exception(error)
        return True

    # -- the entry -------------------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Sends what the entry has, as far as the client takes it."""
        self._again = None
        if self._done.done() or self._whole or self._client_left is not None:
            return
        client = self._client
        for _ in range(READS_A_TURN):
            reader = self._desk.reader
            assert reader is not None
            if client.full:
                self._waits_for_room = True
                return
            try:
                data = reader.read()
            except EntryFailed as error:
                self._failed(str(error))
                return
            if not data:
                if reader.whole_read:
                    self._end()
                else:
                    reader.on_news(self._turn)
                return
            if self._opening is None:
                count = len(data)
                self._sent += count
                self._record.bytes_out += count
                client.write(data)
                if data[-1] == FLUSH_END:
                    self._note_end(data)
                else:
                    self._tail = b""
            else:
                self._read_opening(self._opening, data)
            if self._done.done():
                return
        self._again = asyncio.get_running_loop().call_soon(self._turn)

    def _read_opening(self, opening: Conversation, data: memoryview) -> None:
        for piece in opening.host_data(data):
            if self._opening is None:
                self._write(piece.data)
            elif piece.kind is Kind.ANSWER:
                self._held.append(bytes(piece.data))
                self._held_bytes += len(piece.data)
            elif opening.reason is Reason.PACK:
                self._stop_waiting()
                self._pass_opening()
                self._opening = None
                if self._desk.agrees:
                    self._record.served_by = "cache"
                    self._write(piece.data)
                else:
                    self.stop(Lost("the entry that was to go on does not say what the lost one said"))
                    return
            else:
                self._failed("what is in it is no answer to a fetch")
                return
        if self._held_bytes > KEPT_MOST_BYTES:
            self._pass_opening()

    def _pass_opening(self) -> None:
        """Sends what was held back, but for what the client has of an answer that was lost."""
        held, self._held, self._held_bytes = self._held, [], 0
        for data in held:
            self._pass(data)

    def _pass(self, data: bytes | memoryview) -> None:
        for part in self._desk.answer(data):
            self._write(part)

    def _write(self, data: bytes | memoryview) -> None:
        if data:
            self._sent += len(data)
            self._record.bytes_out += len(data)
            self._client.write(data)
            self._note_end(data)

    def _note_end(self, data: bytes | memoryview) -> None:
        """`data` may end with a flush-pkt, or with a part of one. One read in 256 of a pack is here by chance."""
        self._tail = (self._tail + bytes(data[-len(FLUSH_PKT) :]))[-len(FLUSH_PKT) :]

    def host_progress(self, data: memoryview | bytes) -> None:
        """As relay.packs.fill.Waiting."""
        opening = self._opening
        if opening is None or opening.host is not HostState.PACKFILE or self._done.done() or self._client.full:
            return
        if self._shows_progress or bytes(data[: len(KEEPALIVE) + 1]) == KEEPALIVE:
            self._pass_opening()
            self._pass(data)

    def _stop_waiting(self) -> None:
        if self._desk.fill is not None:
            self._desk.fill.waiting.discard(self)

    def _failed(self, why: str) -> None:
        """The entry gives no more."""
        self._stop_waiting()
        if self._opening is None:
            self.stop(Lost(f"the entry of packs that was sent has failed after {self._sent} bytes: {why}"))
        elif not self._desk.can_go_on:
            self.stop(Lost(f"the entry of packs has failed, and more was sent of it than is kept: {why}"))
        elif self._desk.start_over(why):
            self._begin()
            self._again = asyncio.get_running_loop().call_soon(self._turn)
        else:
            self._done.set_result(None)

    def _end(self) -> None:
        """All of the entry was sent."""
        if self._opening is not None:
            self._failed("it ends before its pack")
            return
        self._whole = True
        self._whole_at = asyncio.get_running_loop().time()
        self._desk.answered()
        if self._client_left is not None:
            self._record.bytes_in += sum(map(len, self.late))
            self._done.set_result(Exit())
            return
        if self._client_paused:
            self._client_paused = False
            self._client.resume_reading()
        self._look()

    # -- the client's events ---------------------------------------------------------------------------------------------------

    def client_data(self, data: bytes) -> None:
        self.late.append(data)
        if self._whole:
            self._look()
        elif not self._client_paused:
            self._client_paused = True  # what follows waits in the channel, which counts it against the budget
            self._client.pause_reading()

    def client_eof(self) -> None:
        self._eof = True
        if self._whole:
            self._look()

    def client_drained(self) -> None:
        if self._waits_for_room and not self._client.full:
            self._waits_for_room = False
            self._turn()

    def client_gone(self, detail: str, error: RelayError | None = None) -> None:
        """The channel is closed; `error` is why, if the relay closed it."""
        if self._done.done():
            return
        gone = ClientGone(detail)
        if error is not None or self._client.cut or self._said not in (b"", FLUSH_PKT):
            self.stop(error or gone)
        elif self._whole:
            self._done.set_result(Exit())
        elif self._opening is None and self._tail == FLUSH_PKT:
            self._client_left = gone
            self._fill_timer = asyncio.get_running_loop().call_later(FILL_ENDS_SECONDS, self.stop, gone)
            self._await_end()
        else:
            self.stop(gone)

    def _await_end(self) -> None:
        """The client has left with all that the entry has so far: the fill's end tells whether that is all of it."""
        if self._done.done():
            return
        reader = self._desk.reader
        assert reader is not None and self._client_left is not None
        try:
            more = reader.read()
        except EntryFailed as error:
            self._failed(str(error))
            return
        if more:
            self.stop(self._client_left)
        elif reader.whole_read:
            self._end()
        else:
            reader.on_news(self._await_end)

    @property
    def _said(self) -> bytes:
        """What the client has sent after its request."""
        return self._desk.later + b"".join(self.late)

    def _look(self) -> None:
        """The client has the whole answer: it may end its requests now, or go on with them."""
        if self._done.done():
            return
        said = self._said
        if said == FLUSH_PKT or (self._eof and not said):
            self._record.bytes_in += sum(map(len, self.late))
            self._done.set_result(Exit(status=0))
        elif self._eof or len(said) >= len(FLUSH_PKT):
            self._done.set_result(None)

    # -- for StallWatch --------------------------------------------------------------------------------------------------------

    @property
    def owed(self) -> float | None:
        """For how many seconds the client, which has the whole answer, has not ended its requests."""
        if not self._whole or self._client.untaken:
            return None
        return asyncio.get_running_loop().time() - self._whole_at

    def host_hangs(self, error: NoExit) -> None:
        self.stop(error)

    def progress(self) -> tuple[tuple[int, int] | None, ...]:
        waiting = self._client.waiting
        return (self._record.bytes_out, waiting) if waiting else None, None, None
