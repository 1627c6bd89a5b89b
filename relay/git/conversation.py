"""What a client and git-upload-pack say to each other in protocol version 2 (gitprotocol-v2), followed packet by packet; pure, no I/O.

One Conversation follows one session. `client_data` and `host_data` are given what arrives, in any pieces, and return:

- `client_data`: the requests that became complete. A caller that holds a request back until it is whole sends `request.raw`; any other
  passes `data` on as it comes. `partial` is the beginning of a request that is not complete yet.
- `host_data`: what may leave for the client now, in its order, as Pieces of one Kind each; slices of what arrived, not copies. Until pack
  data begins only whole packets leave, so that a host that dies in the middle of a packet can be replaced.

`client` and `host` are the states of the two directions. A client may send its next request before the last answer has ended, so neither
follows from the other. The moves of the git host's side, all made by `_go`, which knows which are allowed:

    OPENING ---------> IDLE -----> LINES     ls-refs, object-info, bundle-uri: lines up to a flush-pkt
    the advertisement   ^  \\-----> HEADER    fetch: sections with a header each, and delim-pkts between them
    is not complete     |            |  ^
                        |          LINES, or PACKFILE (header read, no pack data yet) -----> PACK (only while spooling)
                        +--- flush-pkt: the answer has ended ----------------------------------/

    each of them ----> REFUSED     an ERR packet or sideband 3: an answer, not a fault; what follows passes unread
    each of them ----> ASIDE       all passes unread from now on; `reason` tells why
    reopen() --------> REOPENING   another git host, or the same once more, takes over
    from there ------> DIFFERENT   the new host does not say what the lost one said

Nothing that a client or a git host sends raises an exception: malformed traffic moves to ASIDE, reason MALFORMED.

**Stepping aside.** When `aside` is true after a call: pass on what the call returned, then `take_held()` to the client and, if requests
were held back, `partial` to the git host. From then on the two sides need no Conversation.

**Replay**, when the git host is lost. While `replayable`: `reopen()` returns the requests that the lost host still owed an answer; send
them to the new host (then `partial`, if requests are passed on as they come, and then EOF, if the client has ended its input), and feed
`host_data` what the new host says. Its advertisement and the part of the answer that the client has already are compared and swallowed;
what `host_data` returns is for the client, as always. `host is HostState.DIFFERENT`: end the session as if the host were lost. Not
replayable: `take_held()`, then end the session. `settled`: nothing is owed, so a session that ends now was whole.

**Packs**, for answers that are kept. `fetch_of(request)` has the normal form and the key. `refs` is the answer to the last ls-refs of this
session's host, with `keep_refs`. `spooling = True`, set before pack data begins, has one answer followed to its flush-pkt (`Piece.last`)
instead of stepping aside. A cache keeps ANSWER and PACK, not PROGRESS. `served()` tells that the relay answered a request by itself,
`again()` that it begins a second time.
A question of the relay's own (`probe`) is a Conversation of its own, with `opened=True`.

Cost: one pass over the packets until pack data begins, one copy of what must be kept for comparison, no object for a packet.
"""

from __future__ import annotations

import struct
from binascii import unhexlify
from collections import deque
from enum import Enum
from typing import Final, NamedTuple

from relay.git.pktline import FLUSH_PKT, LENGTH_DIGITS, PACKET_MOST_BYTES, packet_length
from relay.git.v2_request import BadRequest, Refs, Request, read_request

REQUEST_MOST_BYTES: Final = 256 * 1024  # of a request, and of all that await an answer: about 5,000 wants
KEPT_MOST_BYTES: Final = 1 << 20  # of an answer, for comparison; of a longer one a second git host cannot go on
ADVERTISEMENT_MOST_BYTES: Final = 64 * 1024  # git's has about 200

VERSION_2: Final = b"000eversion 2\n"
SECTIONS: Final = frozenset({b"acknowledgments", b"shallow-info", b"wanted-refs", b"packfile-uris"})  # and packfile
PACKFILE: Final = b"packfile"
ERR: Final = b"ERR "
BAND_PACK, BAND_PROGRESS, BAND_ERROR = 1, 2, 3
BAND_BYTES: Final = LENGTH_DIGITS + 1  # a packet's length and its sideband
FLUSH, DELIM = 0, 1  # as lengths

_HEADER_MOST_BYTES: Final = 64  # of a section's header
_packet_start: Final = struct.Struct("4sB").unpack_from  # a slice of a memoryview costs twice as much
_LINES: Final = {b"%04x" % length: length for length in range(LENGTH_DIGITS, 1024)}  # of the usual lines; looked up faster than read


