"""Whether client or git host must send next, by the lengths of packets and the git host's last bytes; pure, stores no data.

If this is unknown, the git host is taken to be next. No limit applies to it: it may count objects, index a pack or run hooks.
"""

from __future__ import annotations

import binascii

from relay.git.pktline import FLUSH_PKT, LENGTH_DIGITS

TAIL_BYTES = 16  # longer than each of the endings below
TAIL_ENDS = frozenset(b"0\n")  # the last byte of a flush-pkt, or of a line
_WORDS = (b"NAK\n", b" common\n", b" continue\n")  # gitprotocol-pack: the git host waits for more haves
_DONE = (b"done", b"done\n")


class Requests:
    """Follows a client's packets. `whole`: the last one ended a request (flush-pkt or `done`), and no other request has begun."""

    def __init__(self) -> None:
        self.whole = False
        self.done = False  # versions 0 and 1: only the pack follows
        self._head = b""
        self._left = 0  # bytes of the present packet that are still to come
        self._short: bytes | None = None  # its data, if it may be `done`
        self._lost = False

    def feed(self, data: bytes) -> None:
        position, end = 0, len(data)
        while position < end and not self._lost:
            self.whole = False
            if self._left:
                taken = min(self._left, end - position)
                if self._short is not None:
                    self._short += data[position : position + taken]
                self._left -= taken
                position += taken
                if not self._left and self._short in _DONE:
                    self.whole = self.done = True
                continue
            taken = LENGTH_DIGITS - len(self._head)
            self._head += data[position : position + taken]
            position += taken
            if len(self._head) == LENGTH_DIGITS:
                self._begin()

    def _begin(self) -> None:
        try:
            length = int.from_bytes(binascii.unhexlify(self._head), "big")
        except binascii.Error:
            self._lost = self.whole = True  # not packets: the git host will answer that
            return
        self._head = b""
        self.whole = length == 0
        self._left = max(0, length - LENGTH_DIGITS)
        self._short = b"" if self._left in (4, 5) else None


def wants_more(tail: bytes) -> bool:
    """Whether a git host whose output ends in `tail` waits for its client."""
    return tail.endswith((FLUSH_PKT, *_WORDS))
