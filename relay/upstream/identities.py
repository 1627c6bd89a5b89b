"""Connections to one upstream that log in as an identity, with its certificate: a pool for each identity.

A git host that learns the identity from a certificate grants that person's rights to the connection: no other identity may ever use it.
An identity has connections_max places to each address, and identities_max of them have places at all. When sessions of another one wait
for that, the identity with the fewest sessions gets no further place until it has none: then they change places.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from relay.address import format_address
from relay.config import UserCertificateSettings
from relay.events import Observer
from relay.tasks import Tasks
from relay.upstream.colleagues import Colleagues, HostNews
from relay.upstream.gate import Gate, Tell, Visit
from relay.upstream.idle_life import IdleLives
from relay.upstream.libssh2 import Login
from relay.upstream.line import Line
from relay.upstream.member import Member, MemberLimits
from relay.upstream.members import Members, Row, table
from relay.upstream.pool import Own
from relay.upstream.refusals import Refusals
from relay.upstream.replay_budget import ReplayBudget

SWEEPS = 4  # sweeps for unused pools in idle_seconds


@dataclass(eq=False, slots=True)
class _Kept:
    """One identity's connections."""

    members: Members
    sessions: int = 0  # that have a place
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
        *,
        line: Line[Visit] | None = None,
    ) -> None:
        self.name = name
        self.replays = ReplayBudget(limits.replay_budget)  # of all identities together: it is one git host
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
        self._checked = Members(
            name, addresses, login(settings.check_identity), replace(limits, idle_connections=0), observer, self._colleagues
        )
        self._gate = Gate(name, [format_address(*address) for address in addresses], self._limits, observer, self, line)
        self._refusals = Refusals(settings.refused_seconds)
        self._idle_lives = IdleLives()
        for member in self._checked.all:
            member.neighbours = partial(self._members_of, member.address)
            self._colleagues.listen(name, member.address, self._told)
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # the last used at the end
        self._leaving = ""  # the identity that gets no further place, since sessions of another one wait
        self._tasks = Tasks()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<pools {self.name} identities={len(self._kept)} {' '.join(f'{state}={count}' for state, count in self.states.items())}>"

    @property
    def members(self) -> Sequence[Member]:
        """The addresses, with the results of the checks."""
        return self._checked.all

    @property
    def states(self) -> dict[str, int]:
        """As Pool.states, all identities together."""
        total = self._checked.states
        for kept in self._kept.values():
            for state, count in kept.members.states.items():
                total[state] += count
        total["waiting"] += self._gate.waiting
        return total

    @property
    def up(self) -> bool | None:
        return self._checked.up

    @property
    def paused(self) -> bool:
        return self._gate.paused

    @property
    def waiting(self) -> int:
        return self._gate.waiting

    def table(self) -> list[Row]:
        """As Pool.table, all identities together."""
        return table(self.members, self._gate.drained, [kept.members for kept in self._kept.values()])

    def set_switches(self, paused: bool, drained: frozenset[str]) -> None:
        """As Pool.set_switches."""
        for kept in self._kept.values():
            kept.members.shut(paused, drained)
        self._gate.set_switches(paused, drained)

    def start(self) -> None:
        self._checked.start()

    async def close(self) -> None:
        """As Pool.close, for all identities."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        self._gate.close()
        await self._checked.close()
        while self._kept:
            await self._kept.popitem()[1].members.close()
        await self._tasks.finish()

    def of(self, identity: str, tell: Tell | None = None, waited: Callable[[float], None] | None = None) -> Own:
        """This identity's connections; the arguments are those of Pool.of."""
        return Own(self, self._gate, identity, tell, waited)

    # -- places, for the gate --------------------------------------------------------------------------------------------

    def kind(self, visit: Visit) -> Hashable:
        return visit.identity, visit.repository

    def find(self, visit: Visit, addresses: Collection[str], dials: int | None) -> Member | None:
        """As Members.find, among those of the identity; each identity is spared addresses that are known to be down."""
        kept = self._find_kept(visit.identity)
        if kept is None or self._is_leaving(visit.identity):
            return None
        down = {member.address for member in self.members if member.up is False}
        return kept.members.find([address for address in addresses if address not in down] or addresses, visit.repository, dials)

    def find_idle(self, visit: Visit, addresses: Collection[str]) -> Member | None:
        kept = self._kept.get(visit.identity)
        return kept.members.find_idle(addresses) if kept is not None and not self._is_leaving(visit.identity) else None

    def candidates(self, visit: Visit, addresses: Collection[str]) -> Sequence[Member]:
        kept = self._kept.get(visit.identity)
        return kept.members.candidates(addresses, visit.repository) if kept is not None else []

    def taken(self, visit: Visit) -> None:
        kept = self._kept[visit.identity]
        self._kept.move_to_end(visit.identity)
        kept.sessions += 1

    def given_back(self, visit: Visit) -> None:
        kept = self._kept.get(visit.identity)
        if kept is None:
            return  # closed meanwhile
        kept.sessions -= 1
        if not kept.sessions:
            kept.unused_since = asyncio.get_running_loop().time()
            self._sweep_later()

    def is_own_limit(self, visit: Visit) -> bool:
        return visit.identity in self._kept and not self._is_leaving(visit.identity)

    def _is_leaving(self, identity: str) -> bool:
        """Whether this identity must make room: only as long as another one waits for that."""
        if identity == self._leaving and all(one.identity in self._kept for one in self._gate.in_line()):
            self._leaving = ""
        return bool(identity) and identity == self._leaving

    def _find_kept(self, identity: str) -> _Kept | None:
        """The identity's connections; None while identities_max others have sessions."""
        kept = self._kept.get(identity)
        if kept is None and self._make_room():
            members = Members(
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
            members.tell(self._gate.dialed, self._gate.changed)
            members.shut(False, self._gate.drained)
            kept = self._kept[identity] = _Kept(members)
            members.start()
        return kept

    def _members_of(self, address: str) -> list[Member]:
        return [member for kept in self._kept.values() for member in kept.members.all if member.address == address]

    def _told(self, news: HostNews) -> None:
        if news.identity:
            self._refusals.add(news.identity, news.address, news.problem, news.seconds)

    # -- fewer again -----------------------------------------------------------------------------------------------------

    def _make_room(self) -> bool:
        """Whether another identity may have connections. If not, the one with the fewest sessions is chosen to make room."""
        if len(self._kept) < self._identities_max:
            return True
        for identity, kept in self._kept.items():
            if not kept.sessions:
                self._let_go(identity)
                return True
        if not self._leaving:
            self._leaving = min(self._kept, key=lambda identity: self._kept[identity].sessions)
        return False

    def _let_go(self, identity: str) -> None:
        if identity == self._leaving:
            self._leaving = ""
        self._tasks.start(self._kept.pop(identity).members.close(), f"close {self.name}")

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


class _Unheard(Observer):
    """Reports an identity's dials and leases, but not its health: a refused identity says nothing about the git host."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def upstream_dialed(self, upstream: str, address: str, result: str, seconds: float, detail: str = "") -> None:
        self._observer.upstream_dialed(upstream, address, result, seconds, detail)

    def upstream_leased(self, upstream: str, seconds: float, warm: bool) -> None:
        self._observer.upstream_leased(upstream, seconds, warm)
