"""Routes in Redis: a hash for each repository or folder; the most specific one counts.

    {prefix}route:team/app     upstream -> main, path -> /srv/git/team/app.git
    {prefix}route:team/**      upstream -> main, path -> /srv/git/{repository}.git     {prefix}route:** for all repositories

Optional fields: read_upstream -> the upstream that serves reads, read_fallback -> no if reads must not go to `upstream` when it is down,
read_only -> a text with which pushes are refused.

A change is published as `routes REPOSITORY` on {prefix}changes, or as `routes` when it concerns several repositories.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from relay import config
from relay.backends.redis import Changes, RedisClient, patterns
from relay.errors import Denied, Undecided
from relay.model import Command, Identity, Route
from relay.routes import PLACEHOLDER, route_faults

FIELDS = ("upstream", "path", "read_upstream", "read_fallback", "read_only")
FALLBACK = {"yes": True, "no": False}


class RedisRoutes:
    """One round trip a question."""

    source = "redis"

    def __init__(self, settings: config.RedisRoutesSettings, base: Path, upstreams: Collection[str], changes: Changes) -> None:
        self._client = RedisClient("routes", settings, base, changes)
        self._upstreams = frozenset(upstreams)

    async def find(self, command: Command, identity: Identity) -> Route:
        client = self._client
        said = await client.ask(*(("HMGET", f"{client.prefix}route:{pattern}", *FIELDS) for pattern in patterns(command.repository)))
        for values in said:
            fields = dict(zip(FIELDS, map(client.text, values), strict=True))
            if not any(value is not None for value in fields.values()):
                continue
            route = _route(fields, command.repository)
            if route is None:
                what = "lacks upstream or path, or its read_fallback is neither yes nor no"
                raise Undecided(f"{client.name}: the route to {command.repository} {what}", "invalid")
            if faults := route_faults(route, self._upstreams):
                raise Undecided(f"{client.name}: the route to {command.repository}: {faults[0]}", "invalid")
            return route
        raise Denied(f"{client.name}: no route leads to {command.repository}")

    async def close(self) -> None:
        await self._client.close()


def _route(fields: Mapping[str, str | None], repository: str) -> Route | None:
    upstream, path = fields["upstream"], fields["path"]
    fallback = FALLBACK.get(fields["read_fallback"] or "yes")
    if upstream is None or path is None or fallback is None:
        return None
    return Route(
        upstream=upstream,
        path=path.replace(PLACEHOLDER, repository),
        read_upstream=fields["read_upstream"],
        read_fallback=fallback,
        read_only=fields["read_only"],
    )
