"""Keys in Redis: the hash {prefix}keys maps fingerprints to identities. A change is published as `keys FINGERPRINT` on {prefix}changes."""

from __future__ import annotations

from pathlib import Path

from relay import config
from relay.backends.redis import Changes, RedisClient
from relay.errors import Undecided
from relay.keys import identity_fault


class RedisKeys:
    """One HGET a question."""

    source = "redis"

    def __init__(self, settings: config.RedisKeysSettings, base: Path, changes: Changes) -> None:
        self._client = RedisClient("keys", settings, base, changes)

    async def owner(self, fingerprint: str, public_key: str) -> str | None:
        name = self._client.text((await self._client.ask(("HGET", f"{self._client.prefix}keys", fingerprint)))[0])
        if name is not None and (fault := identity_fault(name)) is not None:
            raise Undecided(f"{self._client.name}: the identity of {fingerprint} {fault}", "invalid")
        return name

    async def close(self) -> None:
        await self._client.close()
