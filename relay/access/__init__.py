"""Access: may this identity read or write this repository?"""

from __future__ import annotations

from typing import Protocol

from relay.model import Command, Grant, Identity


class Access(Protocol):
    """An access backend. What no rule allows is denied."""

    source: str

    async def check(self, identity: Identity, command: Command, client_address: str, session_id: str) -> Grant:
        """A grant that covers `command.needs`.

        Raises relay.errors.Denied for no, relay.errors.Undecided when the backend cannot answer.
        """
        ...

    async def close(self) -> None: ...
