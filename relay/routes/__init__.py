"""Routes: where does this repository live?"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

from relay.model import Command, Identity, Route, path_faults
from relay.text import quoted

if TYPE_CHECKING:
    pass


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


def route_faults(route: Route, upstreams: Collection[str]) -> list[str]:
    """What keeps a backend's answer from being a route."""
    faults = [f"the upstream {quoted(name)} is not configured" for name in route.names if name not in upstreams]
    return faults + [f"the path {fault}" for fault in path_faults(route.path)]
