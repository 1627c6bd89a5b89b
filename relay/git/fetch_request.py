"""What a client asks git-upload-pack for: a clone, a fetch or only the list of refs (gitprotocol-pack, gitprotocol-v2).

Read along until it is known, from the requests alone; a guess where git's protocol does not say it: whoever has nothing clones.
"""

from __future__ import annotations

from typing import Literal

from relay.git.pktline import BadPacket, Packet, PktLines, Special
from relay.model import RefUpdate

REQUEST_MOST_BYTES = 256 * 1024  # about 5,000 wants; what is asked for in more stays unknown

FetchKind = Literal["", "clone", "fetch", "list"]


class FetchRequest:
    """Reads a client's requests as they come."""

    updates: tuple[RefUpdate, ...] = ()
    count = 0
    truncated = False

    def __init__(self, asked_version: int = 0) -> None:
        self.kind: FetchKind = ""
        self.version: int | None = None
        self._asked_version = asked_version  # 0 and 1 look the same on this side
        self._packets = PktLines()
        self._fed = 0
        self._known = False
        self._command = b""  # of the request that is under way, in version 2
        self._listed = False
        self._wanted = False
        self._had = False  # anything: a commit, or the edge of a shallow history

    def feed(self, data: bytes) -> bool:
        """Whether there is nothing more to learn; what follows is not looked at."""
        if self._known:
            return True
        self._packets.feed(data[: max(0, REQUEST_MOST_BYTES - self._fed)])
        self._fed += len(data)
        try:
            while not self._known and (packet := self._packets.take()) is not None:
                self._read(packet)
        except BadPacket:
            self._known = True  # what it is has no name here; the git host will say what it thinks of it
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
        """Requests one after the other: command, capabilities, delim-pkt, arguments, flush-pkt."""
        if packet is Special.FLUSH:
            if self._command == b"ls-refs":
                self._listed = True
                self.kind = self.kind or "list"
            elif self._command == b"fetch":
                # a partial clone that fetches what it lacks asks for it by name, without a list before
                self._is("clone" if self._listed and not self._had else "fetch")
            self._command = b""
        elif isinstance(packet, bytes):
            line = packet.removesuffix(b"\n")
            if line.startswith(b"command="):
                self._command = line.removeprefix(b"command=")
                self.kind = "" if self._command == b"fetch" else self.kind  # more than the list is asked for, and not known yet
            elif self._command == b"fetch" and line.startswith((b"have ", b"shallow ")):
                self._had = True

    def _read_v0(self, packet: Packet) -> None:
        """Wants and shallows up to a flush-pkt, then haves, then done; a flush-pkt alone when the list was enough."""
        if packet is Special.FLUSH:
            if not self._wanted:
                self._is("list")
            elif self._had:
                self._is("fetch")
        elif isinstance(packet, bytes):
            if packet.startswith(b"want "):
                self._wanted = True
            elif packet.startswith((b"have ", b"shallow ")):
                self._had = True
            elif packet.startswith(b"done"):
                self._is("fetch" if self._had else "clone")

    def _is(self, kind: FetchKind) -> None:
        self.kind, self._known = kind, True
