"""Keys: who does this public key belong to?"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import asyncssh

from relay.events import AuthFailure
from relay.model import Identity

IDENTITY_CHARACTERS = 255


class Keys(Protocol):
    """One question. Backends are told apart by `source` in metrics only."""

    source: str

    async def owner(self, fingerprint: str, public_key: str) -> str | None:
        """The identity's name, or None for nobody's key.

        `fingerprint` is `SHA256:...` (RFC 4716 base64 without padding); `public_key` is the line `type base64` of RFC 4253 section 6.6.
        Raises relay.errors.Undecided when the backend cannot answer.
        """
        ...

    async def close(self) -> None:
        """Gives back what the backend holds open."""
        ...


class NotAccepted(Exception):
    """A key or a certificate that lets nobody in although it may be known: `reason` is for metrics, the text is for the log."""

    def __init__(self, text: str, reason: AuthFailure = "certificate", fingerprint: str = "") -> None:
        super().__init__(text)
        self.reason: AuthFailure = reason
        self.fingerprint = fingerprint


@runtime_checkable
class Lines(Protocol):
    """What a backend may know besides: conditions on keys, and CAs that speak for one identity, as authorized_keys files have them."""

    async def check(self, fingerprint: str, address: str) -> None:
        """Raises NotAccepted when this key may not be used from there, or not any more. Nobody's key passes."""
        ...

    async def authorities(self, fingerprint: str, address: str) -> list[tuple[str, tuple[str, ...]]]:
        """Identities that certificates of this CA may be, each with the principals of which one must be listed; none: the relay's user.

        Raises NotAccepted when there are some, and none of them from there, or not any more.
        """
        ...


class Certificates(Protocol):
    """Whose is this certificate, and may this key be used?"""

    checks_keys: bool  # whether check_key can refuse any

    async def judge(self, blob: bytes, address: str) -> tuple[asyncssh.SSHKey, Identity]:
        """The key that must sign, and who that proves; `address` is the client's own. Raises NotAccepted."""
        ...

    async def check_key(self, blob: bytes, fingerprint: str, address: str) -> None:
        """Raises NotAccepted when this key (RFC 4253 section 6.6) is revoked, or may not be used by a client from `address`."""
        ...

    async def close(self) -> None: ...


def identity_fault(name: str) -> str | None:
    """What keeps `name` from being an identity, and what is allowed; None for a good name.

    `*` and a leading @ mean everyone and a group in access rules; a slash could be taken for a path, a control character for a line's end.
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
    """What keeps `who` from being an identity, @ and a group, or * for everyone; None for a good one."""
    if who == "*":
        return None
    return identity_fault(who.removeprefix("@"))
