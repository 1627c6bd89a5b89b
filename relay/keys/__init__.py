"""Keys: who does this public key belong to?"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from relay import config

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


def open_keys(settings: config.FileKeys, base: Path) -> Keys:
    """The backend that the settings ask for; files are relative to `base`.

    Raises relay.errors.ConfigError with every problem in what it reads at start.
    """
    match settings:
        case config.FileKeys():
            from relay.keys.file import FileKeys

            return FileKeys(base / settings.path)


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
