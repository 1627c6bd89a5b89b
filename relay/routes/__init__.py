"""Routes: on which upstream, under which path is this repository?"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from relay.model import Command, Identity, Route, path_faults
from relay.text import quoted

PLACEHOLDER = "{repository}"  # in a route's path: replaced by the name of the repository


class Routes(Protocol):
    """A routes backend."""

    source: str

    async def find(self, command: Command, identity: Identity) -> Route:
        """The upstream, and the path of the repository there.

        Raises relay.errors.Denied when no route matches: a client must not learn whether access or the route is missing. Raises
        relay.errors.Undecided when the backend cannot answer.
        """
        ...

    async def close(self) -> None: ...


def route_faults(route: Route, upstreams: Collection[str]) -> list[str]:
    """What is wrong with a route that a backend answered."""
    faults = [f"the upstream {quoted(name)} is not configured" for name in route.names if name not in upstreams]
    return faults + [f"the path {fault}" for fault in path_faults(route.path)]
