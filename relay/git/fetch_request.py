"""What a client asks git-upload-pack for: a clone, a fetch, or only the list of refs (gitprotocol-pack, gitprotocol-v2).

The client's requests are read until this is known. git's protocol does not name clones: a client that has no commits is taken for one.
"""

from __future__ import annotations

from typing import Literal

from relay.git.pktline import BadPacket, Packet, PktLines, Special
from relay.model import RefUpdate

REQUEST_MOST_BYTES = 256 * 1024  # about 5,000 wants; the kind of a longer request stays unknown

FetchKind = Literal["", "clone", "fetch", "list"]


class FetchRequest:
    """Parses a client's requests as they arrive."""

    updates: tuple[RefUpdate, ...] = ()
    count = 0
    truncated = False

    def __init__(self, asked_version: int = 0) -> None:
        self.kind: FetchKind = ""
        self.version: int | None = None
        self._asked_version = asked_version  # a client's requests in 0 and 1 are the same
        self._packets = PktLines()
        self._fed = 0
        self._known = False
        self._command = b""  # of the present request, in version 2
        self._listed = False
        self._wanted = False
        self._had = False  # the client has commits, or a shallow history

    def feed(self, data: bytes) -> bool:
        """Whether the kind is known, or never will be; further data is ignored."""
        if self._known:
            return True
        self._packets.feed(data[: max(0, REQUEST_MOST_BYTES - self._fed)])
        self._fed += len(data)
        try:
            while not self._known and (packet := self._packets.take()) is not None:
                self._read(packet)
        except BadPacket:
            self._known = True  # the kind stays unknown; the git host answers the bad packet
        if self._known or self._fed > REQUEST_MOST_BYTES:
            self._known = True
            self._packets = PktLines()
        return self._known

    def _read(self, packet: Packet) -> None:
        if self.version is None:
            version_2 = isinstance(packet, bytes) and packet.startswith(b"command=")
            self.version = 2 if version_2 else min(self._asked_version, 1)
        if self.version == 2:
            self._read_v2(packet)
        else:
            self._read_v0(packet)

    def _read_v2(self, packet: Packet) -> None:
        """Each request is: command, capabilities, delim-pkt, arguments, flush-pkt."""
        if packet is Special.FLUSH:
            if self._command == b"ls-refs":
                self._listed = True
                self.kind = self.kind or "list"
            elif self._command == b"fetch":
                # a partial clone fetches missing objects by name, without ls-refs before
                self._decide("clone" if self._listed and not self._had else "fetch")
            self._command = b""
        elif isinstance(packet, bytes):
            line = packet.removesuffix(b"\n")
            if line.startswith(b"command="):
                self._command = line.removeprefix(b"command=")
                self.kind = "" if self._command == b"fetch" else self.kind  # more than the list; decided at the end of the request
            elif self._command == b"fetch" and line.startswith((b"have ", b"shallow ")):
                self._had = True

    def _read_v0(self, packet: Packet) -> None:
        """Wants and shallows up to a flush-pkt, then haves, then done; only a flush-pkt if the client wanted the list alone."""
        if packet is Special.FLUSH:
            if not self._wanted:
                self._decide("list")
            elif self._had:
                self._decide("fetch")
        elif isinstance(packet, bytes):
            if packet.startswith(b"want "):
                self._wanted = True
            elif packet.startswith((b"have ", b"shallow ")):
                self._had = True
            elif packet.startswith(b"done"):
                self._decide("fetch" if self._had else "clone")

    def _decide(self, kind: FetchKind) -> None:
        self.kind, self._known = kind, True
