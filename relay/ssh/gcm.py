"""The packets of the SSH transport with AES-GCM (RFC 4253 section 6, RFC 5647): sealed and opened, many in one call.

`Aead` is the extension of native/gcm where that is installed, else `PythonAead`; both have the same interface. The caller keeps the nonce:
a call takes that of its first packet and uses the following one for each further packet.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from asyncssh.constants import MSG_CHANNEL_DATA, MSG_CHANNEL_WINDOW_ADJUST
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

BLOCK = 16  # padding makes packet_length a multiple of this
TAG = 16
LENGTH = 4
PADDING_LEAST = 4
NOISE = PADDING_LEAST + BLOCK - 1  # the most random bytes that one packet's padding needs
PACKET_MOST = 1 << 24

_DATA_HEAD = 10  # padding length, message number, recipient channel, length of the data
_HEAD_MOST = 11  # message number, recipient channel, data type and what may come to it
_PAGE = 4096  # of random bytes that are asked for at once
_COUNTER = 0xFFFFFFFFFFFFFFFF


class Packets(Protocol):
    """One direction of a connection with one key of 16 or 32 bytes."""

    def packet(self, nonce: bytes, payload: bytes, noise: bytes | None, /) -> bytes:
        """Seals one packet. `noise`: NOISE random bytes for its padding; None takes the system's."""

    def data(self, nonce: bytes, head: bytes, data: bytes | memoryview, most: int, noise: bytes | None, /) -> tuple[bytes, int]:
        """Seals `data` as packets of channel data of at most `most` bytes each; returns them and their number.

        `head` is common to all: message number, recipient channel and, for extended data, its type. `noise`: NOISE random bytes for each
        packet; None takes the system's.
        """

    def open(self, nonce: bytes, data: bytes | memoryview, start: int, most: int, /) -> tuple[bytes, int] | None:
        """Opens the packet at `start`; returns its payload and its end. None: it is unfinished, longer than `most`, or not authentic."""

    def run(self, nonce: bytes, data: bytes | memoryview, start: int, most: int, limit: int, /) -> tuple[bytes | int, int, int, int] | None:
        """Opens the packets from `start` on while they are authentic and of one kind for one channel: (content, channel, packets, end).

        `content` is data, at most `limit` bytes (a packet that would exceed them is left), or an int: the sum of window adjusts.
        None: the first packet is neither, or unfinished.
        """


def _advanced(nonce: bytes, packets: int, /) -> bytes:
    """The nonce after so many packets (RFC 5647 section 7.1: the last eight bytes count, modulo 2**64)."""
    return nonce[:4] + ((int.from_bytes(nonce[4:], "big") + packets) & _COUNTER).to_bytes(8, "big")


