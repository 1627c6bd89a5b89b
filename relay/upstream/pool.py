"""The connections to one upstream: a Member for each of its addresses, and which of them serves a session.

A lease has connect_seconds in all. The addresses are tried one after another, in the policy's order, each for its share of the time
that is left, until one accepts the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Collection, Sequence

from relay.errors import Unavailable
from relay.events import Observer
from relay.upstream.colleagues import Colleagues
from relay.upstream.idle_life import IdleLives
from relay.upstream.libssh2 import Connection, Login
from relay.upstream.member import Member, MemberLimits
from relay.upstream.policy import order
from relay.upstream.refusals import Refusals

__all__ = ["MemberLimits", "Pool"]

_log = logging.getLogger("relay.upstream")


class Pool:
    """All methods belong to one loop."""

    def __init__(
        self,
        name: str,
        addresses: list[tuple[str, int]],
        login: Login,
        limits: MemberLimits,
        observer: Observer,
        colleagues: Colleagues | None = None,
        *,
        identity: str = "",
        refusals: Refusals | None = None,
        idle_lives: IdleLives | None = None,
    ) -> None:
        self.name = name
        alone = len(addresses) == 1
        self.members: Sequence[Member] = tuple(
            Member(
                name,
                host,
                port,
                login,
                limits,
                observer,
                alone=alone,
                colleagues=colleagues,
                identity=identity,
                refusals=refusals,
                idle_lives=idle_lives,
            )
            for host, port in addresses
        )
        self._limits = limits
        self._observer = observer
        self._leases = 0

    def __repr__(self) -> str:
        return f"<pool {self.name} {' '.join(f'{state}={count}' for state, count in self.states.items())}>"

    @property
    def states(self) -> dict[str, int]:
        """How many connections are in each state, and how many sessions wait for one; all addresses together."""
        total = {"idle": 0, "leased": 0, "dialing": 0, "waiting": 0}
        for member in self.members:
            for state, count in member.states.items():
                total[state] += count
        return total

    @property
    def up(self) -> bool | None:
        """Whether any address is up; None: nothing is known yet."""
        known = [member.up for member in self.members]
        return True if True in known else None if None in known else False

    def start(self) -> None:
        """Dials the warm connections and begins to check the addresses; the loop must be running."""
        for member in self.members:
            member.start()

    async def close(self) -> None:
        """Closes idle connections and ends dials; leased ones close when their sessions give them back."""
        for member in self.members:
            await member.close()

    def of(self, identity: str) -> Pool:
        """The connections that may serve this identity: all, since every session logs in as the same user."""
        return self

    @contextlib.asynccontextmanager
    async def lease(
        self, command: str, environment: list[tuple[str, str]], repository: str = "", without: Collection[str] = ()
    ) -> AsyncIterator[Connection]:
        """A connection on which the git host has accepted `command`. It is kept if the command ended by itself, closed otherwise.

        The policy `hash` chooses by `repository`. The addresses in `without` are not tried; at least one must be left.
        Raises Unavailable within connect_seconds: dial, timeout, host_key, handshake, auth, channel, exec, exhausted.
        """
        started = time.monotonic()
        member, connection, warm = await self._started(command, environment, repository, without)
        self._observer.upstream_leased(self.name, time.monotonic() - started, warm)
        try:
            yield connection
        except BaseException:  # the session failed or was cancelled: the command may still run
            connection.close()
            raise
        finally:
            member.ended(connection)

    async def _started(
        self, command: str, environment: list[tuple[str, str]], repository: str, without: Collection[str]
    ) -> tuple[Member, Connection, bool]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.connect_seconds
        if len(self.members) == 1:
            lone = self.members[0]
            return lone, *await lone.serve(command, environment, deadline, deadline)
        members = order(self._limits.policy, [member for member in self.members if member.address not in without], repository)
        failed: list[Unavailable] = []
        for position, member in enumerate(members):
            now = loop.time()
            self._leases += 1
            member.used = self._leases
            try:
                until = now + (deadline - now) / (len(members) - position)
                connection, warm = await member.serve(command, environment, until, deadline)
                return member, connection, warm
            except Unavailable as error:
                failed.append(error.with_traceback(None))
                if loop.time() >= deadline:
                    break
                if position + 1 < len(members):
                    _log.info("upstream %s: %s; the next address is asked", self.name, error)
        raise Unavailable("; ".join(map(str, failed)), reason=failed[-1].reason)
