"""pkt-lines, git's packets: four hexadecimal digits of length, then the data (gitprotocol-common); pure.

Data is fed in any pieces. Packets are taken one at a time, so that data after the last packet wanted, such as a pack, is never parsed. The
caller limits how much is fed.
"""

from __future__ import annotations

import binascii
from enum import Enum

LENGTH_DIGITS = 4
PACKET_MOST_BYTES = 65_520  # of one pkt-line, its length included
DATA_MOST_BYTES = PACKET_MOST_BYTES - LENGTH_DIGITS
FLUSH_PKT = b"0000"


class BadPacket(ValueError):
    """The data is not a pkt-line."""


class Special(Enum):
    """Packets that only their length tells apart; 0003 is invalid, and 0004 is a packet without data."""

    FLUSH = 0
    DELIM = 1  # protocol version 2 only, like the next
    RESPONSE_END = 2


Packet = bytes | Special


class PktLines:
    """Splits a stream into packets."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def feed(self, data: bytes | memoryview) -> None:
        self._waiting += data

    @property
    def waiting(self) -> int:
        """Bytes that were fed and not taken yet."""
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
    """`data`, at most DATA_MOST_BYTES, as one packet."""
    assert len(data) <= DATA_MOST_BYTES
    return b"%04x%s" % (len(data) + LENGTH_DIGITS, data)


def packet_length(buffer: bytes | bytearray | memoryview, position: int) -> int | None:
    """The length in the four digits at `position`: 0 to 2 for a Special, else of the whole packet; None if they are not a valid length."""
    try:
        digits = binascii.unhexlify(buffer[position : position + LENGTH_DIGITS])  # int() would take 0x0f, +00f and 0_0f
    except binascii.Error:
        return None
    length = int.from_bytes(digits, "big")
    return length if len(digits) == 2 and length <= PACKET_MOST_BYTES and length != 3 else None