class PythonAead:
    """The same as the extension, with the cryptography package."""

    def __init__(self, key: bytes, /) -> None:
        if len(key) not in (16, 32):
            raise ValueError("a key of AES-GCM has 16 or 32 bytes")
        self._aead = AESGCM(key)
        self._plain = bytearray()

    def packet(self, nonce: bytes, payload: bytes, noise: bytes | None, /) -> bytes:
        noise = _noise.take(1) if noise is None else noise
        if not 1 <= len(payload) <= PACKET_MOST or len(noise) < NOISE:
            raise ValueError("a payload has 1 byte to 16 MiB, and 19 bytes of noise")
        padding = _padding(1 + len(payload))
        head = (1 + len(payload) + padding).to_bytes(LENGTH, "big")
        return head + self._aead.encrypt(nonce, bytes((padding,)) + payload + noise[:padding], head)

    def data(self, nonce: bytes, head: bytes, data: bytes | memoryview, most: int, noise: bytes | None, /) -> tuple[bytes, int]:
        size, head_size = len(data), 1 + len(head) + LENGTH
        if not 1 <= most <= PACKET_MOST or not 1 <= len(head) <= _HEAD_MOST or not size:
            raise ValueError("data and a packet have a byte at least, a head has 11 at most")
        packets = -(-size // most)
        noise = _noise.take(packets) if noise is None else noise
        if len(noise) < packets * NOISE:
            raise ValueError("19 bytes of noise are needed for each packet")
        out = bytearray(size + packets * (LENGTH + head_size + NOISE + TAG))
        longest = head_size + min(size, most) + NOISE
        if len(self._plain) < longest:
            self._plain = bytearray(longest)
        encrypt = self._aead.encrypt_into
        position = start = random = 0
        with memoryview(self._plain) as plain, memoryview(out) as wire, memoryview(data) as source:
            plain[1 : 1 + len(head)] = head
            while start < size:
                count = min(most, size - start)
                body = head_size + count
                padding = _padding(body)
                length = body + padding
                plain[0] = padding
                plain[head_size - LENGTH : head_size] = count.to_bytes(4, "big")
                plain[head_size:body] = source[start : start + count]
                plain[body:length] = noise[random : random + padding]
                end = position + LENGTH + length + TAG
                wire[position : position + LENGTH] = length.to_bytes(LENGTH, "big")
                encrypt(nonce, plain[:length], wire[position : position + LENGTH], wire[position + LENGTH : end])
                nonce = _advanced(nonce, 1)
                position = end
                start += count
                random += NOISE
            return bytes(wire[:position]), packets

    def open(self, nonce: bytes, data: bytes | memoryview, start: int, most: int, /) -> tuple[bytes, int] | None:
        plain = self._decrypted(nonce, data, start, most)
        if plain is None or plain[0] < PADDING_LEAST or plain[0] + 1 >= len(plain):
            return None
        return plain[1 : -plain[0]], start + LENGTH + len(plain) + TAG

    def run(self, nonce: bytes, data: bytes | memoryview, start: int, most: int, limit: int, /) -> tuple[bytes | int, int, int, int] | None:
        parts: list[bytes] = []
        kind = channel = b""
        packets = window = 0
        while (plain := self._decrypted(nonce, data, start, most)) is not None:
            is_data = plain[1] == MSG_CHANNEL_DATA
            number = int.from_bytes(plain[6:_DATA_HEAD], "big")
            count = number if is_data else 0
            if (
                (not is_data and plain[1] != MSG_CHANNEL_WINDOW_ADJUST)
                or plain[0] < PADDING_LEAST
                or _DATA_HEAD + count + plain[0] != len(plain)
                or (packets and (plain[1:2] != kind or plain[2:6] != channel))
                or count > limit
            ):
                break
            kind, channel = plain[1:2], plain[2:6]
            if is_data:
                parts.append(plain[_DATA_HEAD : _DATA_HEAD + count])
                limit -= count
            window += number
            packets += 1
            nonce = _advanced(nonce, 1)
            start += LENGTH + len(plain) + TAG
        if not packets:
            return None
        return b"".join(parts) if kind[0] == MSG_CHANNEL_DATA else window, int.from_bytes(channel, "big"), packets, start

    def _decrypted(self, nonce: bytes, data: bytes | memoryview, start: int, most: int) -> bytes | None:
        view = memoryview(data)[start:]
        length = int.from_bytes(view[:LENGTH], "big")
        end = LENGTH + length + TAG
        if len(view) < LENGTH or not BLOCK <= length <= most or end > len(view):
            return None
        try:
            return self._aead.decrypt(nonce, view[LENGTH:end], view[:LENGTH])
        except InvalidTag:
            return None


def _padding(body: int) -> int:
    padding = -body % BLOCK
    return padding if padding >= PADDING_LEAST else padding + BLOCK


class Noise:
    """Random bytes for padding, each used once; the system is asked once in some hundred packets."""

    def __init__(self) -> None:
        self._bytes = b""
        self._position = 0

    def take(self, packets: int) -> bytes:
        """NOISE bytes for each packet."""
        count = packets * NOISE
        end = self._position + count
        if end > len(self._bytes):
            self._bytes, self._position, end = os.urandom(max(_PAGE, count)), 0, count
        noise, self._position = self._bytes[self._position : end], end
        return noise


_noise = Noise()
fresh_noise = _noise.take

Aead: Callable[[bytes], Packets] = PythonAead
advanced: Callable[[bytes, int], bytes] = _advanced
ACCELERATED = False
UNUSED = ""  # why relay_gcm is not used, for the log and `relay check`; empty when it is used
_ASKED = os.environ.get("RELAY_WIRE", "1")
if _ASKED == "0":  # see relay.ssh.wire
    UNUSED = "with RELAY_WIRE=0 asyncssh seals packets, which costs more"
if _ASKED == "python":  # to compare the two, and to serve without the extension if it is suspected
    UNUSED = "with RELAY_WIRE=python packets of AES-GCM are sealed in Python, which costs more"
else:
    try:
        import relay_gcm
    except ImportError:  # git-ssh-relay-native is not installed, so PythonAead is used
        UNUSED = UNUSED or "packets of AES-GCM are sealed in Python, which costs more; git-ssh-relay-native has it"
    else:
        Aead, advanced, ACCELERATED = relay_gcm.Aead, relay_gcm.advanced, True
