"""Routes in Redis: a hash for each repository or folder; the most specific one counts.

    {prefix}route:team/app     upstream -> main, path -> /srv/git/team/app.git
    {prefix}route:team/**      upstream -> main, path -> /srv/git/{repository}.git     {prefix}route:** for all repositories

    {prefix}route:team/old     moved_to -> team/new, the name that the repository has now; no other field
    {prefix}route:old/**       moved_to -> team/**

In a key, in path and in moved_to {identity} may stand for the name of the identity that asks. Optional fields: read_upstream -> the
upstream that serves reads, read_fallback -> no if reads must not go to `upstream` when it is down, read_only -> a text with which pushes
are refused, notice -> a line that clients read.

A change is published as `routes REPOSITORY` on {prefix}changes, or as `routes` when it concerns several repositories.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from relay import config
from relay.backends.redis import Changes, RedisClient, patterns_for
from relay.errors import Denied, Undecided
from relay.git.namespaces import anybodys
from relay.model import Command, Identity, Route, route_faults
from relay.routes.target import move_fault, placed

FIELDS = ("upstream", "path", "read_upstream", "read_fallback", "read_only", "moved_to", "notice")
FALLBACK = {"yes": True, "no": False}


class RedisRoutes:
    """One round trip a question."""

    source = "redis"

    def __init__(self, settings: config.RedisRoutesSettings, base: Path, upstreams: Collection[str], changes: Changes) -> None:
        self._client = RedisClient("routes", settings, base, changes)
        self._upstreams = frozenset(upstreams)

    async def find(self, command: Command, identity: Identity) -> Route:
        client = self._client
        about = patterns_for(command.repository, identity.name, folded=command.folded)
        said = await client.ask(*(("HMGET", f"{client.prefix}route:{pattern}", *FIELDS) for pattern in about))
        for pattern, values in zip(about, said, strict=True):
            fields = dict(zip(FIELDS, map(client.text, values), strict=True))
            if not any(value is not None for value in fields.values()):
                continue
            route = _route(fields)
            if route is None:
                what = "has neither upstream and path nor moved_to, or its read_fallback is neither yes nor no"
                raise Undecided(f"{client.name}: the route to {command.repository} {what}", "invalid")
            if faults := route_faults(route, self._upstreams):
                raise Undecided(f"{client.name}: the route to {command.repository}: {faults[0]}", "invalid")
            if route.moved_to is not None and (fault := move_fault(anybodys(pattern), anybodys(route.moved_to))) is not None:
                raise Undecided(f"{client.name}: the route to {command.repository}: its moved_to {fault}", "invalid")
            return placed(route, pattern, command, identity)
        raise Denied(f"{client.name}: no route leads to {command.repository}")

    async def close(self) -> None:
        await self._client.close()


def _route(fields: Mapping[str, str | None]) -> Route | None:
    """As it is written, with its placeholders."""
    upstream, path, moved_to = fields["upstream"], fields["path"], fields["moved_to"]
    fallback = FALLBACK.get(fields["read_fallback"] or "yes")
    if fallback is None or (moved_to is None and (upstream is None or path is None)):
        return None
    return Route(
        upstream=upstream or "",
        path=path or "",
        read_upstream=fields["read_upstream"],
        read_fallback=fallback,
        read_only=fields["read_only"],
        moved_to=moved_to,
        notice=fields["notice"],
    )
