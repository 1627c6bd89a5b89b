"""An HTTP authority answers where a repository is: GET /routes returns upstream and path, or the name that it has now."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from relay import config
from relay.backends.http import HttpClient
from relay.errors import Undecided
from relay.model import Command, Identity, Route, route_faults


class HttpRoutes:
    """One HTTP request a question."""

    source = "http"

    def __init__(self, settings: config.HttpRoutesSettings, base: Path, upstreams: Collection[str]) -> None:
        self._client = HttpClient("routes", settings, base)
        self._upstreams = frozenset(upstreams)

    async def find(self, command: Command, identity: Identity) -> Route:
        query = {"repository": command.repository, "service": command.service, "identity": identity.name}
        route = await self._client.ask(Route, "GET", "/routes", query=query)
        if faults := route_faults(route, self._upstreams):
            raise Undecided(f"{self._client.name}: {faults[0]}", "invalid")
        return route

    async def close(self) -> None:
        await self._client.close()
