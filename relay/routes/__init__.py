"""Routes: where does this repository live?"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from relay import config
from relay.model import Command, Identity, Route


class Routes(Protocol):
    """One question; the first match wins."""

    source: str

    async def find(self, command: Command, identity: Identity) -> Route:
        """The upstream's name and the path it is asked for.

        Raises relay.errors.Denied where no route matches (a client must not learn the difference), relay.errors.Undecided
        when the backend cannot answer.
        """
        ...

    async def close(self) -> None: ...


def open_routes(settings: config.FileRoutes, base: Path, upstreams: Collection[str]) -> Routes:
    """The backend that the settings ask for; files are relative to `base`, routes lead to one of `upstreams`.

    Raises relay.errors.ConfigError with every problem in what it reads at start.
    """
    match settings:
        case config.FileRoutes():
            from relay.routes.file import FileRoutes

            return FileRoutes(base / settings.path, upstreams)
