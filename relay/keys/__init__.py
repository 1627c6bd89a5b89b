"""Keys: who does this public key belong to?"""

from __future__ import annotations

from typing import Protocol


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
