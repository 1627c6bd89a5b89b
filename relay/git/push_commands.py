"""The command list that a client sends to git-receive-pack before its pack, also within a push certificate, and git-receive-pack's report
(gitprotocol-pack).

Parsing is stricter than git's: a list that two parsers could read differently is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from relay.git.pktline import DATA_MOST_BYTES, FLUSH_PKT, BadPacket, Packet, PktLines, Special, pkt_line
from relay.model import RefUpdate

LIST_MOST_BYTES = 1 << 20  # about 8,000 updates; a longer list is refused where it must be held, and not parsed to its end for the audit

_COMMAND = re.compile(rb"((?:[0-9a-f]{24})?[0-9a-f]{40}) ((?:[0-9a-f]{24})?[0-9a-f]{40}) (.+)", re.DOTALL | re.IGNORECASE)
_SHALLOW = re.compile(rb"shallow (?:[0-9a-f]{24})?[0-9a-f]{40}", re.IGNORECASE)
_SIGNATURE = b"-----BEGIN "
_CERTIFICATE = b"push-cert"
_CERTIFICATE_END = b"push-cert-end\n"


REPORTS = frozenset({b"report-status", b"report-status-v2"})


class BadCommands(ValueError):
    """The client's data is not a command list."""


class TooLong(BadCommands):
    """The command list is longer than LIST_MOST_BYTES."""


class CommandList:
    """Parses a push's command list as it arrives. `keep` limits how many updates are stored; all of them are counted."""

    def __init__(self, version: int = 0, keep: int | None = None) -> None:
        self.version: int | None = version
        self.updates: list[RefUpdate] = []
        self.count = 0
        self.capabilities: frozenset[bytes] = frozenset()
        self.signed = False
        self.truncated = False
        self._keep = keep
        self._packets = PktLines()
        self._fed = 0
        self._complete = False
        self._part = "start"  # what the next packet belongs to: start, commands; in a certificate header, signed, signature, end

    @property
    def kind(self) -> Literal["", "list", "push"]:
        """A push without commands, when everything is up to date, only gets the list of refs."""
        return "push" if self.count else "list" if self._complete else ""

    @property
    def complete(self) -> bool:
        """Whether the whole list was parsed, or it never will be."""
        return self._complete or self.truncated

    @property
    def wants_report(self) -> bool:
        return bool(self.capabilities & REPORTS)

    @property
    def begun(self) -> bool:
        """Whether any data arrived."""
        return self._fed > 0

    def feed(self, data: bytes) -> bool:
        """Whether the list is complete; data after it is ignored. After BadCommands or TooLong was raised no more may be fed."""
        if self._complete:
            return True
        self._packets.feed(data[: max(0, LIST_MOST_BYTES - self._fed)])
        self._fed += len(data)
        try:
            while (packet := self._packets.take()) is not None:
                if packet is Special.FLUSH and self._part in ("start", "commands", "end"):
                    self._complete = True
                    break
                if isinstance(packet, Special):
                    raise BadCommands(f"a {packet.name.lower()} packet where none belongs")
                self._line(packet)
        except BadPacket as error:
            self._forget(truncated=True)
            raise BadCommands(str(error)) from None
        except BadCommands:
            self._forget(truncated=True)
            raise
        if self._complete:
            self._forget()
        elif self._fed > LIST_MOST_BYTES:
            self._forget(truncated=True)
            raise TooLong(f"more than {LIST_MOST_BYTES} bytes")
        return self._complete

    def _forget(self, truncated: bool = False) -> None:
        self.truncated = truncated
        self._packets = PktLines()

    def _line(self, data: bytes) -> None:
        if self._part in ("header", "signed", "signature"):
            self._certified(data)
            return
        if self._part == "end":
            raise BadCommands("a packet after the certificate")
        line, nul, capabilities = data.removesuffix(b"\n").partition(b"\0")
        if self._part == "start":
            if not nul and _SHALLOW.fullmatch(line):
                return
            self.capabilities = frozenset(capabilities.split())
            self.signed = line == _CERTIFICATE
            self._part = "header" if self.signed else "commands"
            if self.signed:
                return
        elif nul:
            raise BadCommands("capabilities after the first command")
        self._command(line)

    def _certified(self, data: bytes) -> None:
        """Parses one line of a certificate: header, empty line, commands, signature. Each line is one packet."""
        if data == _CERTIFICATE_END:
            if self._part == "header":
                raise BadCommands("a certificate without commands")
            self._part = "end"
        elif b"\0" in data or data.find(b"\n") != len(data) - 1:
            raise BadCommands("a certificate whose packets are not its lines")
        elif self._part == "header":
            self._part = "signed" if data == b"\n" else "header"
        elif self._part == "signature":
            if data.startswith(_SIGNATURE) or _COMMAND.fullmatch(data[:-1]):
                raise BadCommands("a certificate that goes on after its signature")
        elif data.startswith(_SIGNATURE):
            self._part = "signature"
        else:
            self._command(data[:-1])

    def _command(self, line: bytes) -> None:
        found = _COMMAND.fullmatch(line)
        if found is None or len(found[1]) != len(found[2]):
            raise BadCommands("a line that is not old, new and ref")
        self.count += 1
        if self._keep is None or len(self.updates) < self._keep:
            old, new, ref = (part.decode("utf-8", "surrogateescape") for part in found.groups())
            self.updates.append(RefUpdate(ref=ref, old=old.lower(), new=new.lower()))


class Report:
    """Parses git-receive-pack's report, up to the flush-pkt that ends it."""

    def __init__(self, capabilities: frozenset[bytes]) -> None:
        self.whole = False
        self._reads = bool(capabilities & REPORTS)
        self._outer = PktLines()
        self._inner = PktLines() if b"side-band-64k" in capabilities or b"side-band" in capabilities else None

    def feed(self, data: bytes | memoryview) -> None:
        """To be called with all data after the client's first byte; before that the git host sends its refs."""
        if not self._reads:
            return
        try:
            self._outer.feed(data)
            while self._reads and (packet := self._outer.take()) is not None:
                self._take(packet)
        except BadPacket:  # a client that wrote before it got the refs: the report cannot be recognised
            self._over()

    def _take(self, packet: Packet) -> None:
        if self._inner is None:
            if packet is Special.FLUSH:
                self._over(whole=True)
        elif isinstance(packet, Special):
            self._over()  # the end of the sideband
        elif packet[:1] == b"\1":
            self._inner.feed(packet[1:])
            while self._reads and (line := self._inner.take()) is not None:
                if line is Special.FLUSH:
                    self._over(whole=True)

    def _over(self, whole: bool = False) -> None:
        self.whole, self._reads = whole, False
        self._outer = PktLines()


def report(refusals: Iterable[tuple[RefUpdate, str]], capabilities: frozenset[bytes]) -> bytes | None:
    """git-receive-pack's report in which each ref is refused with its reason; None when the client asked for no report."""
    if not capabilities & REPORTS:
        return None
    lines = [pkt_line(b"unpack ok\n")]
    for update, reason in refusals:
        ref = update.ref.encode("utf-8", "surrogateescape")
        lines.append(pkt_line(b"ng %s %s\n" % (ref, reason.encode())))
    told = b"".join([*lines, FLUSH_PKT])
    if b"side-band-64k" not in capabilities:
        return told
    most = DATA_MOST_BYTES - 1  # the band
    return b"".join(pkt_line(b"\1" + told[start : start + most]) for start in range(0, len(told), most)) + FLUSH_PKT
