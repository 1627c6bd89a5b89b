"""Access: may this identity read or write this repository?"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from msgspec.structs import replace

from relay.errors import Denied, Undecided
from relay.keys import Membership
from relay.model import Command, Grant, Identity
from relay.text import printable


class Access(Protocol):
    """An access backend. What no rule allows is denied."""

    source: str

    async def check(self, identity: Identity, command: Command, client_address: str, session_id: str) -> Grant:
        """A grant that covers `command.needs`.

        Raises relay.errors.Denied for no, relay.errors.Undecided when the backend cannot answer.
        """
        ...

    async def close(self) -> None: ...


@runtime_checkable
class Grouping(Protocol):
    """An access backend that knows groups of identities."""

    async def groups_of(self, identity: str) -> Membership:
        """Raises relay.errors.Undecided when the backend cannot answer."""
        ...


async def check(access: Access, identity: Identity, command: Command, client_address: str, session_id: str) -> Grant:
    """As Access.check. Who may read a repository and not write it is told so; nobody else learns whether it exists."""
    try:
        return await access.check(identity, command, client_address, session_id)
    except Denied as error:
        if command.needs != "write" or error.message != Denied.message:  # an authority's own text goes before ours
            raise
        if not await may_read(access, identity, command, client_address, session_id):
            raise
        raise Denied(str(error), message=f"relay: you may read {printable(command.repository)}, not write it") from None


async def may_read(access: Access, identity: Identity, command: Command, client_address: str, session_id: str) -> bool:
    """Whether the identity may fetch from the repository of `command`; False also when the backend cannot answer."""
    try:
        await access.check(identity, replace(command, service="git-upload-pack", operation=None), client_address, session_id)
    except (Denied, Undecided):
        return False
    return True
