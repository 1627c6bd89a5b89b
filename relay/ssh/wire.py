"""The direct path between asyncssh's state and the socket, for AES-GCM (RFC 5647, RFC 4253 section 6).

asyncssh sends an encrypted MSG_IGNORE before every packet, copies a packet's bytes eight times on the way out and six on the way in,
and makes a key schedule for each packet. Here all packets of one read from the git host are sealed into one buffer, and all packets of
one segment from the client are opened in place: channel data goes to its channel, other messages to asyncssh's handlers. asyncssh still
does key exchanges, every other cipher and every unusual state. Its window, sequence number, nonce and rekey count are updated as it
would have done, so either way may handle the next packet.

relay.ssh.asyncssh_pins names under WIRE the code that this replaces; when asyncssh changes it, or with RELAY_WIRE=0, this path is off.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Protocol

from asyncssh.constants import (
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_EXT_INFO,
    MSG_KEX_LAST,
    MSG_KEXINIT,
    MSG_NEWKEYS,
    MSG_USERAUTH_BANNER,
    MSG_USERAUTH_LAST,
)
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import Encryption, GCMEncryption

from relay.ssh import gcm
from relay.ssh.gcm import BLOCK, LENGTH, PADDING_LEAST, TAG, advanced, fresh_noise

if TYPE_CHECKING:
    from asyncssh.channel import SSHChannel


ENABLED = os.environ.get("RELAY_WIRE", "1") != "0"

PLAIN_BLOCK = 8  # of packets without a cipher (RFC 4253 section 6)
_PACKET_MOST = 1 << 20  # the relay sends no larger packet, whatever maximum the client names
_SEQUENCE = 0xFFFFFFFF
_TAKE_DATA = ("open",)
_TAKE_WINDOW = ("open", "eof_pending", "eof")


class Cipher:
    """One direction's AES-GCM state. The nonce is that of asyncssh's cipher object: `state._iv`, put back after each use."""

    __slots__ = ("aead", "encryption", "state")

    def __init__(self, encryption: Encryption, state: GCMCipher) -> None:
        self.encryption = encryption
        self.state = state
        self.aead = gcm.Aead(state._key)


def cipher_of(encryption: Encryption | None, cached: Cipher | None) -> Cipher | None:
    """`cached` while the keys are the same, a new one after a key exchange, None for other ciphers and with the direct path off."""
    if cached is not None and cached.encryption is encryption:
        return cached
    if ENABLED and isinstance(encryption, GCMEncryption) and isinstance(encryption._cipher, GCMCipher):
        return Cipher(encryption, encryption._cipher)
    return None


class Connection(Protocol):
    """The part of asyncssh's connection that the direct path uses; `dispatch` and `send_now` are the relay's own."""

    _transport: Any
    _send_encryption: Encryption | None
    _recv_encryption: Encryption | None
    _kex_complete: bool
    _strict_kex: bool
    _auth_complete: bool
    _auth_final: bool
    _compressor: Any
    _decompressor: Any
    _rekey_bytes: int
    _rekey_bytes_sent: int
    _rekey_seconds: float
    _rekey_time: float
    _send_seq: int
    _recv_seq: int
    _recv_handler: Any
    _recv_macsize: int
    _recv_blocksize: int
    _max_recv_pktlen: int
    _pktlen: int
    _inpbuf: bytes
    _channels: Any

    def dispatch(self, payload: bytes) -> bool:
        """Hands one decrypted message to its handler; False: the next one must wait."""
        ...

    def was_read(self, channel: SSHChannel[bytes], size: int) -> None:
        """A read of `size` bytes ended with data or a window adjust of `channel`, which was handled."""
        ...

    def send_now(self, data: bytes) -> None:
        """Writes packets to the transport, behind what was sent since the last flush."""
        ...

    def _send(self, data: bytes | bytearray) -> None: ...

    def _recv_pkthdr(self) -> bool: ...

    def _recv_packet(self) -> bool: ...


class Outgoing:
    """Seals and sends packets; channel data in one write, as many packets as the client's window allows."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._cipher: Cipher | None = None
        self._number = -1  # the channel of the last data
        self._head = b""  # of its packets

    def packet(self, kind: int, parts: tuple[bytes, ...]) -> bool:
        """Sends one packet; False when asyncssh must send it, since it may have to wait or to begin a key exchange."""
        connection, cipher = self._connection, self._cipher
        if connection._send_encryption is None:
            return ENABLED and self._plain(kind, parts)
        if cipher is None or cipher.encryption is not connection._send_encryption:
            cipher = self._cipher = cipher_of(connection._send_encryption, cipher)
        if (
            cipher is None
            or (not connection._kex_complete and kind != MSG_EXT_INFO)
            or connection._transport is None
            or connection._compressor is not None
            or (not connection._auth_complete and (kind > MSG_USERAUTH_LAST or kind == MSG_USERAUTH_BANNER))
            or MSG_KEXINIT <= kind <= MSG_KEX_LAST
            or connection._rekey_bytes_sent >= connection._rekey_bytes
            or (connection._rekey_seconds and time.monotonic() >= connection._rekey_time)
        ):
            return False
        state = cipher.state
        out = cipher.aead.packet(state._iv, bytes((kind,)) + b"".join(parts), None)
        state._iv = advanced(state._iv, 1)
        connection._send(out)
        connection._send_seq = (connection._send_seq + 1) & _SEQUENCE
        if connection._kex_complete:
            connection._rekey_bytes_sent += len(out) - LENGTH - TAG
        return True

    def _plain(self, kind: int, parts: tuple[bytes, ...]) -> bool:
        """As `packet`, for the first key exchange: there are no keys yet."""
        connection = self._connection
        if (
            not MSG_KEXINIT <= kind <= MSG_KEX_LAST
            or connection._kex_complete
            or connection._transport is None
            or connection._compressor is not None
            or connection._send_seq == _SEQUENCE
        ):
            return False
        payload = bytes((kind,)) + b"".join(parts)
        padding = PLAIN_BLOCK - (LENGTH + 1 + len(payload)) % PLAIN_BLOCK
        if padding < PADDING_LEAST:
            padding += PLAIN_BLOCK
        head = (1 + len(payload) + padding).to_bytes(LENGTH, "big") + bytes((padding,))
        connection._send(b"".join((head, payload, fresh_noise(1)[:padding])))
        connection._send_seq = 0 if kind == MSG_NEWKEYS and connection._strict_kex else connection._send_seq + 1
        return True

    def send(self, channel: SSHChannel[bytes], data: bytes | memoryview, extended: int | None) -> int:
        """Returns how many bytes of `data` were sent, perhaps none; asyncssh must queue the rest."""
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
        cipher, number = self._cipher, channel._send_chan
        if cipher is None or cipher.encryption is not connection._send_encryption:
            cipher = self._cipher = cipher_of(connection._send_encryption, cipher)
        if cipher is None or number is None:
            return 0
        size, most = len(data), channel._send_pktsize
        if size > window:
            size, data = window, data[:window]
        if most > _PACKET_MOST:
            most = _PACKET_MOST
        if extended is not None:
            head = bytes((MSG_CHANNEL_EXTENDED_DATA,)) + number.to_bytes(4, "big") + extended.to_bytes(4, "big")
        elif number == self._number:
            head = self._head
        else:
            head = self._head = bytes((MSG_CHANNEL_DATA,)) + number.to_bytes(4, "big")
            self._number = number
        state = cipher.state
        out, packets = cipher.aead.data(state._iv, head, data, most, None)
        state._iv = advanced(state._iv, packets)
        connection._send_seq = (connection._send_seq + packets) & _SEQUENCE
        connection._rekey_bytes_sent += len(out) - packets * (LENGTH + TAG)
        channel._send_window -= size
        connection.send_now(out)  # so that the transport's pause is seen before more is read
        return size


