"""The connections to one upstream: a Member for each of its addresses, and which of them serves a session.

A session waits in line while no address has a place for it (relay.upstream.gate). Then it has connect_seconds in all: the addresses are
tried one after another, in the policy's order, each for its share of the time that is left, until one accepts the command.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from relay.address import format_address
from relay.events import Observer
from relay.upstream.colleagues import Colleagues
from relay.upstream.gate import Gate, Tell, Visit
from relay.upstream.libssh2 import Connection, Login
from relay.upstream.line import Line
from relay.upstream.member import Member, MemberLimits
from relay.upstream.members import Members, Row, table
from relay.upstream.refusals import Refusals
from relay.upstream.replay_budget import ReplayBudget

__all__ = ["Lease", "MemberLimits", "Own", "Pool", "Row"]


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
        refusals: Refusals | None = None,
        line: Line[Visit] | None = None,
    ) -> None:
        self.name = name
        self.replays = ReplayBudget(limits.replay_budget)
        self._members = Members(name, addresses, login, limits, observer, colleagues, refusals=refusals)
        self._gate = Gate(name, [format_address(*address) for address in addresses], limits, observer, _Places(self._members), line)
        self._members.tell(self._gate.dialed, self._gate.changed)

    def __repr__(self) -> str:
        return f"<pool {self.name} {' '.join(f'{state}={count}' for state, count in self.states.items())}>"

    @property
    def members(self) -> Sequence[Member]:
        return self._members.all

    @property
    def states(self) -> dict[str, int]:
        """How many connections are in each state, and how many sessions wait for one; all addresses together."""
        states = self._members.states
        states["waiting"] += self._gate.waiting
        return states

    @property
    def up(self) -> bool | None:
        """Whether any address is up; None: nothing is known yet."""
        return self._members.up

    @property
    def paused(self) -> bool:
        return self._gate.paused

    @property
    def waiting(self) -> int:
        """How many sessions are in line."""
        return self._gate.waiting

    def table(self) -> list[Row]:
        return table(self.members, self._gate.drained)

    def set_switches(self, paused: bool, drained: frozenset[str]) -> None:
        """What the operator wants from now on: `paused`: no session gets a connection; nor one to an address (host:port) in `drained`.

        Sessions that have one go on; others wait in line, or use the other addresses. Idle connections are closed, and nothing is
        dialled; health checks go on. Unset, warm connections are dialled and the line is let in.
        """
        self._members.shut(paused, drained)
        self._gate.set_switches(paused, drained)

    def start(self) -> None:
        """Dials the warm connections and begins to check the addresses; the loop must be running."""
        self._members.start()

    async def close(self) -> None:
        """Closes idle connections and ends dials; leased ones close when their sessions give them back."""
        self._gate.close()
        await self._members.close()

    def of(self, identity: str, tell: Tell | None = None, waited: Callable[[float], None] | None = None) -> Own:
        """The connections that may serve a session of this identity: all, since every session logs in as the same user.

        `tell` tells the client why it waits, `waited` gets the number of seconds that it waited.
        """
        return Own(self, self._gate, identity, tell, waited)

    def lease(self, command: str, environment: list[tuple[str, str]], repository: str = "", without: Collection[str] = ()) -> Lease:
        """As Own.lease, for no identity."""
        return self.of("").lease(command, environment, repository, without)


class HasMembers(Protocol):
    @property
    def members(self) -> Sequence[Member]: ...

    replays: ReplayBudget  # how many sessions are replayed a second


class Lease:
    """A connection for one session, between `begin` and `end` or within `async with`."""

    connection: Connection  # from `begin` on

    def __init__(self, gate: Gate, visit: Visit, command: str, environment: list[tuple[str, str]]) -> None:
        self._gate = gate
        self._visit = visit
        self._command = command
        self._environment = environment

    async def begin(self) -> None:
        """Waits for the connection. Raises as Own.lease; then there is nothing to end."""
        self.connection = await self._gate.connect(self._visit, self._command, self._environment)

    def end(self, *, failed: bool = False) -> None:
        """Gives the connection back; `failed`: closes it, since the session failed or was cancelled and the command may still run."""
        if failed:
            self.connection.close()
        self._gate.ended(self._visit, self.connection)

    async def __aenter__(self) -> Connection:
        await self.begin()
        return self.connection

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end(failed=kind is not None)


@dataclass(frozen=True, slots=True)
class Own:
    """The connections of an upstream as a session of one identity sees them."""

    pool: HasMembers
    gate: Gate
    identity: str
    tell: Tell | None = None
    waited: Callable[[float], None] | None = None

    @property
    def members(self) -> Sequence[Member]:
        return self.pool.members

    @property
    def replays(self) -> ReplayBudget:
        return self.pool.replays

    @property
    def wait_seconds(self) -> float:
        return self.gate.limits.wait_seconds

    def lease(
        self,
        command: str,
        environment: list[tuple[str, str]],
        repository: str = "",
        without: Collection[str] = (),
        *,
        again: bool = False,
        patient: bool = True,
        spent_seconds: float = 0.0,
        lost_at: str = "",
    ) -> Lease:
        """A connection on which the git host has accepted `command`. It is kept if the command ended by itself, closed otherwise.

        The policy `hash` chooses by `repository`. The addresses in `without` are not tried; at least one must be left. `again`: the
        session had a connection before, so it is the next in line. Without `patient` it waits for no upstream that is paused or away.
        `spent_seconds`: so much of wait_seconds the session has used up elsewhere. `lost_at`: the address at which the session has just
        lost a connection; there it gets a new one, as a git host that restarts ends all of them, one after another.

        Raises HostBusy after connect_seconds in line, or at once if the line
        is full; Unavailable within wait_seconds and connect_seconds: dial, timeout, host_key, handshake, auth, channel, exec, paused.
        """
        visit = Visit(self.gate, self.identity, repository, without, again, patient, self.tell, self.waited, spent_seconds, lost_at)
        return Lease(self.gate, visit, command, environment)


class _Places:
    """Everybody may use every connection."""

    def __init__(self, members: Members) -> None:
        self._members = members

    def kind(self, visit: Visit) -> Hashable:
        return self._members.kind(visit.repository)

    def find(self, visit: Visit, addresses: Collection[str], dials: int | None) -> Member | None:
        return self._members.find(addresses, visit.repository, dials)

    def find_idle(self, visit: Visit, addresses: Collection[str]) -> Member | None:
        return self._members.find_idle(addresses)

    def candidates(self, visit: Visit, addresses: Collection[str]) -> Sequence[Member]:
        return self._members.candidates(addresses, visit.repository)

    def taken(self, visit: Visit) -> None: ...

    def given_back(self, visit: Visit) -> None: ...

    def is_own_limit(self, visit: Visit) -> bool:
        return False
