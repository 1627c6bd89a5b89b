"""The requests of one session, held back until each is whole and given to its git host one by one, so that an entry may answer one of them.

A Desk stands between the client and the git host of a Splice, in Replay's place. A fetch is looked up in the store when the git host owes
nothing else:

1. An entry is there, or is being filled: the git host must agree in this session. It has, if each want is in its answer to ls-refs; else it
   is asked (relay.git.v2_request.probe), and what it says is not the client's. When it disagrees the client's own request goes to another
   connection, since git-upload-pack ends with an error; so the client reads what the git host says.
2. The entry is to be filled: what the git host says to that is its agreement (relay.packs.fill).
3. Then the session parks: its git host reads a flush-pkt, exits, and the connection goes back to the pool. The session holds none while a
   Delivery (relay.packs.delivery) sends it the entry, and leases another if the client asks for more.

What the client sends meanwhile waits here, for the next git host.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from relay.errors import RelayError
from relay.events import Observer, SessionRecord
from relay.git.conversation import Conversation, HostState, Kind
from relay.git.pktline import FLUSH_PKT
from relay.git.v2_request import Fetch, Request, fetch_of, probe
from relay.model import Command, Exit
from relay.packs.fill import Fill, Fills, Order
from relay.packs.store import About, Reader, Store
from relay.replay import Moves, Replay, ToHost, unclean

PROBE_SECONDS: Final = 30.0  # for the answer to a probe; then the client's own request is passed on, to another connection
PROBE_MOST_BYTES: Final = 64 * 1024  # of this answer; git's has about 60
PARK_SECONDS: Final = 5.0  # for the git host to exit after a flush-pkt; then its connection is closed
TRIES: Final = 2  # entries that a request is answered from, one after the other has failed

Served = Literal["hit", "joined", "filled"]

_log = logging.getLogger("relay.session")  # these lines tell of a session


@dataclass(frozen=True, slots=True)
class Packs:
    """What the sessions of a worker share."""

    store: Store
    fills: Fills
    observer: Observer


@dataclass(slots=True)
class _Sought:
    """An entry that may answer the client's request."""

    key: bytes
    about: About
    request: Request
    order: Order
    tries: int = 0


