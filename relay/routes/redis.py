"""Routes in Redis: a hash says where a repository, or all below a folder, lives; the closest counts.

    {prefix}route:team/app     upstream -> main, path -> /srv/git/team/app.git
    {prefix}route:team/**      upstream -> main, path -> /srv/git/{repository}.git     for all {prefix}route:**

A change is told as `routes REPOSITORY` on {prefix}changes, or as `routes` when it is about several.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from relay import config
from relay.clients.redis import Changes, RedisClient, patterns
from relay.errors import Denied, Undecided
from relay.model import Command, Identity, Route, path_faults
from relay.tables import quoted

PLACEHOLDER = "{repository}"


class RedisRoutes:
    """One round trip a question."""

    source = "redis"

    def __init__(self, settings: config.RedisRoutes, base: Path, upstreams: Collection[str], changes: Changes) -> None:
        self._client = RedisClient("routes", settings, base, changes)
        self._upstreams = frozenset(upstreams)

    async def find(self, command: Command, identity: Identity) -> Route:
        client = self._client
        said = await client.ask(
            *(("HMGET", f"{client.prefix}route:{pattern}", "upstream", "path") for pattern in patterns(command.repository))
        )
        for values in said:
            upstream, path = map(client.text, values)
            if upstream is None and path is None:
                continue
            if upstream is None or path is None:
                raise Undecided(f"{client.name}: the route to {command.repository} lacks upstream or path", "invalid")
            if upstream not in self._upstreams:
                raise Undecided(f"{client.name}: the upstream {quoted(upstream)} is not configured", "invalid")
            route = Route(upstream=upstream, path=path.replace(PLACEHOLDER, command.repository))
            if faults := path_faults(route.path):
                raise Undecided(f"{client.name}: the path to {command.repository} {faults[0]}", "invalid")
            return route
        raise Denied(f"{client.name}: no route leads to {command.repository}")

    async def close(self) -> None:
        await self._client.close()