class ClientState(Enum):
    BETWEEN = "between two requests"
    ASKING = "a request has begun"
    FINISHED = "the client sent a flush-pkt alone: it asks for nothing more"


class HostState(Enum):
    OPENING = "the advertisement is not complete; nothing of it was passed on"
    REOPENING = "another git host's advertisement is not complete"
    IDLE = "no answer is owed"
    HEADER = "a section of an answer to fetch must begin"
    LINES = "within the lines of an answer or of a section"
    PACKFILE = "within the packfile section, no pack data yet"
    PACK = "pack data has left for the client, and the answer is spooled"
    REFUSED = "the git host answered with ERR or on sideband 3"
    DIFFERENT = "the new git host does not say what the lost one said"
    ASIDE = "what is said passes unread"


class Reason(Enum):
    """Why the conversation stepped aside."""

    PACK = "pack data has begun"
    VERSION = "the git host does not speak protocol version 2"
    MALFORMED = "somebody said what gitprotocol-v2 does not know"
    TOO_LONG = "the requests have more than REQUEST_MOST_BYTES, or the advertisement more than ADVERTISEMENT_MOST_BYTES"


class Kind(Enum):
    ADVERTISEMENT = "the capability advertisement"
    ANSWER = "packets of an answer that a second git host must repeat"
    PROGRESS = "sideband 2 and empty keepalive packets: they may differ each time"
    PACK = "while spooling: packets of pack data, and the flush-pkt after it; a piece may begin and end within a packet"
    ERROR = "an ERR packet or sideband 3"
    UNREAD = "what passes unread"


class Piece(NamedTuple):
    kind: Kind
    data: bytes | memoryview
    last: bool = False  # whether the answer ends with it


_OPEN: Final = frozenset({HostState.OPENING, HostState.REOPENING})
_OVER: Final = frozenset({HostState.REFUSED, HostState.DIFFERENT, HostState.ASIDE})
_PACKFILE: Final = frozenset({HostState.PACKFILE, HostState.PACK})
_NEXT: Final[dict[HostState, frozenset[HostState]]] = {
    HostState.OPENING: frozenset({HostState.IDLE, HostState.OPENING}) | _OVER,
    HostState.REOPENING: frozenset({HostState.IDLE, HostState.REOPENING}) | _OVER,
    HostState.IDLE: frozenset({HostState.HEADER, HostState.LINES, HostState.REOPENING}) | _OVER,
    HostState.HEADER: frozenset({HostState.HEADER, HostState.LINES, HostState.PACKFILE, HostState.IDLE, HostState.REOPENING}) | _OVER,
    HostState.LINES: frozenset({HostState.HEADER, HostState.IDLE, HostState.REOPENING}) | _OVER,
    HostState.PACKFILE: frozenset({HostState.HEADER, HostState.PACK, HostState.IDLE, HostState.REOPENING}) | _OVER,
    HostState.PACK: frozenset({HostState.IDLE}) | _OVER,
    HostState.REFUSED: frozenset(),
    HostState.DIFFERENT: frozenset(),
    HostState.ASIDE: frozenset(),
}


class _Malformed(Exception):
    """What the git host said is not of gitprotocol-v2; does not leave this module."""


