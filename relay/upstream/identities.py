"""Connections to one upstream that log in as an identity, with its certificate: a pool for each identity.

A git host that learns the identity from a certificate grants that person's rights to the connection: no other identity may ever use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

from relay.config import UserCertificateSettings
from relay.errors import Unavailable
from relay.events import Observer
from relay.tasks import Tasks
from relay.upstream.colleagues import Colleagues, HostNews
from relay.upstream.idle_life import IdleLives
from relay.upstream.libssh2 import Connection, Login
from relay.upstream.member import Member, MemberLimits
from relay.upstream.pool import Pool
from relay.upstream.refusals import Refusals

SWEEPS = 4  # sweeps for unused pools in idle_seconds

_log = logging.getLogger("relay.upstream")


@dataclass(eq=False, slots=True)
class _Kept:
    """One identity's pool."""

    pool: Pool
    sessions: int = 0  # that have a connection or wait for one
    unused_since: float = 0.0  # the loop's clock


class IdentityPools:
    """Like a Pool, with a Pool for each identity; all methods belong to one loop.

    `login` makes an identity's Login. At most `settings.identities_max` identities have connections at once; another one replaces the
    identity that has been without a session for longest. Health is checked once for all identities, since checks need no login.
    """

    def __init__(
        self,
        name: str,
        addresses: list[tuple[str, int]],
        login: Callable[[str], Login],
        limits: MemberLimits,
        settings: UserCertificateSettings,
        observer: Observer,
        colleagues: Colleagues | None = None,
    ) -> None:
        self.name = name
        self._addresses = addresses
        self._login = login
        self._limits = replace(
            limits,
            connections_max=settings.connections_max,
            idle_connections=0,
            idle_seconds=settings.idle_seconds,
            health_seconds=0,
            ends_idle_sessions=False,
            quiet=True,
        )
        self._observer = _Unheard(observer)
        self._identities_max = settings.identities_max
        self._colleagues = colleagues if colleagues is not None else Colleagues()
        self._checked = Pool(
            name, addresses, login(settings.check_identity), replace(limits, idle_connections=0), observer, self._colleagues
        )
        self._refusals = Refusals(settings.refused_seconds)
        self._idle_lives = IdleLives()
        for member in self._checked.members:
            member.neighbours = partial(self._members_of, member.address)
            self._colleagues.listen(name, member.address, self._told)
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # the last used at the end
        self._tasks = Tasks()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<pools {self.name} identities={len(self._kept)} {' '.join(f'{state}={count}' for state, count in self.states.items())}>"

    @property
    def members(self) -> Sequence[Member]:
        """The addresses, with the results of the checks."""
        return self._checked.members

    @property
    def states(self) -> dict[str, int]:
        """As Pool.states, all identities together."""
        total = self._checked.states
        for kept in self._kept.values():
            for state, count in kept.pool.states.items():
                total[state] += count
        return total

    @property
    def up(self) -> bool | None:
        return self._checked.up

    def start(self) -> None:
        self._checked.start()

    async def close(self) -> None:
        """As Pool.close, for all identities."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        await self._checked.close()
        while self._kept:
            await self._kept.popitem()[1].pool.close()
        await self._tasks.finish()

    def of(self, identity: str) -> _Own:
        """This identity's connections."""
        return _Own(self, identity)

    @contextlib.asynccontextmanager
    async def lease(
        self, identity: str, command: str, environment: list[tuple[str, str]], repository: str, without: Collection[str]
    ) -> AsyncIterator[Connection]:
        kept = self._enter(identity)
        down = [member.address for member in self.members if member.up is False and member.address not in without]
        if len(down) + len(without) < len(self.members):
            without = [*without, *down]
        try:
            async with kept.pool.lease(command, environment, repository, without) as connection:
                yield connection
        finally:
            self._leave(identity, kept)

    def _enter(self, identity: str) -> _Kept:
        kept = self._kept.get(identity)
        if kept is None:
            self._make_room()
            pool = Pool(
                self.name,
                self._addresses,
                self._login(identity),
                self._limits,
                self._observer,
                self._colleagues,
                identity=identity,
                refusals=self._refusals,
                idle_lives=self._idle_lives,
            )
            kept = self._kept[identity] = _Kept(pool)
            pool.start()
        self._kept.move_to_end(identity)
        kept.sessions += 1
        return kept

    def _members_of(self, address: str) -> list[Member]:
        return [member for kept in self._kept.values() for member in kept.pool.members if member.address == address]

    def _told(self, news: HostNews) -> None:
        if news.identity:
            self._refusals.add(news.identity, news.address, news.problem, news.seconds)

    def _leave(self, identity: str, kept: _Kept) -> None:
        kept.sessions -= 1
        if not kept.sessions:
            kept.unused_since = asyncio.get_running_loop().time()
            self._sweep_later()

    # -- fewer again -----------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Raises Unavailable if identities_max identities have sessions."""
        if self._closed:
            raise Unavailable(f"upstream {self.name}: closing", reason="exhausted")
        if len(self._kept) < self._identities_max:
            return
        for identity, kept in self._kept.items():
            if not kept.sessions:
                self._let_go(identity)
                return
        raise Unavailable(f"upstream {self.name}: {self._identities_max} identities have sessions, no more may", reason="exhausted")

    def _let_go(self, identity: str) -> None:
        self._tasks.start(self._kept.pop(identity).pool.close(), f"close {self.name}")

    def _sweep_later(self) -> None:
        if self._sweep is None and not self._closed:
            self._sweep = asyncio.get_running_loop().call_later(self._limits.idle_seconds / SWEEPS, self._sweep_now)

    def _sweep_now(self) -> None:
        """Closes the pools that were not used for idle_seconds."""
        self._sweep = None
        old = asyncio.get_running_loop().time() - self._limits.idle_seconds
        for identity in [name for name, kept in self._kept.items() if not kept.sessions and kept.unused_since <= old]:
            self._let_go(identity)
        if any(not kept.sessions for kept in self._kept.values()):
            self._sweep_later()


class _Own:
    """The pools as one identity sees them."""

    def __init__(self, pools: IdentityPools, identity: str) -> None:
        self._pools = pools
        self._identity = identity

    @property
    def members(self) -> Sequence[Member]:
        return self._pools.members

    def lease(
        self, command: str, environment: list[tuple[str, str]], repository: str = "", without: Collection[str] = ()
    ) -> contextlib.AbstractAsyncContextManager[Connection]:
        """As Pool.lease; also raises Unavailable("exhausted") if too many identities have sessions."""
        return self._pools.lease(self._identity, command, environment, repository, without)


class _Unheard(Observer):
    """Reports an identity's dials and leases, but not its health: a refused identity says nothing about the git host."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def upstream_dialed(self, upstream: str, address: str, result: str, seconds: float, detail: str = "") -> None:
        self._observer.upstream_dialed(upstream, address, result, seconds, detail)

    def upstream_leased(self, upstream: str, seconds: float, warm: bool) -> None:
        self._observer.upstream_leased(upstream, seconds, warm)
