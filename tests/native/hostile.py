"""An SSH server that keeps to the protocol until a test breaks it: keys, packets and lengths of the test's choice.

It speaks curve25519-sha256 (or plain Diffie-Hellman with the public value of its choice), accepts every user, and leaves
the rest to the test: `serve_login` and `serve_exec` bring a client up to a point, `send` is a correct packet, `send_sealed`
an authenticated one with a wrong length, `send_raw` bytes. One connection; blocking; each receive has a time limit.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.poly1305 import Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

RECEIVE_TIMEOUT = 30.0  # seconds; a client that dies closes its socket long before
IGNORE, EXT_INFO, SERVICE_ACCEPT, KEXINIT, NEWKEYS = 2, 7, 6, 20, 21
KEX_INIT, KEX_REPLY, GEX_GROUP, GEX_REQUEST = 30, 31, 31, 34
SERVICE_REQUEST, USERAUTH_REQUEST, USERAUTH_SUCCESS = 5, 50, 52
CHANNEL_OPEN, OPEN_CONFIRMATION, OPEN_FAILURE, WINDOW_ADJUST = 90, 91, 92, 93
CHANNEL_DATA, EXTENDED_DATA, CHANNEL_EOF, CHANNEL_CLOSE, CHANNEL_REQUEST, CHANNEL_SUCCESS, CHANNEL_FAILURE = 94, 95, 96, 97, 98, 99, 100


def u32(value: int) -> bytes:
    """RFC 4251 uint32."""
    return value.to_bytes(4)


def string(value: bytes | str) -> bytes:
    """RFC 4251 string."""
    raw = value.encode() if isinstance(value, str) else value
    return u32(len(raw)) + raw


def mpint(value: int) -> bytes:
    """RFC 4251 mpint of a value that is not negative."""
    return string(value.to_bytes(value.bit_length() // 8 + 1) if value else b"")


class Seal(Protocol):
    """One direction's cipher: `seal` takes packet_length and the rest of the packet in the clear, even if they do not match."""

    block: int
    aligned: int  # how much of the 4 bytes of the length field counts for the padding

    def seal(self, sequence: int, length: int, body: bytes) -> bytes: ...

    def open(self, sequence: int, read: Reader) -> bytes: ...


class Reader(Protocol):
    """Returns exactly that many bytes from the wire."""

    def __call__(self, size: int) -> bytes: ...


class Plain:
    """No cipher, before the first NEWKEYS."""

    block, aligned = 8, 4

    def seal(self, sequence: int, length: int, body: bytes) -> bytes:
        return u32(length) + body

    def open(self, sequence: int, read: Reader) -> bytes:
        return read(int.from_bytes(read(4)))


class Gcm:
    """aes128-gcm@openssh.com (RFC 5647)."""

    block, aligned = 16, 0

    def __init__(self, key: bytes, iv: bytes, mac_key: bytes) -> None:
        self._cipher = AESGCM(key[:16])
        self._fixed, self._counter = iv[:4], int.from_bytes(iv[4:12])

    def _nonce(self) -> bytes:
        nonce = self._fixed + (self._counter % 2**64).to_bytes(8)
        self._counter += 1
        return nonce

    def seal(self, sequence: int, length: int, body: bytes) -> bytes:
        return u32(length) + self._cipher.encrypt(self._nonce(), body, u32(length))

    def open(self, sequence: int, read: Reader) -> bytes:
        length = read(4)
        return self._cipher.decrypt(self._nonce(), read(int.from_bytes(length) + 16), length)


class Ctr:
    """aes128-ctr with hmac-sha2-256: the MAC over the clear packet."""

    block, aligned = 16, 4

    def __init__(self, key: bytes, iv: bytes, mac_key: bytes) -> None:
        cipher = Cipher(algorithms.AES(key[:16]), modes.CTR(iv[:16]))
        self._encrypt, self._decrypt, self._mac_key = cipher.encryptor(), cipher.decryptor(), mac_key[:32]

    def _mac(self, sequence: int, data: bytes) -> bytes:
        return hmac.digest(self._mac_key, u32(sequence) + data, "sha256")

    def seal(self, sequence: int, length: int, body: bytes) -> bytes:
        clear = u32(length) + body
        return self._encrypt.update(clear) + self._mac(sequence, clear)

    def open(self, sequence: int, read: Reader) -> bytes:
        first = self._decrypt.update(read(16))
        rest = self._decrypt.update(read(int.from_bytes(first[:4]) - 12))
        assert read(32) == self._mac(sequence, first + rest)
        return first[4:] + rest


