"""Public keys as in .pub files, `type base64 comment`, checked down to the fields of the blob (RFC 4253 section 6.6); pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Collection
from typing import NamedTuple

from relay.openssh.fields import Fields
from relay.text import quoted

LINE_BYTES = 24_576  # a longer line is refused; RSA of 16,384 bits with a long comment needs 6,000
RSA_BITS = (2048, 16_384)  # fewest and most, as OpenSSH's; a host key of the modern profile needs 3,072

_CURVES = {"ecdsa-sha2-nistp256": 32, "ecdsa-sha2-nistp384": 48, "ecdsa-sha2-nistp521": 66}  # bytes of a coordinate

_TYPE = re.compile(r"[a-z0-9@.-]{1,64}")  # may be a name (RFC 4251 section 6), and not base64

CERTIFICATE_SUFFIX = "-cert-v01@openssh.com"

HOST_KEY_TYPES = ("ssh-ed25519", *_CURVES, "ssh-rsa")
USER_KEY_TYPES = (*HOST_KEY_TYPES, "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com")


CLIENT_SIGNATURES = [  # algorithms accepted from clients and from CAs; not ssh-rsa, which is SHA-1
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "rsa-sha2-512",
    "rsa-sha2-256",
]
CLIENT_SIGNATURES_ON_THE_WIRE = frozenset(name.encode() for name in CLIENT_SIGNATURES)


class PublicKey(NamedTuple):
    """One key; `blob` is its form in SSH packets and fingerprints."""

    type: str
    blob: bytes
    comment: str

    @property
    def bits(self) -> int:
        """The size of the modulus (RSA) or of the curve."""
        if self.type == "ssh-rsa":
            return int.from_bytes(_strings(self.blob)[2], "big").bit_length()
        return {"ecdsa-sha2-nistp384": 384, "ecdsa-sha2-nistp521": 521}.get(self.type, 256)


def public_key(blob: bytes) -> PublicKey:
    """The key that `blob` is; its fields are not checked."""
    return PublicKey(Fields(blob).string().decode("ascii", "replace"), blob, "")


def fingerprint(blob: bytes) -> str:
    """`SHA256:` and base64 without padding, as ssh-keygen -l and sshd's log print it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def parse_line(text: str, allowed: Collection[str] = USER_KEY_TYPES) -> PublicKey:
    """The key on one line of a .pub file.

    Raises ValueError with what is wrong and what is allowed; the text never repeats key material.
    """
    if len(text) > LINE_BYTES:
        raise ValueError(f"has {len(text)} characters, allowed are {LINE_BYTES}")
    words = text.split(None, 2)
    kind = words[0] if words else ""
    if kind not in allowed:
        raise ValueError(_not_a_type(text, words, allowed))
    if len(words) < 2:
        raise ValueError(f"is cut off after {kind}, must be 'type base64 comment'")
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"the {kind} key is not valid base64, must be copied whole from a .pub file") from None
    check_blob(blob, kind)
    return PublicKey(kind, blob, words[2].strip() if len(words) > 2 else "")


def check_blob(blob: bytes, kind: str) -> None:
    """Raises ValueError unless `blob` is a key of type `kind` (RFC 4253 section 6.6, RFC 5656, RFC 8709, OpenSSH's PROTOCOL.u2f)."""
    try:
        fields = _strings(blob)
    except ValueError:
        raise ValueError(f"the {kind} key is cut off or damaged, must be copied whole from a .pub file") from None
    if fields[0] != kind.encode():
        raise ValueError(f"says {kind} but holds a key of type {quoted(fields[0].decode('ascii', 'replace'))}, must agree")
    if not _fits(kind, fields):
        raise ValueError(f"the {kind} key is damaged, must be copied whole from a .pub file")
    if kind == "ssh-rsa":
        bits = int.from_bytes(fields[2], "big").bit_length()
        if not RSA_BITS[0] <= bits <= RSA_BITS[1]:
            raise ValueError(f"is an RSA key of {bits} bits, allowed are {RSA_BITS[0]} to {RSA_BITS[1]}")


def _fits(kind: str, fields: list[bytes]) -> bool:
    if kind == "ssh-rsa":  # two positive mpints (RFC 4251 section 5): exponent, modulus
        return len(fields) == 3 and all(len(field) > 0 and field[0] < 0x80 for field in fields[1:]) and fields[1][-1] % 2 == 1
    if kind.startswith("sk-"):  # the application is last
        if not fields.pop():
            return False
        kind = {"sk-ssh-ed25519@openssh.com": "ssh-ed25519", "sk-ecdsa-sha2-nistp256@openssh.com": "ecdsa-sha2-nistp256"}[kind]
    if kind == "ssh-ed25519":
        return len(fields) == 2 and len(fields[1]) == 32
    size = _CURVES[kind]
    if len(fields) != 3 or fields[1] != kind.removeprefix("ecdsa-sha2-").encode():
        return False
    return len(fields[2]) == 1 + 2 * size and fields[2][0] == 4  # SEC 1 section 2.3.3, uncompressed


def _strings(blob: bytes) -> list[bytes]:
    """The strings (RFC 4251 section 5) that `blob` consists of. Raises ValueError if there are none, or bytes are left."""
    fields = list(Fields(blob).strings())
    if not fields:
        raise ValueError("empty")
    return fields


def _not_a_type(text: str, words: list[str], allowed: Collection[str]) -> str:
    kind = words[0] if words else ""
    types = ", ".join(allowed)
    if "PRIVATE KEY" in text:
        return "is a private key, must be a public key; take the private key away from here"
    if "BEGIN SSH2 PUBLIC KEY" in text:
        return "is in the format of RFC 4716, must be 'type base64 comment': convert it with ssh-keygen -i -f FILE"
    if "BEGIN" in text and "PUBLIC KEY" in text:
        return "is in PEM format, must be 'type base64 comment': convert it with ssh-keygen -i -m PKCS8 -f FILE"
    if kind == "ssh-dss":
        return f"is a DSA key (ssh-dss), which is too weak; allowed are {types}"
    if "-cert-v0" in kind:
        return f"is a certificate ({quoted(kind)}), must be a plain key; allowed are {types}"
    if kind in USER_KEY_TYPES:
        return f"{kind} is not possible here; allowed are {types}"
    if any(word in USER_KEY_TYPES for word in text.split()[1:]):
        return f"has something in front of the key (options or a host name), must begin with the key type: {types}"
    if not kind:
        return f"is empty, must begin with the key type: {types}"
    begins = f"begins with {quoted(kind)}" if _TYPE.fullmatch(kind) else "begins with no key type"  # it may be the middle of a private key
    return f"{begins}, must begin with the key type: {types}"
