"""SSH key pairs for tests: ed25519, ecdsa and rsa on disk, and security keys (FIDO) emulated in software.

alice = make_key(folder, "alice")                 # alice.private, alice.line, alice.fingerprint
token = SoftwareSecurityKey("sk-ed25519")         # token.line, token.fingerprint
asyncssh.connect(..., client_keys=[token])        # signs as a hardware token would
"""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import asyncssh
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

KeyKind = Literal["ed25519", "ecdsa", "rsa"]
SecurityKeyKind = Literal["sk-ed25519", "sk-ecdsa"]

KEY_KINDS: tuple[KeyKind, ...] = ("ed25519", "ecdsa", "rsa")
SECURITY_KEY_KINDS: tuple[SecurityKeyKind, ...] = ("sk-ed25519", "sk-ecdsa")

USER_PRESENT = 0x01  # the flag of a touched token: OpenSSH's PROTOCOL.u2f
USER_VERIFIED = 0x04  # that of a token which asked for its PIN


@dataclass(frozen=True)
class Key:
    """One key pair on disk: `private` is an OpenSSH-format file of mode 0600, `<private>.pub` lies beside it."""

    private: Path
    line: str
    """`<algorithm> <base64> <comment>`, as in an authorized_keys file; no newline."""

    @property
    def public(self) -> Path:
        return self.private.with_name(self.private.name + ".pub")

    @property
    def host_line(self) -> str:
        """The line without its comment: how `known_hosts` and `host_keys = [...]` want it."""
        return " ".join(self.line.split()[:2])

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.line)

    def load(self) -> asyncssh.SSHKey:
        return asyncssh.read_private_key(self.private)


def fingerprint(line: str) -> str:
    """`SHA256:...` of a public key line, as ssh-keygen -l and sshd's log print it."""
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def make_key(folder: Path, name: str, kind: KeyKind = "ed25519") -> Key:
    """Write `<folder>/<name>` and `<name>.pub`; rsa is 2048 bits and takes about 0.1 s, the others under 1 ms."""
    private: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if kind == "ed25519":
        private = ed25519.Ed25519PrivateKey.generate()
    elif kind == "ecdsa":
        private = ec.generate_private_key(ec.SECP256R1())
    else:
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(pem)
    public = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    key = Key(path, f"{public} {name}")
    key.public.write_text(key.line + "\n")
    return key


class SoftwareSecurityKey(asyncssh.SSHKeyPair):
    """A FIDO token in software, to be handed to asyncssh as a client key.

    It signs what OpenSSH's PROTOCOL.u2f prescribes: SHA256(application) || flags || counter || SHA256(message), and
    appends flags and counter to the signature. `flags` may be set to 0 for a token that no person touched.
    """

    _key_type = "local"

    def __init__(self, kind: SecurityKeyKind = "sk-ed25519", application: str = "ssh:") -> None:
        self.kind = kind
        self.application = application
        self.flags = USER_PRESENT
        self.counter = 0
        self._ed25519 = ed25519.Ed25519PrivateKey.generate()
        self._ecdsa = ec.generate_private_key(ec.SECP256R1())
        if kind == "sk-ed25519":
            algorithm = b"sk-ssh-ed25519@openssh.com"
            point = self._ed25519.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
            fields = [algorithm, point]
        else:
            algorithm = b"sk-ecdsa-sha2-nistp256@openssh.com"
            point = self._ecdsa.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
            fields = [algorithm, b"nistp256", point]
        blob = b"".join(_string(field) for field in [*fields, application.encode()])
        self.line = f"{algorithm.decode()} {base64.b64encode(blob).decode()} {kind}"
        super().__init__(algorithm, algorithm, (algorithm,), (algorithm,), blob, kind.encode())

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.line)

    def sign(self, data: bytes) -> bytes:
        self.counter += 1
        trailer = bytes([self.flags]) + self.counter.to_bytes(4, "big")
        signed = hashlib.sha256(self.application.encode()).digest() + trailer + hashlib.sha256(data).digest()
        if self.kind == "sk-ed25519":
            signature = self._ed25519.sign(signed)
        else:
            r, s = decode_dss_signature(self._ecdsa.sign(signed, ec.ECDSA(hashes.SHA256())))
            signature = _mpint(r) + _mpint(s)
        return _string(self.sig_algorithm) + _string(signature) + trailer


def _string(data: bytes) -> bytes:
    """RFC 4251 section 5, string."""
    return len(data).to_bytes(4, "big") + data


def _mpint(value: int) -> bytes:
    """RFC 4251 section 5, mpint, of a positive value."""
    return _string(value.to_bytes(value.bit_length() // 8 + 1, "big"))