class CtrEtm(Ctr):
    """aes128-ctr with hmac-sha2-256-etm@openssh.com: the MAC over the encrypted packet, the length in the clear."""

    aligned = 0

    def seal(self, sequence: int, length: int, body: bytes) -> bytes:
        sealed = u32(length) + self._encrypt.update(body)
        return sealed + self._mac(sequence, sealed)

    def open(self, sequence: int, read: Reader) -> bytes:
        length = read(4)
        body = read(int.from_bytes(length))
        assert read(32) == self._mac(sequence, length + body)
        return self._decrypt.update(body)


class ChaCha:
    """chacha20-poly1305@openssh.com (OpenSSH's PROTOCOL.chacha20poly1305)."""

    block, aligned = 8, 0

    def __init__(self, key: bytes, iv: bytes, mac_key: bytes) -> None:
        self._main, self._header = key[:32], key[32:64]

    def _stream(self, key: bytes, sequence: int, counter: int, data: bytes) -> bytes:
        nonce = counter.to_bytes(8, "little") + sequence.to_bytes(8)
        return Cipher(algorithms.ChaCha20(key, nonce), None).encryptor().update(data)

    def _tag(self, sequence: int, data: bytes) -> bytes:
        return Poly1305.generate_tag(self._stream(self._main, sequence, 0, bytes(32)), data)

    def seal(self, sequence: int, length: int, body: bytes) -> bytes:
        sealed = self._stream(self._header, sequence, 0, u32(length)) + self._stream(self._main, sequence, 1, body)
        return sealed + self._tag(sequence, sealed)

    def open(self, sequence: int, read: Reader) -> bytes:
        header = read(4)
        body = read(int.from_bytes(self._stream(self._header, sequence, 0, header)))
        assert read(16) == self._tag(sequence, header + body)
        return self._stream(self._main, sequence, 1, body)


CIPHERS: dict[tuple[str, str], type[Gcm | Ctr | ChaCha]] = {
    ("aes128-gcm@openssh.com", ""): Gcm,
    ("aes128-ctr", "hmac-sha2-256"): Ctr,
    ("aes128-ctr", "hmac-sha2-256-etm@openssh.com"): CtrEtm,
    ("chacha20-poly1305@openssh.com", ""): ChaCha,
}