class Desk(Replay):
    """One session over all connections that serve it, as Replay. `order` tells whom a fill asks that is begun at this upstream."""

    def __init__(self, command: Command, moves: Moves, packs: Packs, record: SessionRecord, order: Callable[[str], Order]) -> None:
        super().__init__(command, moves, keep_refs=True)
        assert self._conversation is not None, "only a session that is followed has a Desk"
        self._talk = self._conversation
        self._packs = packs
        self._record = record
        self._order = order
        self._upstream: ToHost | None = None
        self._leave: Callable[[], None] = lambda: None
        self._waiting: deque[Request] = deque()  # whole requests that no git host was given yet
        self._later = bytearray()  # what the client sent while the relay asks the git host, or another one repeats what it had
        self._eof = False  # whether the client's EOF follows
        self._released = False
        self._told = False  # whether the observer knows that a fetch of this session was passed on
        self._sought: _Sought | None = None
        self._probe: Conversation | None = None
        self._probe_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self.reader: Reader | None = None
        self.fill: Fill | None = None  # that fills the entry, if it runs in this worker
        self.served: Served = "hit"

    def close(self) -> None:
        """The session is over."""
        self._stop_asking()
        self.drop_reader()
        self._upstream, self._leave = None, lambda: None  # both lead back to the session

    # -- for the Splice ------------------------------------------------------------------------------------------------------

    def intake(self, upstream: ToHost, leave: Callable[[], None]) -> ToHost:
        self._upstream, self._leave = upstream, leave
        return self

    def begin(self) -> bytes:
        self._stop_asking()
        self.drop_reader()
        self.parked = self._eof = False  # a client's EOF is told again for each connection
        if self._sought is not None:
            self._pass()
        asked = self._reopen()
        if self.catching_up:
            self._waiting.clear()  # all of it is in `asked`
        return asked

    def client_data(self, data: bytes) -> None:
        """It comes by `send`, after the interceptor has read it."""

    @property
    def pending(self) -> int:
        assert self._upstream is not None
        return self._upstream.pending + len(self._later)

    def send(self, data: bytes) -> None:
        """The client has sent `data`."""
        assert self._upstream is not None
        if self.over:
            self._upstream.send(data)
        elif self.asks or self._talk.repeating:
            self._later += data
        else:
            self._read(data)

    def send_eof(self) -> None:
        self._eof = True
        if self._released and self._upstream is not None:
            self._upstream.send_eof()
        else:
            self._go_on()

    def abort(self) -> None:
        assert self._upstream is not None
        self._upstream.abort()

    def host_data(self, data: bytes | memoryview) -> Sequence[bytes | memoryview]:
        if self._probe is not None:
            self._read_probe(self._probe, data)
            return ()
        if self.asks:
            return ()  # it was told that nothing more is asked for
        said = super().host_data(data)
        self._go_on()
        return said

    @property
    def bytes_kept(self) -> int:
        refs = self._talk.refs
        return super().bytes_kept + len(self._later) + (len(refs.raw) if refs is not None else 0)

    def forget(self) -> None:
        super().forget()
        self._talk.refs = None

    def parks(self, how: Exit | RelayError) -> bool:
        if not self.asks or (self._probe is not None and self._probe.host is not HostState.REFUSED and unclean(how)):
            return False  # a host that is lost before it has answered the probe is replaced
        if self._probe is not None:
            self.drop_reader()
        self._stop_asking()
        self.parked = True
        return True

    # -- the requests --------------------------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        self._waiting.extend(self._talk.client_data(data))
        self._look(self._talk)
        self._go_on()

    def _go_on(self) -> None:
        """Gives the git host what it may have now."""
        upstream = self._upstream
        if upstream is None or self.asks:
            return
        if self._later and not self.over and not self._talk.repeating:
            data = bytes(self._later)
            self._later.clear()
            self._read(data)
            return
        if self.over:
            self._release(upstream)
            return
        while self._waiting and self._is_next(self._waiting[0]):
            request = self._waiting.popleft()
            if self._is_answered(request):
                return
            upstream.send(request.raw)
        if self._eof and not self._waiting and not self._later:
            upstream.send_eof()

    def _is_next(self, request: Request) -> bool:
        """Whether the git host owes nothing else."""
        talk = self._talk
        if talk.host in (HostState.OPENING, HostState.REOPENING):
            return False
        return talk.request is (request if request.command else None)

    def _release(self, upstream: ToHost) -> None:
        """Nothing is followed any more: the git host gets all that was held back."""
        if self._released:
            return
        self._released = True
        if held := b"".join([*(request.raw for request in self._waiting), self._talk.partial, self._later]):
            upstream.send(held)
        self._waiting.clear()
        self._later.clear()
        if self._eof:
            upstream.send_eof()

    # -- whether an entry answers --------------------------------------------------------------------------------------------

    def _is_answered(self, request: Request) -> bool:
        """Whether an entry answers `request`, or will if the git host agrees."""
        fetch = fetch_of(request)
        if fetch is None:
            return False
        sought = self._seek(request, fetch)
        if sought is None:
            self._pass(fetch.done)
            return False
        self._sought = sought
        if not self._find(sought):
            self._pass()
            return False
        refs = self._talk.refs
        if self.served == "filled" or (refs is not None and refs.offers(fetch.wants)):
            self._park()
        else:
            self._ask(probe(fetch))
        return True

    def _seek(self, request: Request, fetch: Fetch) -> _Sought | None:
        """None when the answer is not kept."""
        refs = self._talk.refs
        if fetch.not_kept:
            return None
        if refs is None and (len(fetch.wants) > 1 or any(argument.startswith(b"filter ") for argument in fetch.arguments)):
            return None  # a partial clone fetches what it lacks in this way, and hardly two lack the same
        order = self._order(self._record.upstream)
        tags = refs.tags_digest() if refs is not None and fetch.include_tag else None
        key = fetch.key(order.upstream, order.path, order.identity, tags)
        if key is None:
            return None
        command = self._record.command
        about = About(order.upstream, command.repository if command is not None else "", order.identity, _in_short(fetch))
        return _Sought(key, about, request, order)

    def _find(self, sought: _Sought) -> bool:
        """Whether the store has an entry, or this session fills one."""
        sought.tries += 1
        found = self._packs.store.ask(sought.key, sought.about)
        if found.kind == "pass":
            return False
        self.reader = found.reader
        self.fill = None
        if found.kind == "fill":
            self.served = "filled"
            assert found.writer is not None
            self.fill = self._packs.fills.begin(sought.key, sought.request, sought.order, found.writer, self._record.id)
        else:
            self.served = found.kind
            if found.kind == "joined":
                self.fill = self._packs.fills.of(sought.key)
        return True

    def _pass(self, counts: bool = True) -> None:
        """A git host answers the fetch itself. Of a negotiation, which is several requests, the last one counts."""
        self._sought = None
        if counts and not self._told:
            self._told = True
            self._packs.observer.packs_asked(self._record, "passed")

    # -- what the relay asks the git host ------------------------------------------------------------------------------------

    def _ask(self, question: bytes) -> None:
        self._probe, self._probe_bytes = Conversation(opened=True), 0
        self._probe.client_data(question)
        self._probe.spooling = True
        self._tell_host(question, PROBE_SECONDS)

    def _park(self) -> None:
        self._stop_asking()
        self._talk.refs = None  # they take up memory, and the next git host has its own
        self._tell_host(FLUSH_PKT, PARK_SECONDS)

    def _tell_host(self, words: bytes, seconds: float) -> None:
        assert self._upstream is not None
        self.asks = True
        self._upstream.send(words)
        self._timer = asyncio.get_running_loop().call_later(seconds, self._too_late)

    def _stop_asking(self) -> None:
        self.asks, self._probe = False, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        """The git host did not answer the probe, or did not exit."""
        if self._probe is not None:
            self.drop_reader()
        self._go_without()

    def _go_without(self) -> None:
        self._stop_asking()
        self.parked = True
        self._leave()

    def _read_probe(self, asked: Conversation, data: bytes | memoryview) -> None:
        self._probe_bytes += len(data)
        agreed = False
        for piece in asked.host_data(data):
            agreed = agreed or (piece.last and piece.kind is Kind.PACK)
        if agreed:
            self._park()
        elif asked.host is HostState.REFUSED:
            self.drop_reader()  # git-upload-pack exits now
        elif asked.aside or asked.host is HostState.IDLE or self._probe_bytes > PROBE_MOST_BYTES:
            self.drop_reader()
            self._go_without()

    # -- for the Delivery ----------------------------------------------------------------------------------------------------

    def drop_reader(self) -> None:
        """Nothing more is read from the entry."""
        reader, self.reader, self.fill = self.reader, None, None
        if reader is not None:
            reader.close()

    @property
    def request(self) -> Request:
        """The fetch that the entry answers."""
        assert self._sought is not None
        return self._sought.request

    @property
    def later(self) -> bytes:
        """What the client has sent after the fetch, as far as the Splice has counted it."""
        return bytes(self._later)

    def begins(self) -> None:
        """The session has parked, and the entry is sent to it."""
        self._packs.observer.packs_asked(self._record, self.served)

    def answer(self, data: bytes | memoryview) -> Sequence[bytes | memoryview]:
        """What may leave for the client of an answer's part before its pack; nothing while it repeats what the client has already."""
        return [piece.data for piece in self._talk.host_data(data)]

    @property
    def agrees(self) -> bool:
        """Whether the answer says all that the client has of another one that was lost."""
        return not self._talk.repeating and self._talk.host is not HostState.DIFFERENT

    def answered(self) -> None:
        """The client has the whole answer."""
        self._talk.served()
        self._answers += 1
        self.drop_reader()
        self._sought = None

    def sent(self, count: int) -> None:
        """So many bytes of an entry were sent."""
        self._packs.observer.packs_bytes("out", count)

    def start_over(self, why: str) -> bool:
        """The entry has failed before its pack. Whether another one answers; else the session needs a git host."""
        sought = self._sought
        assert sought is not None
        refused = self.fill is not None and self.fill.refused
        self._packs.observer.packs_asked(self._record, "failed")
        self.drop_reader()
        found = not refused and sought.tries < TRIES and self._find(sought)
        next_one = f"another is {self.served}" if found else "the git host is asked"
        session, upstream = self._record.id, sought.order.upstream
        _log.info("session %s: upstream %s: an entry of packs has failed, %s: %s", session, upstream, next_one, why)
        if not found:
            return False
        self._talk.again()
        self.begins()
        return True

    @property
    def can_go_on(self) -> bool:
        """Whether a git host may go on with the session."""
        return self._talk.replayable


def _in_short(fetch: Fetch) -> str:
    """What is asked, for people: "full", "depth 1", "filter blob:none"."""
    named = {b"deepen": "depth", b"deepen-since": "since", b"filter": "filter"}
    parts = []
    for argument in fetch.arguments:
        name, _, value = argument.partition(b" ")
        if name in named:
            parts.append(f"{named[name]} {value.decode('ascii', 'replace')}")
    return ", ".join(parts) or "full"
