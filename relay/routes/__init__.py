"""Routes: where does this repository live?"""

from __future__ import annotations

from typing import Protocol

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
