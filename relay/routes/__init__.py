"""Routes: on which upstream, under which path is this repository?"""

from __future__ import annotations

from typing import Protocol

from relay.model import Command, Identity, Route

PLACEHOLDER = "{repository}"  # in a route's path: replaced by the name of the repository


class Routes(Protocol):
    """A routes backend."""

    source: str

    async def find(self, command: Command, identity: Identity) -> Route:
        """The upstream, and the path of the repository there; or only the name that it has now (`moved_to`).

        Raises relay.errors.Denied when no route matches: a client must not learn whether access or the route is missing. Raises
        relay.errors.Undecided when the backend cannot answer.
        """
        ...

    async def close(self) -> None: ...
