"""Decides one command: under which name access and routes are asked, and what they answer; the session and `check --explain` ask by it.

There are two reasons to ask again under another name:

1. The git host ignores case: the name is folded, and both are asked about the folded name.
2. A route says that the repository has moved: then everything about the old name is without effect, its access rules included, and both are
   asked about the new one. Once only: what has moved twice must say where it is now.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass

from msgspec.structs import replace

from relay.errors import Denied, Malformed, Undecided
from relay.git.command import canonical, folded
from relay.model import Command, Grant, Route

NAMES_TRIED = 3  # spellings: as requested, folded, and once more if the grant's route differs from that of the routes


@dataclass(frozen=True, slots=True)
class Decision:
    """The command under the name that counts, and what access and routes say of it."""

    command: Command
    grant: Grant
    route: Route
    moved_from: str = ""  # the name that was asked for, if the repository has another one now


@dataclass(frozen=True, slots=True)
class Deciding:
    """How to ask: `check` and `find` ask access and routes for one identity; `became` is called with each name that is tried."""

    ignoring: Set[str]  # upstreams that ignore case
    folds: bool  # whether all of them do
    check: Callable[[Command], Awaitable[Grant]]
    find: Callable[[Command], Awaitable[Route]]
    became: Callable[[Command, str], object]  # the command, and the name that was asked for if it has moved

    async def decide(self, command: Command) -> Decision:
        """Raises Denied and Undecided as the backends do, and Malformed for a name that no git host which ignores case has."""
        try:
            found = await self._decide(command, "")
        except Denied:
            # what rules say of the old name counts for nothing, a no included
            if (route := await self._moved(command)) is None:
                raise
        else:
            if found.route.moved_to is None:
                return found
            route = found.route
        now = replace(command, repository=_new_name(command, route), folded=False)
        self.became(now, command.repository)
        found = await self._decide(now, command.repository)
        if found.route.moved_to is not None:
            raise Undecided(f"{command.repository} has moved to {now.repository}, and that has moved to {found.route.moved_to}", "invalid")
        return found

    async def _decide(self, command: Command, moved_from: str) -> Decision:
        if self.ignoring:
            command = await self._named(command)
            self.became(command, moved_from)
        for _ in range(NAMES_TRIED):
            grant = await self.check(command)
            route = grant.route or await self.find(command)
            ignored = not self.ignoring.isdisjoint(route.names)
            if route.moved_to is not None or command.folded == ignored:
                return Decision(command, grant, route, moved_from)
            command = folded(command) if ignored else replace(command, folded=False)
            self.became(command, moved_from)
        raise Undecided(f"{command.repository}: the routes of its spellings lead to upstreams with and without ignore_case", "invalid")

    async def _named(self, command: Command) -> Command:
        """The spelling that access is asked about first: folded if its route, or else the folded name's, ignores case."""
        if self.folds:
            return folded(command)
        for named in (command, folded(command)):
            try:
                route = await self.find(named)
            except Denied:
                continue
            if route.moved_to is not None:
                return named
            return command if self.ignoring.isdisjoint(route.names) else folded(command)
        return command

    async def _moved(self, command: Command) -> Route | None:
        """The route of a repository that has moved; None for any other."""
        try:
            route = await self.find(await self._named(command) if self.ignoring else command)
        except (Denied, Undecided):
            return None  # the no of access stands
        return None if route.moved_to is None else route


def _new_name(command: Command, route: Route) -> str:
    try:
        name = canonical(route.moved_to or "")
    except Malformed as error:
        raise Undecided(f"{command.repository} has moved to a name that is none: {error}", "invalid") from None
    if name != route.moved_to:
        raise Undecided(f"{command.repository} has moved to {route.moved_to}, must be {name}", "invalid")
    return name
