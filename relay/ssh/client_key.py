"""A client's public key as it came, decoded; and those that somebody proved to have, so that no login decodes them again.

Nothing is remembered of whose a key is, nor whether it may be used: that is asked each time.
"""

from __future__ import annotations

from binascii import b2a_base64
from typing import NamedTuple

import asyncssh
from asyncssh.public_key import decode_ssh_public_key

from relay.keys import KeyFacts
from relay.openssh.fields import Fields, string
from relay.openssh.public_key import CLIENT_SIGNATURES_ON_THE_WIRE, fingerprint, public_key

KEYS_MOST = 1_024  # that are remembered


def with_our_signatures(key: asyncssh.SSHKey) -> asyncssh.SSHKey:
    """The key, which verifies no others from here on: asyncssh verifies SHA-1 too, whatever it was told to announce."""
    key.all_sig_algorithms = key.all_sig_algorithms & CLIENT_SIGNATURES_ON_THE_WIRE
    return key


def verifies(key: asyncssh.SSHKey, data: bytes, signature: bytes) -> bool:
    """Whether `signature`, which is a stranger's, is the key's over `data`."""
    try:
        return key.verify(data, _padded(key, signature))
    except Exception:  # noqa: BLE001 - whatever a malformed signature makes asyncssh and cryptography raise: it is not right
        return False


def signature_flags(key: asyncssh.SSHKey, signature: bytes) -> int | None:
    """The flags in a security key's signature, which was verified (OpenSSH's PROTOCOL.u2f); None for any other key."""
    if not key.algorithm.startswith(b"sk-"):
        return None
    fields = Fields(signature)
    fields.string()  # algorithm
    fields.string()  # signature
    return fields.number(1)


def _padded(key: asyncssh.SSHKey, signature: bytes) -> bytes:
    """An RSA signature as long as the modulus (RFC 8332 section 3). PuTTY leaves its leading zeros out, one time in 256, and OpenSSH's sshd
    takes such a signature."""
    if key.algorithm != b"ssh-rsa":
        return signature
    fields = Fields(signature)
    algorithm, number = fields.string(), fields.string()
    *_, modulus = Fields(key.public_data).strings()
    return string(algorithm) + string(number.rjust(len(modulus.lstrip(b"\0")), b"\0")) + signature[len(fields.before) :]


class ClientKey(NamedTuple):
    """One key. `blob` is its canonical encoding, which may differ from what the client sent."""

    key: asyncssh.SSHKey
    blob: bytes
    fingerprint: str
    line: str  # type and base64
    facts: KeyFacts

    @classmethod
    def of(cls, key: asyncssh.SSHKey) -> ClientKey:
        blob = key.public_data
        line = f"{key.algorithm.decode('ascii', 'replace')} {b2a_base64(blob, newline=False).decode()}"
        known = public_key(blob)
        return cls(with_our_signatures(key), blob, fingerprint(blob), line, KeyFacts(known.type, known.bits))

    @classmethod
    def decoded(cls, came: bytes) -> ClientKey:
        """Raises asyncssh.KeyImportError, with why."""
        try:
            key = decode_ssh_public_key(came)
            key.set_touch_required(False)  # the Judge is given the flags of the signature
            return cls.of(key)
        except asyncssh.KeyImportError:
            raise
        except Exception as error:  # noqa: BLE001 - cryptography raises what it likes at a point off the curve, an exponent of 0, ...
            raise asyncssh.KeyImportError(f"{type(error).__name__}: {error}") from None


class KnownKeys:
    """Decoded keys by canonical encoding. A key is added only after a signature of it was verified, so offered keys, and other encodings of
    the same key (RSA with leading zeros), cannot evict the keys of users."""

    def __init__(self, most: int = KEYS_MOST) -> None:
        self._keys: dict[bytes, ClientKey] = {}
        self._most = most

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, came: bytes) -> ClientKey | None:
        return self._keys.get(came)

    def add(self, came: bytes, key: ClientKey) -> None:
        """Adds a key; evicts the oldest one when there are too many."""
        if came not in self._keys:
            self._keys[came] = key
            if len(self._keys) > self._most:
                del self._keys[next(iter(self._keys))]
