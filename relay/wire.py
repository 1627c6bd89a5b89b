"""The direct path between asyncssh's state and the socket, for AES-GCM (RFC 5647, RFC 4253 section 6).

asyncssh puts an encrypted MSG_IGNORE before every packet, copies a packet's bytes eight times on the way out and six on the way in,
and makes a key schedule a packet. Here a whole read is put on the wire in one buffer, and a whole segment is taken apart in place:
channel data goes to its channel, other messages to asyncssh's handlers. Key exchanges, every other cipher and every state but the
plain one stay with asyncssh: its window, sequence number, nonce and rekey count are kept as it would have kept them, so that the
two may take turns.

The code that this replaces is pinned by tests/test_wire.py, which fails when asyncssh changes it. RELAY_WIRE=0 turns it off.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from asyncssh.constants import (
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_KEX_LAST,
    MSG_KEXINIT,
    MSG_USERAUTH_BANNER,
    MSG_USERAUTH_LAST,
)
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import Encryption, GCMEncryption
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if TYPE_CHECKING:
    from relay.channel import Channel
    from relay.packets import PacketConnection

ENABLED = os.environ.get("RELAY_WIRE", "1") != "0"

_BLOCK = 16  # padding makes packet_length a multiple of this
_TAG = 16
_LENGTH = 4
_PADDING_MIN = 4
_DATA_HEAD = 10  # padding_length, message, recipient channel, data length
_STDERR_HEAD = 14  # and the data type before the data length
_PACKET_MOST = 1 << 20  # what a client may ask for in one packet is cut to this
_NOISE_BYTES = 4096  # of padding that is drawn from the system at once
_SEQUENCE = 0xFFFFFFFF
_COUNTER = 0xFFFFFFFFFFFFFFFF


class Cipher:
    """One direction's AES-GCM state, borrowed from asyncssh's cipher object and put back after each use."""

    __slots__ = ("_cipher", "_counter", "_fixed", "aead", "encryption")

    def __init__(self, encryption: Encryption, cipher: GCMCipher) -> None:
        self.encryption = encryption
        self._cipher = cipher
        self.aead = AESGCM(cipher._key)
        self._fixed = b""
        self._counter = 0

    def borrow(self) -> bytes:
        """The next nonce; advance it with `next`, put it back with `give_back`."""
        nonce = self._cipher._iv
        self._fixed = nonce[:4]
        self._counter = int.from_bytes(nonce[4:], "big")
        return nonce

    def next(self) -> bytes:
        self._counter = (self._counter + 1) & _COUNTER
        return self._fixed + self._counter.to_bytes(8, "big")

    def give_back(self, nonce: bytes) -> None:
        self._cipher._iv = nonce

    def use(self) -> bytes:
        """The nonce of one packet: `borrow`, `next` and `give_back` in one."""
        nonce = self._cipher._iv
        self._cipher._iv = nonce[:4] + ((int.from_bytes(nonce[4:], "big") + 1) & _COUNTER).to_bytes(8, "big")
        return nonce


def cipher_of(encryption: Encryption | None, cached: Cipher | None) -> Cipher | None:
    """`cached` while the keys are the same, a new one after a key exchange, None for anything but AES-GCM, and when this is turned off."""
    if cached is not None and cached.encryption is encryption:
        return cached
    if ENABLED and isinstance(encryption, GCMEncryption) and isinstance(encryption._cipher, GCMCipher):
        return Cipher(encryption, encryption._cipher)
    return None


class Noise:
    """Random padding (RFC 4253 section 6), no byte of it twice, for which the system is asked once in a few hundred packets."""

    def __init__(self) -> None:
        self._bytes = b""
        self._position = 0

    def take(self, count: int) -> bytes:
        """`count` bytes, at most 255."""
        end = self._position + count
        if end > len(self._bytes):
            self._bytes, self._position, end = os.urandom(_NOISE_BYTES), 0, count
        noise, self._position = self._bytes[self._position : end], end
        return noise


_noise = Noise()


class Outgoing:
    """Puts packets on the wire; channel data as many packets as the client's window takes, in one write."""

    def __init__(self, connection: PacketConnection) -> None:
        self._connection = connection
        self._cipher: Cipher | None = None
        self._plain = bytearray()

    def packet(self, kind: int, parts: tuple[bytes, ...]) -> bool:
        """Sends one packet of any kind; False when that is asyncssh's: it may have to wait, or to begin a key exchange."""
        connection, cipher = self._connection, self._cipher
        if cipher is None or cipher.encryption is not connection._send_encryption:
            cipher = self._cipher = cipher_of(connection._send_encryption, cipher)
        if (
            cipher is None
            or not connection._kex_complete
            or connection._transport is None
            or connection._compressor is not None
            or (not connection._auth_complete and (kind > MSG_USERAUTH_LAST or kind == MSG_USERAUTH_BANNER))
            or MSG_KEXINIT <= kind <= MSG_KEX_LAST
            or connection._rekey_bytes_sent >= connection._rekey_bytes
            or (connection._rekey_seconds and time.monotonic() >= connection._rekey_time)
        ):
            return False
        payload = b"".join(parts)
        padding = -(2 + len(payload)) % _BLOCK
        if padding < _PADDING_MIN:
            padding += _BLOCK
        length = 2 + len(payload) + padding
        head = length.to_bytes(_LENGTH, "big")
        connection._send(head + cipher.aead.encrypt(cipher.use(), bytes((padding, kind)) + payload + _noise.take(padding), head))
        connection._send_seq = (connection._send_seq + 1) & _SEQUENCE
        connection._rekey_bytes_sent += length
        return True

    def send(self, channel: Channel, data: bytes | memoryview, extended: int | None) -> int:
        """How many bytes of `data` were sent; the rest, which may be all, is asyncssh's to queue."""
        connection = self._connection
        transport = connection._transport
        window = channel._send_window
        if (
            transport is None
            or not window
            or not connection._kex_complete
            or not connection._auth_complete
            or connection._compressor is not None
            or connection._rekey_bytes_sent + len(data) >= connection._rekey_bytes
            or (connection._rekey_seconds and time.monotonic() >= connection._rekey_time)
        ):
            return 0
        cipher = self._cipher = cipher_of(connection._send_encryption, self._cipher)
        if cipher is None or channel._send_chan is None:
            return 0
        size = min(len(data), window)
        most = min(channel._send_pktsize, _PACKET_MOST)
        if extended is None:
            head = bytes((0, MSG_CHANNEL_DATA)) + channel._send_chan.to_bytes(4, "big")
            head_size = _DATA_HEAD
        else:
            head = bytes((0, MSG_CHANNEL_EXTENDED_DATA)) + channel._send_chan.to_bytes(4, "big") + extended.to_bytes(4, "big")
            head_size = _STDERR_HEAD
        packets = -(-size // most)
        out = bytearray(size + packets * (_LENGTH + head_size + _PADDING_MIN + _BLOCK + _TAG))
        longest = head_size + min(size, most) + _PADDING_MIN + _BLOCK
        if len(self._plain) < longest:
            self._plain = bytearray(longest)
        plain, wire, source = memoryview(self._plain), memoryview(out), memoryview(data)
        plain[: len(head)] = head
        encrypt = cipher.aead.encrypt_into
        nonce = cipher.borrow()
        position = start = sequence = 0
        while start < size:
            count = min(most, size - start)
            body = head_size + count
            padding = -body % _BLOCK
            if padding < _PADDING_MIN:
                padding += _BLOCK
            length = body + padding
            plain[0] = padding
            plain[head_size - 4 : head_size] = count.to_bytes(4, "big")
            plain[head_size:body] = source[start : start + count]
            plain[body:length] = _noise.take(padding)
            end = position + _LENGTH + length + _TAG
            wire[position : position + _LENGTH] = length.to_bytes(_LENGTH, "big")
            encrypt(nonce, plain[:length], wire[position : position + _LENGTH], wire[position + _LENGTH : end])
            nonce = cipher.next()
            position = end
            start += count
            sequence += 1
            connection._rekey_bytes_sent += length
        cipher.give_back(nonce)
        connection._send_seq = (connection._send_seq + sequence) & _SEQUENCE
        channel._send_window -= size
        wire.release()
        del out[position:]
        connection._send(out)
        connection.flush()  # so that the transport's pause is seen before more is read
        return size


class Incoming:
    """Takes packets out of what a client sent; those of a key exchange are left to asyncssh, and what it would judge."""

    def __init__(self, connection: PacketConnection) -> None:
        self._connection = connection
        self._cipher: Cipher | None = None

    def ready(self) -> bool:
        """Whether asyncssh stands between two packets of a plain AES-GCM connection."""
        connection = self._connection
        if not connection._kex_complete or connection._decompressor is not None or connection._recv_handler != connection._recv_pkthdr:
            return False
        self._cipher = cipher_of(connection._recv_encryption, self._cipher)
        return self._cipher is not None

    def take(self, data: bytes) -> tuple[int, int]:
        """Handles the packets at the start of `data`: (bytes that they took, bytes that asyncssh is to see next).

        A packet of a key exchange or a wrong one is asyncssh's from its first byte, to judge. (n, 0): what follows is the start of a
        packet that has not arrived whole, or waits until the last one has been handled. Raises what handlers raise.
        """
        connection, cipher = self._connection, self._cipher
        assert cipher is not None
        view = memoryview(data)
        position, total = 0, len(data)
        decrypt = cipher.aead.decrypt
        nonce = cipher.borrow()
        while total - position >= _LENGTH:
            length = int.from_bytes(view[position : position + _LENGTH], "big")
            end = position + _LENGTH + length + _TAG
            if length > connection._max_recv_pktlen or length < _BLOCK:
                return position, total - position
            if end > total:
                return position, 0
            try:
                plain = decrypt(nonce, view[position + _LENGTH : end], view[position : position + _LENGTH])
            except InvalidTag:
                return position, total - position
            kind = plain[1]
            channel = connection._channels.get(int.from_bytes(plain[2:6], "big")) if kind == MSG_CHANNEL_DATA else None
            count = int.from_bytes(plain[6:_DATA_HEAD], "big")
            is_data = (
                channel is not None
                and connection._auth_complete
                and channel._recv_state == "open"
                and count <= channel._recv_window
                and length - 1 - plain[0] == _DATA_HEAD - 1 + count
            )
            payload = b"" if is_data else plain[1 : -plain[0]]
            if not is_data and (not payload or MSG_KEXINIT <= kind <= MSG_KEX_LAST):
                return position, end - position
            # from here on the packet is ours: asyncssh's counters first, as what the data causes may use them
            nonce = cipher.next()
            cipher.give_back(nonce)
            position = end
            if channel is None or not is_data:
                if not connection.dispatch(payload):
                    break
                continue
            connection._recv_seq = (connection._recv_seq + 1) & _SEQUENCE
            connection._auth_final = True
            channel._accept_data(plain[_DATA_HEAD : _DATA_HEAD + count])
            if connection._transport is None:
                return total, 0  # what the data caused closed the connection
        return position, 0

    def rest_of_packet(self) -> int:
        """How many bytes asyncssh lacks of the packet that it has begun; 0 when it has begun none, or is not ready for one."""
        connection = self._connection
        if connection._recv_handler != connection._recv_packet:
            return 0
        whole = _LENGTH + connection._pktlen + connection._recv_macsize - connection._recv_blocksize
        return max(0, whole - len(connection._inpbuf))