class Hostile:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket, cipher: str, mac: str = "") -> None:
        """`cipher` and `mac` are the only ones it offers, a pair of CIPHERS."""
        sock.settimeout(RECEIVE_TIMEOUT)
        self.sock = sock
        self.cipher, self.mac = cipher, mac
        self.kex = "curve25519-sha256"
        self.public_value: int | None = None  # of Diffie-Hellman instead: 0 or 1, which is then the shared secret
        self._host_key = Ed25519PrivateKey.generate()
        self._in: Seal = Plain()
        self._out: Seal = Plain()
        self._sequence_in = self._sequence_out = 0
        self._session_id = b""
        self._versions: list[bytes] = []

    # the wire

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes; raises ConnectionError at the end of the stream."""
        data = bytearray()
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                raise ConnectionError("the client has gone")
            data += part
        return bytes(data)

    def send_raw(self, data: bytes) -> None:
        """Sends bytes unchanged."""
        self.sock.sendall(data)

    def seal(self, length: int, body: bytes) -> bytes:
        """An authenticated packet: its length field and what follows (padding_length, payload, padding), in the clear."""
        sealed = self._out.seal(self._sequence_out, length, body)
        self._sequence_out = (self._sequence_out + 1) % 2**32
        return sealed

    def packet(self, payload: bytes) -> bytes:
        """A correct packet."""
        padding = self._out.block - (self._out.aligned + 1 + len(payload)) % self._out.block
        padding += self._out.block if padding < 4 else 0
        return self.seal(1 + len(payload) + padding, bytes([padding]) + payload + bytes(padding))

    def send(self, *payloads: bytes) -> None:
        """Sends correct packets in one write."""
        self.send_raw(b"".join([self.packet(payload) for payload in payloads]))

    def receive(self) -> bytes:
        """The payload of the client's next packet."""
        body = self._in.open(self._sequence_in, self.read)
        self._sequence_in = (self._sequence_in + 1) % 2**32
        return body[1 : len(body) - body[0]]

    def expect(self, *kinds: int) -> bytes:
        """The next packet of one of these types; drops others."""
        while (payload := self.receive())[0] not in kinds:
            pass
        return payload

    # the key exchange

    def serve_versions(self) -> None:
        """Exchange identification strings."""
        self.send_raw(b"SSH-2.0-hostile\r\n")
        line = bytearray()
        while not line.endswith(b"\n"):
            line += self.read(1)
        self._versions = [bytes(line).strip(), b"SSH-2.0-hostile"]

    def kexinit(self) -> bytes:
        """The payload of this server's KEXINIT."""
        mac = self.mac or "hmac-sha2-256"
        lists = [self.kex, "ssh-ed25519", self.cipher, self.cipher, mac, mac, "none", "none", "", ""]
        return bytes([KEXINIT]) + os.urandom(16) + b"".join(string(names) for names in lists) + bytes(5)

    def serve_kex(self) -> None:
        """The whole key exchange, the first or a rekey."""
        ours = self.kexinit()
        self.send(ours)
        theirs = self.expect(KEXINIT)
        e = self.expect(KEX_INIT)[1:]
        if self.public_value is None:
            private = X25519PrivateKey.generate()
            f = string(private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
            secret = int.from_bytes(private.exchange(X25519PublicKey.from_public_bytes(e[4:])))
        else:
            f, secret = mpint(self.public_value), self.public_value
        host_key = string("ssh-ed25519") + string(self._host_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
        hashed = b"".join(string(part) for part in (*self._versions, theirs, ours, host_key)) + e + f + mpint(secret)
        digest = hashlib.sha256(hashed).digest()
        signature = string("ssh-ed25519") + string(self._host_key.sign(digest))
        self.send(bytes([KEX_REPLY]) + string(host_key) + f + string(signature), bytes([NEWKEYS]))
        self.expect(NEWKEYS)
        self._session_id = self._session_id or digest

        def derive(letter: bytes) -> bytes:
            first = hashlib.sha256(mpint(secret) + digest + letter + self._session_id).digest()
            return first + hashlib.sha256(mpint(secret) + digest + first).digest()

        seal = CIPHERS[self.cipher, self.mac]
        self._in = seal(derive(b"C"), derive(b"A"), derive(b"E"))
        self._out = seal(derive(b"D"), derive(b"B"), derive(b"F"))

    # after the key exchange

    def serve_login(self) -> None:
        """Everything up to a client that is logged in, under any user name."""
        self.serve_versions()
        self.serve_kex()
        self.expect(SERVICE_REQUEST)
        self.send(bytes([SERVICE_ACCEPT]) + string("ssh-userauth"))
        self.expect(USERAUTH_REQUEST)
        self.send(bytes([USERAUTH_SUCCESS]))

    def serve_exec(self, window: int = 2**20, packet_size: int = 32_768, number: int = 7) -> None:
        """Up to a client whose command runs. The channel is 0 for the client and `number` for this server."""
        self.serve_login()
        self.expect(CHANNEL_OPEN)
        self.send(bytes([OPEN_CONFIRMATION]) + u32(0) + u32(number) + u32(window) + u32(packet_size))
        self.expect(CHANNEL_REQUEST)
        self.send(bytes([CHANNEL_SUCCESS]) + u32(0))

    def request(self, kind: str, content: bytes = b"", want_reply: bool = False) -> bytes:
        """The payload of a channel request to the client."""
        return bytes([CHANNEL_REQUEST]) + u32(0) + string(kind) + bytes([want_reply]) + content

    def data(self, content: bytes) -> bytes:
        """The payload of channel data."""
        return bytes([CHANNEL_DATA]) + u32(0) + string(content)

    def finish(self, status: int | None = 0) -> None:
        """End of stream, exit status (None: none at all) and close."""
        ending = [] if status is None else [self.request("exit-status", u32(status))]
        self.send(bytes([CHANNEL_EOF]) + u32(0), *ending, bytes([CHANNEL_CLOSE]) + u32(0))

    def wait_gone(self) -> None:
        """Read and drop until the client closes the connection."""
        try:
            while self.sock.recv(65_536):
                pass
        except ConnectionError:  # the client closed with unread bytes
            pass