class Conversation:
    """Follows one session; see the module."""

    def __init__(self, keep_refs: bool = False, opened: bool = False) -> None:
        """`keep_refs`: the answer to ls-refs is remembered. `opened`: the git host's advertisement was read by another Conversation."""
        self.client = ClientState.BETWEEN
        self.host = HostState.IDLE if opened else HostState.OPENING
        self.reason: Reason | None = None  # in ASIDE
        self.refs: Refs | None = None
        self.spooling = False
        self._keep_refs = keep_refs
        # the client's side
        self._partial = bytearray()
        self._scanned = 0  # bytes of _partial that are whole packets
        self._owed: deque[Request] = deque()  # requests without an answer, or with half of one
        self._owed_bytes = 0
        # the git host's side
        self._held = bytearray()  # a packet that is not whole yet; the advertisement until it is whole
        self._held_scanned = 0  # bytes of the advertisement in _held that are whole packets
        self._inside = 0  # bytes that a packet of pack data still has, while spooling
        self._advertisement: bytes | None = None  # the first host's
        self._kept: bytearray | None = bytearray()  # what the client has of the answer; None: too much to keep
        self._repeat: bytes | None = None  # what a new host must say first
        self._repeated = 0
        self._out: list[Piece] = []

    def __repr__(self) -> str:
        return f"<Conversation client={self.client.name} host={self.host.name} owed={len(self._owed)}>"

    # -- what can be asked ---------------------------------------------------------------------------------------------------

    @property
    def aside(self) -> bool:
        """Whether there is nothing more to learn: what both sides say passes as it is."""
        return self.host in (HostState.ASIDE, HostState.REFUSED)

    @property
    def settled(self) -> bool:
        """Whether each request of the client has its whole answer; then a session that ends is whole."""
        return self.host in (HostState.IDLE, HostState.REOPENING) and not self._owed and self.client is not ClientState.ASKING

    @property
    def repeating(self) -> bool:
        """Whether another git host has taken over and has not yet said all that the client has from the lost one."""
        return self._repeat is not None or self.host is HostState.REOPENING

    @property
    def replayable(self) -> bool:
        """Whether another git host may go on in place of this one."""
        if self.client is ClientState.FINISHED and not self._owed:
            return False  # nothing is left to be said
        if self._advertisement is None and self.host is not HostState.OPENING:
            return False  # `opened`: there is nothing to compare another advertisement with
        return self._kept is not None and self.host not in _OVER and self.host is not HostState.PACK

    @property
    def request(self) -> Request | None:
        """The request whose answer is awaited or under way."""
        return self._owed[0] if self._owed else None

    @property
    def partial(self) -> bytes:
        """What the client sent since its last complete request. When the conversation steps aside it is what nobody was told of."""
        return bytes(self._partial)

    @property
    def bytes_kept(self) -> int:
        """How many bytes of both sides are kept; at most KEPT_MOST_BYTES, ADVERTISEMENT_MOST_BYTES and twice REQUEST_MOST_BYTES."""
        kept = len(self._kept) if self._kept is not None else 0
        return kept + len(self._held) + len(self._partial) + self._owed_bytes

    def forget(self) -> None:
        """Drops what is kept of the present answer for comparison: until it has ended no other git host can go on."""
        self._kept = None

    def take_held(self) -> bytes:
        """What the git host sent and `host_data` did not return yet; for the client, when the session ends or the conversation is ASIDE."""
        held = b"" if self.host is HostState.DIFFERENT or self.repeating else bytes(self._held)
        self._held.clear()
        return held

    # -- what happens ----------------------------------------------------------------------------------------------------------

    def client_data(self, data: bytes | memoryview) -> list[Request]:
        """The requests that `data` completes."""
        found: list[Request] = []
        if self.host in _OVER:
            return found
        self._partial += data
        while self._partial:
            if self.client is ClientState.FINISHED:
                self._step_aside(Reason.MALFORMED)
                break
            self.client = ClientState.ASKING
            end = self._request_end()
            if self.host in _OVER:
                break
            if self._owed_bytes + (len(self._partial) if end is None else end) > REQUEST_MOST_BYTES:
                self._step_aside(Reason.TOO_LONG)
                break
            if end is None:
                break
            try:
                request = read_request(bytes(self._partial[:end]))
            except BadRequest:
                self._step_aside(Reason.MALFORMED)
                break
            del self._partial[:end]
            self._scanned = 0
            found.append(request)
            self._asked(request)
        return found

    def host_data(self, data: bytes | memoryview) -> list[Piece]:
        """What may leave for the client. `data` is not kept, but the pieces are slices of it."""
        out = self._out = []
        view = memoryview(data)
        if self.host in _OPEN:
            view = self._opening(view)
            if self.host in _OPEN:
                return out
        if self.host in _OVER:
            self._unread(view)
            return out
        position = self._complete_held(view) if self._held else 0
        if self.host in _OVER:
            self._unread(view[position:])
        elif position < len(view):
            self._walk(view, position)
        return out

    def served(self) -> None:
        """The relay itself has answered `request`; of the answer only what precedes the pack may have been read here."""
        assert self.host in (HostState.HEADER, HostState.LINES, HostState.PACKFILE) and not self._held and self._repeat is None
        self._answered()

    def again(self) -> None:
        """The relay itself answers `request` from the beginning once more; the answer must repeat what the client has of the first."""
        assert self.replayable and self._owed
        self._held.clear()
        self._repeat = bytes(self._kept) if self._kept else None
        self._repeated = 0
        self._go(HostState.HEADER)

    def reopen(self) -> bytes:
        """Another connection to a git host begins; returns what it must be asked again. Only while `replayable`."""
        assert self.replayable
        self._held.clear()
        self._held_scanned = 0
        self.refs = None  # another git host's
        self._repeat = bytes(self._kept) if self._kept else None
        self._repeated = 0
        self._go(HostState.OPENING if self._advertisement is None else HostState.REOPENING)
        farewell = FLUSH_PKT if self.client is ClientState.FINISHED else b""
        return b"".join([*(request.raw for request in self._owed), farewell])

    # -- the client's side -------------------------------------------------------------------------------------------------------

    def _request_end(self) -> int | None:
        """Where the first request ends in _partial; None until it does, or when it is malformed."""
        partial, position = self._partial, self._scanned
        while len(partial) - position >= LENGTH_DIGITS:
            length = packet_length(partial, position)
            if length is None:
                self._step_aside(Reason.MALFORMED)
                return None
            if length == FLUSH:
                return position + LENGTH_DIGITS
            if len(partial) - position < length:
                break
            position += max(length, LENGTH_DIGITS)
            self._scanned = position
        return None

    def _asked(self, request: Request) -> None:
        if not request.command:
            self.client = ClientState.FINISHED
            return
        self.client = ClientState.BETWEEN
        self._owed.append(request)
        self._owed_bytes += len(request.raw)
        if self.host is HostState.IDLE:
            self._begin_answer()

    # -- the git host's side: moves ------------------------------------------------------------------------------------------------

    def _go(self, state: HostState) -> None:
        assert state in _NEXT[self.host], f"{self.host.name} -> {state.name}"
        self.host = state

    def _begin_answer(self) -> None:
        self._go(HostState.HEADER if self._owed[0].command == b"fetch" else HostState.LINES)

    def _answered(self) -> None:
        """The answer to the first request that is owed one has ended."""
        request = self._owed.popleft()
        self._owed_bytes -= len(request.raw)
        if request.command == b"ls-refs":
            self.refs = Refs(request, bytes(self._kept)) if self._keep_refs and self._kept else None
        self._kept = bytearray()
        self.spooling = False
        self._go(HostState.IDLE)
        if self._owed:
            self._begin_answer()

    def _step_aside(self, reason: Reason) -> None:
        """In the middle of a repetition nobody can: the client would read twice what it has already."""
        self._go(HostState.DIFFERENT if self.repeating else HostState.ASIDE)
        self.reason = reason
        self._repeat, self._kept = None, None
        self._owed.clear()

    def _refuse(self) -> None:
        self._go(HostState.REFUSED)
        self._kept = None

    def _unread(self, view: memoryview) -> None:
        if self.host is HostState.DIFFERENT:
            return
        if self._held:
            self._out.append(Piece(Kind.UNREAD, self.take_held()))
        if view:
            self._out.append(Piece(Kind.UNREAD, view))

    # -- the git host's side: the advertisement ----------------------------------------------------------------------------------

    def _opening(self, view: memoryview) -> memoryview:
        """Holds the advertisement until it is whole; returns what follows it."""
        held, nothing = self._held, view[:0]
        held += view
        head = bytes(held[: len(VERSION_2)])
        if not VERSION_2.startswith(head):
            self._no_version_2(head)
            return nothing
        end = self._advertisement_end()
        if end is None:
            return nothing
        advertisement = bytes(held[:end])
        if self._advertisement is None:
            self._advertisement = advertisement
            self._out.append(Piece(Kind.ADVERTISEMENT, advertisement))
        elif _comparable(self._advertisement) != _comparable(advertisement):
            self._go(HostState.DIFFERENT)
            return nothing
        rest = view[len(view) - (len(held) - end) :]
        held.clear()
        self._go(HostState.IDLE)
        if self._owed:
            self._begin_answer()
        return rest

    def _no_version_2(self, head: bytes) -> None:
        """`head`, what the git host said first, is not the start of VERSION_2."""
        said = head[LENGTH_DIGITS : LENGTH_DIGITS + len(ERR)]
        if said != ERR[: len(said)] or (said != ERR and len(head) == len(VERSION_2)):
            self._step_aside(Reason.VERSION)
        elif said == ERR:
            if self.repeating and (self._repeat is not None or not self._owed):
                self._go(HostState.DIFFERENT)  # the client has half of an answer, or asked for none
            else:
                self._refuse()

    def _advertisement_end(self) -> int | None:
        held, position = self._held, self._held_scanned
        while len(held) - position >= LENGTH_DIGITS:
            length = packet_length(held, position)
            if length is None or DELIM <= length < LENGTH_DIGITS:
                self._step_aside(Reason.MALFORMED)
                return None
            if length == FLUSH:
                if position + LENGTH_DIGITS > ADVERTISEMENT_MOST_BYTES:
                    break
                return position + LENGTH_DIGITS
            if len(held) - position < length:
                break
            position += length
            self._held_scanned = position
        if len(held) > ADVERTISEMENT_MOST_BYTES:
            self._step_aside(Reason.TOO_LONG)
        return None

    # -- the git host's side: answers --------------------------------------------------------------------------------------------

    def _complete_held(self, view: memoryview) -> int:
        """Reads the packet that is held once `view` completes it; returns how much of `view` belongs to it."""
        held, used = self._held, 0
        while (lacks := self._lacks()) > 0:
            if used == len(view):
                return used
            more = view[used : used + lacks]
            held += more
            used += len(more)
        packet = memoryview(bytes(held))
        held.clear()
        self._walk(packet, 0)
        return used

    def _lacks(self) -> int:
        """How many bytes of the packet in _held must come at least, before it can be read; 0 or less: none."""
        held = self._held
        if len(held) < LENGTH_DIGITS:
            return LENGTH_DIGITS - len(held)
        length = packet_length(held, 0)
        if length is None or self.host is HostState.IDLE:
            return 0  # malformed whatever follows
        if self.host in _PACKFILE and length >= BAND_BYTES:
            if len(held) < BAND_BYTES:
                return BAND_BYTES - len(held)
            if held[LENGTH_DIGITS] == BAND_PACK:
                return 0  # pack data is not held
        return length - len(held)

    def _walk(self, view: memoryview, position: int) -> None:
        """Reads packets from `position` on. Packets of one kind that follow each other become one piece."""
        end = len(view)
        start = position
        kind = Kind.PACK if self.host is HostState.PACK else Kind.ANSWER  # of the packets that are read and not emitted yet
        if self._inside:
            position = min(end, start + self._inside)
            self._inside -= position - start
        while True:
            if self.host is HostState.LINES and not self._owed[0].sideband_all:
                position = _skip_lines(view, position)
            elif kind is Kind.PACK and self.spooling:
                position = _skip_pack(view, position)
            if end - position < LENGTH_DIGITS:
                break
            length = packet_length(view, position)
            try:
                found = self._read(view, position, length)
            except _Malformed:
                if self._emit(kind, view[start:position]):
                    self._step_aside(Reason.MALFORMED)
                    self._unread(view[position:])
                return
            if found is None or length is None:
                break
            if found is not kind:
                if not self._emit(kind, view[start:position]):
                    return
                start, kind = position, found
            if found is Kind.PACK and length >= BAND_BYTES and not self._in_pack():
                if self._emit(kind, view[start:position]):
                    self._step_aside(Reason.PACK)
                    self._unread(view[position:])
                return
            stop = position + max(length, LENGTH_DIGITS)
            position = min(stop, end)
            self._inside = stop - position  # more than 0 in pack data only
            if found is Kind.ERROR:
                if self._emit(kind, view[start:position]):
                    self._refuse()
                    self._unread(view[position:])
                return
            if length == FLUSH:
                if not self._emit(kind, view[start:position], last=True):
                    return
                self._answered()
                start, kind = position, Kind.ANSWER
        if self._emit(kind, view[start:position]) and position < end:
            self._held += view[position:]

    def _read(self, view: memoryview, position: int, length: int | None) -> Kind | None:
        """The kind of the packet at `position`; None while too little of it is there. Raises _Malformed."""
        host = self.host
        if length is None or host is HostState.IDLE:
            raise _Malformed
        if length < LENGTH_DIGITS:
            return self._read_special(length)
        text, stop = position + LENGTH_DIGITS, position + length
        banded = host in _PACKFILE or self._owed[0].sideband_all
        if banded and length < BAND_BYTES:
            raise _Malformed
        if host in _PACKFILE and length > BAND_BYTES and text < len(view) and view[text] == BAND_PACK:
            return Kind.PACK  # whether it is whole or not
        if stop > len(view):
            return None
        if _is_err(view, position, stop):
            return Kind.ERROR
        if banded:
            band = view[text]
            if band == BAND_ERROR:
                return Kind.ERROR
            if band == BAND_PROGRESS or (band == BAND_PACK and length == BAND_BYTES):
                return Kind.PROGRESS
            if band != BAND_PACK:
                raise _Malformed
            text += 1
        if host is HostState.HEADER:
            header = bytes(view[text : min(stop, text + _HEADER_MOST_BYTES)]).removesuffix(b"\n")
            if header != PACKFILE and header not in SECTIONS:
                raise _Malformed
            self._go(HostState.PACKFILE if header == PACKFILE else HostState.LINES)
        return Kind.ANSWER

    def _read_special(self, length: int) -> Kind:
        if length == FLUSH:
            return Kind.PACK if self.host is HostState.PACK else Kind.ANSWER
        if length != DELIM or self.host is not HostState.LINES or self._owed[0].command != b"fetch":
            raise _Malformed
        self._go(HostState.HEADER)
        return Kind.ANSWER

    def _in_pack(self) -> bool:
        """Pack data comes next; whether it is followed."""
        if not self.spooling or self.repeating:
            return False
        if self.host is HostState.PACKFILE:
            self._go(HostState.PACK)
        return True

    def _emit(self, kind: Kind, data: memoryview, last: bool = False) -> bool:
        """Passes packets of one kind on, but for what the client has already; False when that is not what it has."""
        if self._repeat is not None:
            if kind is Kind.PROGRESS or not data:
                return True
            had = self._repeat[self._repeated : self._repeated + len(data)]
            if kind is not Kind.ANSWER or bytes(data[: len(had)]) != had:
                self._go(HostState.DIFFERENT)
                return False
            self._repeated += len(had)
            data = data[len(had) :]
            if self._repeated == len(self._repeat):
                self._repeat = None
        if not data:
            return True
        if kind is Kind.ANSWER and self._kept is not None:
            if len(self._kept) + len(data) > KEPT_MOST_BYTES:
                self._kept = None
            else:
                self._kept += data
        self._out.append(Piece(kind, data, last))
        return True


