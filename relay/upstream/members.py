"""The addresses of an upstream, for one login: a Member each, and which of them has a place for a session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from relay.errors import Unavailable
from relay.events import Observer
from relay.upstream.colleagues import Colleagues
from relay.upstream.idle_life import IdleLives
from relay.upstream.libssh2 import Login
from relay.upstream.member import Member, MemberLimits
from relay.upstream.policy import order
from relay.upstream.refusals import Refusals

STATES = ("idle", "leased", "dialing", "waiting")


@dataclass(frozen=True, slots=True)
class Row:
    """One address of an upstream in one worker, as an operator sees it."""

    address: str
    up: bool | None  # None: nothing is known yet
    drained: bool
    leased: int  # to sessions, also to those that have a place and are still getting their connection
    idle: int
    dialing: int  # connections being dialled, or made ready for the next session


class Members:
    """All methods belong to one loop."""

    def __init__(
        self,
        upstream: str,
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
        self._policy = limits.policy
        self.all: Sequence[Member] = tuple(
            Member(
                upstream,
                host,
                port,
                login,
                limits,
                observer,
                alone=len(addresses) == 1,
                colleagues=colleagues,
                identity=identity,
                refusals=refusals,
                idle_lives=idle_lives,
            )
            for host, port in addresses
        )

    @property
    def states(self) -> dict[str, int]:
        """How many connections are in each state, and how many sessions with a place wait for one; all addresses together."""
        total = dict.fromkeys(STATES, 0)
        for member in self.all:
            for state, count in member.states.items():
                total[state] += count
        return total

    @property
    def up(self) -> bool | None:
        """Whether any address is up; None: nothing is known yet."""
        known = [member.up for member in self.all]
        return True if True in known else None if None in known else False

    def tell(self, on_dialed: Callable[[str, Unavailable | None], None], on_idle: Callable[[], None]) -> None:
        """Sets what each Member calls."""
        for member in self.all:
            member.on_dialed, member.on_idle = on_dialed, on_idle

    def start(self) -> None:
        """Dials the warm connections and begins to check the addresses; the loop must be running."""
        for member in self.all:
            member.start()

    async def close(self) -> None:
        """Closes idle connections and ends dials; leased ones close when their sessions give them back."""
        for member in self.all:
            await member.close()

    def shut(self, paused: bool, drained: Collection[str]) -> None:
        for member in self.all:
            member.shut(paused or member.address in drained)

    def candidates(self, addresses: Collection[str], repository: str) -> list[Member]:
        """Those of these addresses that may serve a session of `repository`, the best first; it waits while they are full.

        With the policies `first` and `hash` that is one: a busy primary's writes must not go to its standby.
        """
        members = [member for member in self.all if member.address in addresses]
        if len(members) > 1:
            members = order(self._policy, members, repository)
            down = members[0].up is False  # if so, all are
            members = [member for member in members if (member.up is False) is down] if self._policy == "least_sessions" else members[:1]
        return members

    def find(self, addresses: Collection[str], repository: str, dials: int | None) -> Member | None:
        """The one that has a place; where `dials` sessions are getting a connection already, only if it has an idle one to spare."""
        for member in self.candidates(addresses, repository):
            if not member.full and (dials is None or member.unserved < dials or member.spare > 0):
                return member
        return None

    def find_idle(self, addresses: Collection[str]) -> Member | None:
        """One that has an idle connection to spare."""
        return next((member for member in self.all if member.address in addresses and not member.full and member.spare > 0), None)

    def kind(self, repository: str) -> str:
        """Sessions with the same may use the same places."""
        return repository if self._policy == "hash" else ""


def table(members: Sequence[Member], drained: Collection[str], others: Sequence[Members] = ()) -> list[Row]:
    """A row for each of `members`, with the connections that `others` have to the same addresses."""
    rows = []
    for member in members:
        everyone = [member, *(one for each in others for one in each.all if one.address == member.address)]
        states: Counter[str] = Counter()
        for one in everyone:
            states.update(one.states)
        leased = sum(one.places for one in everyone)
        rows.append(Row(member.address, member.up, member.address in drained, leased, states["idle"], states["dialing"]))
    return rows
