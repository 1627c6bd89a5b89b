"""pkt-lines: git's packets, four hexadecimal digits of length and then the data (gitprotocol-common); pure, and never more than asked for.

What arrives is fed in any pieces; packets are taken one at a time, so that what follows the last one wanted, a pack perhaps, is never
looked at. How much is fed is for the caller to limit.
"""

from __future__ import annotations

import binascii
from enum import Enum

LENGTH_DIGITS = 4
PACKET_MOST_BYTES = 65_520  # of one pkt-line, its length included
DATA_MOST_BYTES = PACKET_MOST_BYTES - LENGTH_DIGITS
FLUSH_PKT = b"0000"


class BadPacket(ValueError):
    """These bytes are no pkt-line."""


class Special(Enum):
    """Packets whose length stands for a meaning; 0003 has none, and 0004 is a packet without data."""

    FLUSH = 0
    DELIM = 1  # of protocol version 2, as the next
    RESPONSE_END = 2


Packet = bytes | Special


class PktLines:
    """Takes packets out of a stream."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def feed(self, data: bytes | memoryview) -> None:
        self._waiting += data

    @property
    def waiting(self) -> int:
        """Bytes that were fed and belong to no packet that was taken."""
        return len(self._waiting)

    def take(self) -> Packet | None:
        """The next packet, or None until more is fed. Raises BadPacket."""
        waiting = self._waiting
        if len(waiting) < LENGTH_DIGITS:
            return None
        try:
            length = int.from_bytes(binascii.unhexlify(waiting[:LENGTH_DIGITS]), "big")
        except binascii.Error:
            raise BadPacket("a length that is not four hexadecimal digits") from None
        if length < LENGTH_DIGITS:
            if length == 3:
                raise BadPacket("a length of 3, which means nothing")
            del waiting[:LENGTH_DIGITS]
            return Special(length)
        if length > PACKET_MOST_BYTES:
            raise BadPacket(f"a length of {length}, more than {PACKET_MOST_BYTES}")
        if len(waiting) < length:
            return None
        data = bytes(waiting[LENGTH_DIGITS:length])
        del waiting[:length]
        return data


def pkt_line(data: bytes) -> bytes:
    """`data`, which must not be longer than DATA_MOST_BYTES, as one packet."""
    assert len(data) <= DATA_MOST_BYTES
    return b"%04x%s" % (len(data) + LENGTH_DIGITS, data)


def packet_length(buffer: bytes | bytearray | memoryview, position: int) -> int | None:
    """What the four digits at `position` say: 0 to 2 for a Special, else the bytes of a whole packet; None when that is no pkt-line."""
    try:
        digits = binascii.unhexlify(buffer[position : position + LENGTH_DIGITS])  # int() would take 0x0f, +00f and 0_0f
    except binascii.Error:
        return None
    length = int.from_bytes(digits, "big")
    return length if len(digits) == 2 and length <= PACKET_MOST_BYTES and length != 3 else None