class Payloads:
    """Takes the pack out of Pieces of Kind.PACK, given one after the other."""

    def __init__(self) -> None:
        self._inside = 0  # bytes that the packet of the last piece still has

    def feed(self, data: bytes | memoryview) -> list[memoryview]:
        """Slices of `data`."""
        view, position = memoryview(data), 0
        found: list[memoryview] = []
        while position < len(view):
            if not self._inside:
                length = packet_length(view, position)
                assert length is not None, "no piece of Kind.PACK begins here"
                if length < BAND_BYTES:  # the flush-pkt after it
                    position += LENGTH_DIGITS
                    continue
                self._inside = length - BAND_BYTES
                position += BAND_BYTES
            piece = view[position : position + self._inside]
            if piece:
                found.append(piece)
            position += len(piece)
            self._inside -= len(piece)
        return found


def _skip_lines(view: memoryview, position: int) -> int:
    """The place of the first packet from `position` on that is not a whole line, or is long, or says ERR: the hot loop."""
    end = len(view)
    while end - position > LENGTH_DIGITS:
        digits, first = _packet_start(view, position)
        length = _LINES.get(digits)
        if length is None:
            return position
        stop = position + length
        if stop > end or (first == ERR[0] and _is_err(view, position, stop)):
            return position
        position = stop
    return position


def _skip_pack(view: memoryview, position: int) -> int:
    """The place of the first packet from `position` on that is not a whole packet of pack data: the hot loop of a spool."""
    end = len(view)
    while end - position > LENGTH_DIGITS:
        digits, band = _packet_start(view, position)
        try:
            length = int.from_bytes(unhexlify(digits), "big")
        except ValueError:
            return position
        if band != BAND_PACK or not BAND_BYTES < length <= min(end - position, PACKET_MOST_BYTES):
            return position
        position += length
    return position


def _is_err(view: memoryview, position: int, stop: int) -> bool:
    return bytes(view[position + LENGTH_DIGITS : min(stop, position + LENGTH_DIGITS + len(ERR))]) == ERR


def _comparable(advertisement: bytes) -> bytes:
    """The advertisement without the values of agent and session-id, in which two hosts of one upstream may differ."""
    view, position, parts = memoryview(advertisement), 0, []
    while (length := packet_length(view, position)) is not None and length > FLUSH:
        packet = bytes(view[position : position + length])
        name, value_follows, _ = packet[LENGTH_DIGITS:].partition(b"=")
        parts.append(name if value_follows and name in (b"agent", b"session-id") else packet)
        position += length
    return b"".join(parts)
