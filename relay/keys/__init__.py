"""Keys: to whom does this public key belong?"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import NamedTuple, Protocol, runtime_checkable

import asyncssh

from relay.events import AuthFailure
from relay.model import Identity

IDENTITY_CHARACTERS = 255
USER_PRESENT = 0x01  # flags of a security key's signature (OpenSSH's PROTOCOL.u2f): it was touched
USER_VERIFIED = 0x04  # it asked for its PIN or a fingerprint


class Keys(Protocol):
    """A keys backend. Only metrics and the log use `source`."""

    source: str

    async def owner(self, fingerprint: str, public_key: str) -> str | None:
        """The name of the identity that the key belongs to, or None for an unknown key.

        `fingerprint` is `SHA256:...` (RFC 4716 base64 without padding); `public_key` is the line `type base64` of RFC 4253 section 6.6.
        Raises relay.errors.Undecided when the backend cannot answer.
        """
        ...

    async def close(self) -> None:
        """Closes the connections and files that the backend holds open."""
        ...


class NotAccepted(Exception):
    """A key or certificate that is refused although its owner may be known. `reason` is for metrics, the text for the log."""

    def __init__(self, text: str, reason: AuthFailure = "certificate", fingerprint: str = "") -> None:
        super().__init__(text)
        self.reason: AuthFailure = reason
        self.fingerprint = fingerprint


class KeyOptions(NamedTuple):
    """How a security key must sign, as an option in front of the key or in a certificate says."""

    verify_required: bool = False
    no_touch_required: bool = False


class SpokenFor(NamedTuple):
    """An identity for which a CA may sign, with the principals of which a certificate must list one, and the line's options."""

    identity: str
    principals: tuple[str, ...]
    options: KeyOptions = KeyOptions()


class Membership(NamedTuple):
    """The groups of an identity. They differ only while the file of groups has a fault: then a rule for a group holds for whoever may be in
    it, and its exemption only for whoever is in it for sure."""

    possible: Collection[str]
    sure: Collection[str]


class KeyFacts(NamedTuple):
    """What [policy] looks at: the type and size of a key, and of the key of a certificate's CA (empty for a plain key)."""

    type: str
    bits: int
    ca_type: str = ""
    ca_bits: int = 0


class Needs(NamedTuple):
    """What the flags of a security key's signature must say."""

    touch: bool
    verified: str = ""  # the name of what asks for it; empty: nothing does

    def check(self, flags: int | None) -> None:
        """Raises NotAccepted. `flags` are those of the signature, None of a key that is no security key."""
        if flags is None:
            return  # Policing.check has refused it if a PIN is asked for
        if self.touch and not flags & USER_PRESENT:
            raise NotAccepted("the security key was not touched", "not_touched")
        if self.verified and not flags & USER_VERIFIED:
            raise NotAccepted(f"the security key asked for no PIN or fingerprint, {self.verified} asks for it", "not_verified")


class HostCertificate(NamedTuple):
    """A certificate of a host key, whose CA's signature was verified (OpenSSH's PROTOCOL.certkeys)."""

    blob: bytes
    key: bytes  # blob of the host key (RFC 4253 section 6.6)
    key_type: str
    principals: tuple[str, ...]  # host names
    valid_after: int  # seconds since the epoch
    valid_before: int | None  # None: for ever

    def fault(self, now: float) -> str | None:
        """Why clients do not take it now; None when they do."""
        if now < self.valid_after:
            return f"is not valid before {when(self.valid_after)}"
        if self.valid_before is not None and now >= self.valid_before:
            return f"ran out at {when(self.valid_before)}"
        return None


def when(seconds: float) -> str:
    """A time since the epoch in UTC, also one that no calendar has."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return f"second {seconds:.0f}"


class Judged(NamedTuple):
    """An accepted certificate: the key that must sign, and the identity that its signature proves."""

    key: asyncssh.SSHKey
    identity: Identity
    facts: KeyFacts
    options: KeyOptions


@runtime_checkable
class KeyConditions(Protocol):
    """A keys backend that also has conditions on keys, and CAs for single identities, as authorized_keys files do."""

    async def check(self, fingerprint: str, address: str) -> KeyOptions:
        """Raises NotAccepted when this key may not be used from `address`, or has expired. An unknown key passes."""
        ...

    async def authorities(self, fingerprint: str, address: str) -> list[SpokenFor]:
        """The identities for which this CA may sign certificates.

        Without principals the certificate must list the relay's user. Raises NotAccepted when there are such identities, but the conditions
        of all of them exclude `address` or have expired.
        """
        ...


class Policing(Protocol):
    """Judges the keys of identities by [policy]."""

    async def check(self, identity: str, facts: KeyFacts, options: KeyOptions, address: str) -> Needs:
        """What the signature must say. Raises NotAccepted; relay.errors.Undecided when the identity's groups cannot be found out."""
        ...


class Certificates(Protocol):
    """Judges certificates, and revoked keys."""

    checks_keys: bool  # whether check_key can refuse any

    async def judge(self, blob: bytes, address: str) -> Judged:
        """`address` is the client's. Raises NotAccepted."""
        ...

    async def check_key(self, blob: bytes, fingerprint: str, address: str) -> KeyOptions:
        """Raises NotAccepted when this key (RFC 4253 section 6.6) is revoked, or may not be used by a client from `address`."""
        ...

    async def close(self) -> None: ...


class Imported(NamedTuple):
    """What `import_keys` found in files as sshd has them."""

    files: dict[str, str]  # by the name of the file, in a folder of keys
    keys: int
    left_out: list[str]  # a line each, with file, number and reason
    problems: list[str]  # files that cannot be read


def identity_fault(name: str) -> str | None:
    """Why `name` cannot be an identity, and what is allowed; None for a valid name.

    In access rules `*` means everyone and a leading @ a group. A slash could be read as part of a path, a control character as the end
    of a line.
    """
    if not name:
        return "is empty, must be a name"
    if len(name) > IDENTITY_CHARACTERS:
        return f"has {len(name)} characters, allowed are {IDENTITY_CHARACTERS}"
    if not name.isprintable() or "/" in name or name != name.strip():
        return "must have printable characters only, no slash, and no space at its ends"
    if name == "*" or name.startswith("@"):
        return "must not be * and must not begin with @, which have a meaning in access rules"
    return None


def who_fault(who: str) -> str | None:
    """Why `who` is neither an identity, nor @ and a group, nor * for everyone; None when it is one of them."""
    if who == "*":
        return None
    return identity_fault(who.removeprefix("@"))