class Incoming:
    """Opens the packets that a client sent. asyncssh handles those of a key exchange, and those that are wrong."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._cipher: Cipher | None = None

    def ready(self) -> bool:
        """Whether the next byte begins a packet, the cipher is AES-GCM and no key exchange is under way."""
        connection = self._connection
        if not connection._kex_complete or connection._decompressor is not None or connection._recv_handler != connection._recv_pkthdr:
            return False
        cipher = self._cipher
        if cipher is None or cipher.encryption is not connection._recv_encryption:
            cipher = self._cipher = cipher_of(connection._recv_encryption, cipher)
        return cipher is not None

    def take(self, data: bytes | memoryview) -> tuple[int, int]:
        """Handles the packets at the start of `data`. Returns (bytes handled, bytes that asyncssh must handle next).

        asyncssh gets a packet of a key exchange, or a wrong one, from its first byte on. (n, 0): the rest is an unfinished packet,
        or must wait until the last message has been handled. Raises what handlers raise.
        """
        connection, cipher = self._connection, self._cipher
        assert cipher is not None
        aead, state, most = cipher.aead, cipher.state, connection._max_recv_pktlen
        position, total = 0, len(data)
        while total - position >= LENGTH:
            length = int.from_bytes(data[position : position + LENGTH], "big")
            if length > most or length < BLOCK:
                return position, total - position
            if position + LENGTH + length + TAG > total:
                return position, 0
            run = aead.run(state._iv, data, position, most, total)
            channel = self._receiver(run) if run is not None else None
            if channel is not None and run is not None and isinstance(run[0], bytes) and len(run[0]) > channel._recv_window:
                run = aead.run(state._iv, data, position, most, channel._recv_window)
            if channel is not None and run is not None:
                content, _, packets, position = run
                # update asyncssh's counters first: delivering the data may send packets
                state._iv = advanced(state._iv, packets)
                connection._recv_seq = (connection._recv_seq + packets) & _SEQUENCE
                connection._auth_final = True
                if isinstance(content, bytes):
                    channel._accept_data(content)
                else:
                    channel._send_window += content
                    channel._flush_send_buf()
                if connection._transport is None:
                    return total, 0  # delivering the data closed the connection
                if position == total:
                    connection.was_read(channel, total)
                continue
            opened = aead.open(state._iv, data, position, most)
            if opened is None:
                return position, total - position
            payload, end = opened
            if MSG_KEXINIT <= payload[0] <= MSG_KEX_LAST:
                return position, end - position
            state._iv = advanced(state._iv, 1)
            position = end
            if not connection.dispatch(payload):
                break
        return position, 0

    def _receiver(self, run: tuple[bytes | int, int, int, int]) -> SSHChannel[bytes] | None:
        """The channel of a run, if its state allows the message; otherwise asyncssh's handler judges it."""
        connection = self._connection
        channel = connection._channels.get(run[1]) if connection._auth_complete else None
        states = _TAKE_DATA if isinstance(run[0], bytes) else _TAKE_WINDOW
        return channel if channel is not None and channel._recv_state in states else None

    def rest_of_packet(self) -> int:
        """How many bytes are missing of the packet that asyncssh has begun to read; 0 when it has begun none."""
        connection = self._connection
        if not ENABLED or connection._recv_handler != connection._recv_packet:
            return 0
        whole = LENGTH + connection._pktlen + connection._recv_macsize - connection._recv_blocksize
        return max(0, whole - len(connection._inpbuf))
