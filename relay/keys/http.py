"""An HTTP authority answers who a key belongs to: GET /keys with the fingerprint and the key."""

from __future__ import annotations

from pathlib import Path

import msgspec

from relay import config
from relay.backends.http import HttpClient
from relay.errors import Denied, Undecided
from relay.keys import identity_fault


class Owner(msgspec.Struct, frozen=True):
    """The answer: the identity that the key belongs to."""

    identity: str


class HttpKeys:
    """One HTTP request a question."""

    source = "http"

    def __init__(self, settings: config.HttpKeysSettings, base: Path) -> None:
        self._client = HttpClient("keys", settings, base)

    async def owner(self, fingerprint: str, public_key: str) -> str | None:
        try:
            owner = await self._client.ask(Owner, "GET", "/keys", query={"fingerprint": fingerprint, "key": public_key})
        except Denied:
            return None
        if (fault := identity_fault(owner.identity)) is not None:
            raise Undecided(f"{self._client.name}: the identity {fault}", "invalid")
        return owner.identity

    async def close(self) -> None:
        await self._client.close()
