"""OpenSSH user certificates (PROTOCOL.certkeys): parsed, and their claims checked; pure.

The claims are worth nothing until the CA's signature is verified, which `relay.keys.authorities` does.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_network

from relay.address import real_address
from relay.keys import KeyOptions, NotAccepted
from relay.openssh.fields import Fields, string
from relay.openssh.public_key import CERTIFICATE_SUFFIX, USER_KEY_TYPES, check_blob, fingerprint
from relay.text import printable, quoted

USER, HOST = 1, 2
PRINCIPALS = 256  # OpenSSH reads no more
OPTIONS = 64
FOREVER = (1 << 64) - 1
SOURCE_ADDRESS, FORCE_COMMAND, VERIFY_REQUIRED = b"source-address", b"force-command", b"verify-required"
NO_TOUCH_REQUIRED = b"no-touch-required"

_PARAMETERS = {  # strings of the public key between nonce and serial number, by the plain type
    "ssh-ed25519": 1,
    "ecdsa-sha2-nistp256": 2,
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
    "ssh-rsa": 2,
    "sk-ssh-ed25519@openssh.com": 2,
    "sk-ecdsa-sha2-nistp256@openssh.com": 3,
}


@dataclass(frozen=True)
class Certificate:
    """The fields of a certificate, unchecked."""

    key: bytes  # blob of the plain key (RFC 4253 section 6.6)
    serial: int
    kind: int  # USER or HOST
    key_id: bytes
    principals: tuple[bytes, ...]
    valid_after: int  # seconds since the epoch
    valid_before: int
    critical: dict[bytes, bytes]
    ca: bytes  # blob of the CA's key
    signed: bytes  # the bytes that the signature covers
    signature: bytes  # algorithm and signature (RFC 4253 section 6.6)
    no_touch_required: bool = False  # the extension of that name

    @property
    def options(self) -> KeyOptions:
        return KeyOptions(VERIFY_REQUIRED in self.critical, self.no_touch_required)

    @property
    def signature_algorithm(self) -> bytes:
        return self.signature[4 : 4 + int.from_bytes(self.signature[:4], "big")]

    def __str__(self) -> str:
        return f"ID {_shown(self.key_id, 80)} (serial {self.serial}) CA {fingerprint(self.ca)}"


def parse_certificate(blob: bytes) -> Certificate:
    """Raises NotAccepted unless `blob` is one whole certificate, with nothing after it, of a key type that users may have."""
    fields = _fields(blob)
    name = fields.string().decode("ascii", "replace")
    kind = plain_type(name)
    if kind is None:
        raise NotAccepted(f"a certificate of type {quoted(name)} is not supported")
    fields.string()  # nonce
    parameters = [fields.string() for _ in range(_PARAMETERS[kind])]
    key = b"".join(map(string, [kind.encode(), *parameters]))
    serial, certificate_kind = fields.number(8), fields.number(4)
    key_id = fields.string()
    principals = tuple(_strings(fields.string(), PRINCIPALS, "principals"))
    valid_after, valid_before = fields.number(8), fields.number(8)
    critical = _options(fields.string())
    extensions = _strings(fields.string(), 2 * OPTIONS, "extensions")[::2]  # all but one permit only what the relay grants to nobody
    fields.string()  # reserved
    ca = fields.string()
    signed = fields.before
    signature = fields.string()
    if fields:
        raise NotAccepted("the certificate has something behind its end")
    try:
        check_blob(key, kind)
        ca_kind = _fields(ca).string().decode("ascii", "replace")
        if ca_kind not in USER_KEY_TYPES:
            raise ValueError(f"a CA's key of type {quoted(ca_kind)} is not supported")
        check_blob(ca, ca_kind)
    except ValueError as error:
        raise NotAccepted(f"the certificate holds a key that is not possible: {error}") from None
    no_touch = NO_TOUCH_REQUIRED in extensions
    return Certificate(
        key, serial, certificate_kind, key_id, principals, valid_after, valid_before, critical, ca, signed, signature, no_touch
    )


def plain_type(name: str) -> str | None:
    """The type of the key in a certificate of type `name`; None for a type that users may not have."""
    kind = name.removesuffix(CERTIFICATE_SUFFIX)
    kind = f"{kind}@openssh.com" if kind.startswith("sk-") else kind
    return kind if name.endswith(CERTIFICATE_SUFFIX) and kind in _PARAMETERS else None


def check_claims(certificate: Certificate, address: str, now: float | None = None) -> None:
    """Checks kind, validity, source-address and critical options; `check_principals` checks the principals.

    Raises NotAccepted.
    """
    now = time.time() if now is None else now
    if certificate.kind != USER:
        what = "a host's" if certificate.kind == HOST else f"of kind {certificate.kind}"
        raise NotAccepted(f"the certificate is {what}, must be a user's")
    if now < certificate.valid_after:
        raise NotAccepted(f"the certificate is not valid before {_when(certificate.valid_after)}", "expired")
    if now >= certificate.valid_before:
        raise NotAccepted(f"the certificate expired at {_when(certificate.valid_before)}", "expired")
    for name, value in certificate.critical.items():
        if name == SOURCE_ADDRESS:
            _check_source(value, address)
        elif name == FORCE_COMMAND:
            raise NotAccepted("the certificate forces a command (force-command), which a relay of git commands cannot run")
        elif name != VERIFY_REQUIRED:
            raise NotAccepted(f"the certificate has the critical option {_shown(name)}, which is not known")


def check_principals(certificate: Certificate, allowed: Collection[str]) -> None:
    """Raises NotAccepted unless the certificate lists one of `allowed`, or any principal if `allowed` is empty.

    A certificate without principals is refused, as sshd refuses it under TrustedUserCAKeys; older OpenSSH took it for everybody's.
    """
    if not certificate.principals:
        raise NotAccepted("the certificate lists no principal")
    wanted = {name.encode() for name in allowed}
    if wanted and wanted.isdisjoint(certificate.principals):
        listed = ", ".join(map(_shown, certificate.principals[:5]))
        raise NotAccepted(f"the certificate lists the principals {listed}, needed is {' or '.join(sorted(allowed))}")


def _check_source(value: bytes, address: str) -> None:
    """`value` is a list of addresses and networks, separated by commas: sshd's from= without patterns."""
    try:
        text = _fields(value)
        networks = [ip_network(item) for item in text.string().decode("ascii").split(",")]
    except (ValueError, NotAccepted):
        raise NotAccepted("the certificate's source-address is not a list of addresses and networks") from None
    if text:
        raise NotAccepted("the certificate's source-address has something behind its end")
    client = real_address(address)
    if client is None or not any(client in network for network in networks):
        raise NotAccepted(f"the certificate may not be used from {address} (source-address {_shown(value[4:])})", "source_address")


# -- the wire --------------------------------------------------------------------------------------------------------------


def _fields(data: bytes) -> Fields:
    return Fields(data, lambda: NotAccepted("the certificate is cut off or damaged"))


def _strings(data: bytes, most: int, what: str) -> list[bytes]:
    found = []
    for value in _fields(data).strings():
        found.append(value)
        if len(found) > most:
            raise NotAccepted(f"the certificate has more than {most} {what}")
    return found


def _options(data: bytes) -> dict[bytes, bytes]:
    """The critical options: name and data alternate, each name occurs once."""
    words = _strings(data, 2 * OPTIONS, "critical options")
    names = words[::2]
    if len(words) % 2 or len(set(names)) < len(names):
        raise NotAccepted("the certificate's critical options are damaged, or one of them is listed twice")
    return dict(zip(names, words[1::2], strict=True))


def _when(seconds: int) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return f"second {seconds}"


def _shown(text: bytes, limit: int = 60) -> str:
    return printable(text.decode("utf-8", "replace"), limit)
