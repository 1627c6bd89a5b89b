"""Access in Redis: hashes of who may do what in a repository or below a folder, and sets of the groups that a person is in.

    {prefix}access:team/app    a hash: who -> read | write; for all below a folder {prefix}access:team/**, for all {prefix}access:**
    {prefix}groups:alice       a set: the groups that alice is in

Who is an identity, @ and a group, or * for everyone who authenticated. What no field allows is denied. A change is told as
`access IDENTITY` on {prefix}changes, or as `access` when it is about several.
"""

from __future__ import annotations

from pathlib import Path

from relay import config
from relay.clients.redis import Changes, RedisClient, patterns
from relay.errors import Denied, Undecided
from relay.model import Command, Grant, Identity

GROUPS = 1_000  # that one person may be in


class RedisAccess:
    """Two round trips a question: the groups, then what is said of them."""

    source = "redis"

    def __init__(self, settings: config.RedisAccess, base: Path, changes: Changes) -> None:
        self._client = RedisClient("access", settings, base, changes)

    async def check(self, identity: Identity, command: Command, client_address: str, session_id: str) -> Grant:
        client, prefix = self._client, self._client.prefix
        # a whole set, unless it is larger than this: the only command that reads no more than it is told to
        (groups,) = await client.ask(("SRANDMEMBER", f"{prefix}groups:{identity.name}", str(GROUPS + 1)))
        if len(groups) > GROUPS:
            raise Undecided(f"{client.name}: {identity.name} is in more than {GROUPS} groups", "invalid")
        who = [identity.name, "*", *sorted(f"@{client.text(group)}" for group in groups)]
        said = await client.ask(*(("HMGET", f"{prefix}access:{pattern}", *who) for pattern in patterns(command.repository)))
        allowed = {client.text(value) for values in said for value in values if value is not None}
        if not allowed <= {"read", "write"}:
            raise Undecided(f"{client.name}: what is allowed in {command.repository} is neither read nor write", "invalid")
        if "write" in allowed:
            return Grant(access="write")
        if "read" in allowed and command.needs == "read":
            return Grant(access="read")
        raise Denied(f"{client.name}: nothing allows {identity.name} to {command.needs} {command.repository}")

    async def close(self) -> None:
        await self._client.close()
