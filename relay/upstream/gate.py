"""The gate of an upstream: who gets a place at which address, who waits in line for one, and for how long.

A session has a place from the moment on in which it may take or dial a connection until it gives the connection back; an address has
connections_max of them in a worker. There are three cases in which it waits for one:

1. All places are taken, or its identity or repository has as many as may. It waits connect_seconds at most, in relay.upstream.line.
2. The operator has paused the upstream, or drained all its addresses. It waits wait_seconds at most.
3. No address is up: the last dial to each has failed in a way that passes when a git host restarts. It waits wait_seconds at most. While
   anybody waits, one session at a time, the next in line, tries to dial; when it succeeds, the others follow.

A session that another upstream may serve (Route.upstreams) is not patient: it does not wait in the last two cases, but fails.

What a session waits for may change. It then has what is left of the time for the other case.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

from relay.errors import HostBusy, IdentityBusy, RepositoryBusy, Unavailable
from relay.events import Observer, WaitsFor
from relay.text import counted
from relay.upstream.libssh2 import Connection
from relay.upstream.line import Line, Why
from relay.upstream.member import Member, MemberLimits

PRESS_SECONDS = 0.25  # how often sessions with an idle client are looked for while others wait
FIRST_TRIAL_SECONDS = 0.05  # from a failed dial to the next while sessions wait; twice as long each time
MOST_TRIAL_SECONDS = 0.4
TRIAL_DIAL_SECONDS = 2.0  # for the whole dial; twice as long each time this was too short, up to connect_seconds
AGAIN_SECONDS = 0.25  # before a session tries again that could not be served though its git host is up
DIALS_AT_ONCE = 4  # to one address, for sessions that were in line when it came back; an sshd drops logins beyond MaxStartups (10)

_BUSY: dict[Why, type[HostBusy]] = {"identity": IdentityBusy, "repository": RepositoryBusy, "upstream": HostBusy}

_log = logging.getLogger("relay.upstream")

Tell = Callable[[WaitsFor, int, float], None]
"""Tells the client for what it waits, how many sessions are in line before it, and the most seconds that it will wait from now on."""


class Seats(Protocol):
    """The places of an upstream."""

    def kind(self, visit: Visit) -> Hashable:
        """As Turn.kind, but for the addresses."""

    def find(self, visit: Visit, addresses: Collection[str], dials: int | None) -> Member | None:
        """As Members.find."""

    def find_idle(self, visit: Visit, addresses: Collection[str]) -> Member | None:
        """As Members.find_idle."""

    def candidates(self, visit: Visit, addresses: Collection[str]) -> Sequence[Member]:
        """As Members.candidates."""

    def taken(self, visit: Visit) -> None:
        """`visit` has taken a place."""

    def given_back(self, visit: Visit) -> None: ...

    def is_own_limit(self, visit: Visit) -> bool:
        """Whether `visit` waits for a session of its own identity alone."""


class Visit:
    """A session that asks for a connection: a Turn of the line."""

    def __init__(
        self,
        gate: Gate,
        identity: str,
        repository: str,
        without: Collection[str],
        again: bool,
        patient: bool,
        tell: Tell | None,
        waited: Callable[[float], None] | None,
        spent_seconds: float = 0.0,
        lost_at: str = "",
    ) -> None:
        self.upstream = gate.name
        self.identity, self.repository = identity, repository
        self.number = 0
        self.without = frozenset(without)  # addresses that must not serve it
        self.again = again  # whether it had a place before
        self.lost_at = lost_at  # the address at which it has just lost a connection: there only a new one serves it
        away_seconds = max(0.0, gate.limits.wait_seconds - spent_seconds) if patient else 0.0
        self.patient = away_seconds > 0  # whether it waits for an upstream that is paused or away
        self.tell, self.waited = tell, waited
        self.failed: dict[str, Unavailable] = {}  # addresses tried since it was let in
        self.problem: Unavailable | None = None  # of the last time that all of them failed
        self.member: Member | None = None  # where it has a place
        self.until: float | None = None  # when the time for all addresses is over, on the loop's clock
        self.began = 0.0  # when that time began
        self.waits_for: WaitsFor | None = None
        self.since = 0.0  # since when
        self.patience = {"busy": gate.limits.connect_seconds, "away": away_seconds}  # seconds that are left
        self.limit: asyncio.Timeout | None = None
        self.let_in: asyncio.Future[None] | None = None
        self.gate = gate

    def __repr__(self) -> str:
        return f"<visit {self.number} {self.identity} {self.repository} {self.member or self.waits_for or 'new'}>"

    @property
    def kind(self) -> Hashable:
        return self.gate.kind(self)

    def take(self) -> bool:
        return self.gate.take(self)

    def give_back(self) -> None:
        self.gate.give_back(self)

    def wake(self, error: Exception | None = None) -> None:
        if self.let_in is not None and not self.let_in.done():
            if error is None:
                self.let_in.set_result(None)
            else:
                self.let_in.set_exception(error)

    def charge(self, now: float) -> None:
        """Subtracts the time since `since` from what is left of its patience."""
        if self.waits_for is not None:
            self.patience[_clock(self.waits_for)] -= now - self.since
        self.since = now


def _clock(waits_for: WaitsFor) -> str:
    return "away" if waits_for in ("paused", "away") else "busy"


class Gate:
    """All methods belong to one loop."""

    def __init__(
        self, name: str, addresses: Sequence[str], limits: MemberLimits, observer: Observer, seats: Seats, line: Line[Visit] | None = None
    ) -> None:
        self.name = name
        self.limits = limits
        self.paused = False
        self.drained: frozenset[str] = frozenset()
        self._addresses = tuple(addresses)
        self._observer = observer
        self._seats = seats
        self._line: Line[Visit] = line if line is not None else Line()
        self._waiting: dict[Visit, None] = {}
        self._trouble: dict[str, Unavailable] = {}  # addresses whose last dial failed in a way that passes
        self._trial: Visit | None = None  # the session that tries to dial while no address is up
        self._may_try = False  # whether the next in line may become it
        self._trial_timer: asyncio.TimerHandle | None = None
        self._trial_pause = FIRST_TRIAL_SECONDS
        self._trial_dial = TRIAL_DIAL_SECONDS
        self._press_timer: asyncio.TimerHandle | None = None
        self._came_back = False  # whether sessions are in line that waited for the upstream to be there
        self._places = 0  # how often one was taken
        self._closed = False

    @property
    def waiting(self) -> int:
        return sum(visit.member is None for visit in self._waiting)

    def in_line(self) -> Iterator[Visit]:
        return self._line.waiting_at(self.name)

    def close(self) -> None:
        """Fails the sessions in line."""
        self._closed = True
        for timer in (self._trial_timer, self._press_timer):
            if timer is not None:
                timer.cancel()
        for visit in self._waiting:
            visit.wake(self._closing())

    def _closing(self) -> Unavailable:
        return Unavailable(f"upstream {self.name}: closing", reason="closing")

    def set_switches(self, paused: bool, drained: frozenset[str]) -> None:
        """As Pool.set_switches; the caller shuts and opens the addresses."""
        if (paused, drained) != (self.paused, self.drained):
            self.paused, self.drained = paused, drained
            self._came_back = bool(self._waiting)
            self._reconsider()

    # -- for a session -------------------------------------------------------------------------------------------------

    async def connect(self, visit: Visit, command: str, environment: list[tuple[str, str]]) -> Connection:
        """The connection of a Lease. Raises as Own.lease."""
        started = time.monotonic()
        try:
            connection, warm = await self._connect(visit, command, environment)
        except BaseException:  # a cancellation too: somebody else may have its place
            self._end_visit(visit)
            raise
        self._end_trial(visit)
        self._observer.upstream_leased(self.name, time.monotonic() - started, warm)
        return connection

    def ended(self, visit: Visit, connection: Connection) -> None:
        """The session on `connection` has ended: its place is free, and the connection serves another one unless it is closed."""
        assert visit.member is not None
        visit.member.ended(connection)
        self._end_visit(visit)

    async def _connect(self, visit: Visit, command: str, environment: list[tuple[str, str]]) -> tuple[Connection, bool]:
        """The addresses are tried one after another, each for its share of connect_seconds; a full one is waited for.

        If all fail in a way that passes, the session stands in line again, first, until its wait_seconds are over.
        """
        loop = asyncio.get_running_loop()
        while True:
            await self._stand(visit, loop)
            member = visit.member
            assert member is not None and visit.until is not None
            now = loop.time()
            until = now + (visit.until - now) / max(len(self._open(visit)), 1)
            if visit is self._trial:
                until = min(until, now + self._trial_dial)
            failure: Unavailable | None = None
            try:
                served = await member.serve(command, environment, until, fresh=member.address == visit.lost_at)
            except Unavailable as error:
                failure = _copy(error)
            if failure is None:
                if self._came_back:  # one less dials
                    self.changed()
                return served
            visit.failed[member.address] = failure
            if visit is self._trial and failure.reason == "timeout":
                self._trial_dial = min(2 * self._trial_dial, self.limits.connect_seconds)
            if self._open(visit) and loop.time() < visit.until:
                _log.info("upstream %s: %s; the next address is asked", self.name, failure)
            else:
                self._all_failed(visit, loop.time())
            visit.again = True
            _wake(self._line.leave(visit))
            if visit.until is None and self._state(visit) is None:
                await asyncio.sleep(AGAIN_SECONDS)
                visit.patience["away"] -= AGAIN_SECONDS

    def _all_failed(self, visit: Visit, now: float) -> None:
        """Raises Unavailable unless another try may succeed and its time is not over."""
        errors = list(visit.failed.values())
        said, passing = "; ".join(map(str, errors)), any(error.passing for error in errors)
        visit.patience["away"] -= now - visit.began
        if not passing or visit.patience["away"] <= 0 or self._closed:
            raise Unavailable(said, reason=errors[-1].reason)
        visit.problem = Unavailable(said, reason=errors[-1].reason)
        visit.failed.clear()
        visit.until = None
        self._end_trial(visit)

    def _end_visit(self, visit: Visit) -> None:
        _wake(self._line.leave(visit))
        self._end_trial(visit)

    def _end_trial(self, visit: Visit) -> None:
        if visit is self._trial:
            self._trial = None
            self._reconsider()

    async def _stand(self, visit: Visit, loop: asyncio.AbstractEventLoop) -> None:
        """Returns when `visit` has a place. Raises HostBusy, or Unavailable: paused, or why no address is up."""
        if self._closed:
            raise self._closing()
        entered = self._line.enter(visit, again=visit.again)
        _wake(entered.served)
        if (refused := entered.refused) is not None:
            busy = refused.gate.busy(refused, entered.why, "the line is full")
            if refused is visit:
                raise busy
            refused.wake(busy)
        began = loop.time()
        if visit.member is None:
            await self._wait(visit)
        if visit.until is None:
            visit.began = loop.time()
            visit.until = visit.began + self.limits.connect_seconds
        else:
            visit.began += loop.time() - began
            visit.until += loop.time() - began

    async def _wait(self, visit: Visit) -> None:
        loop = asyncio.get_running_loop()
        began = visit.since = loop.time()
        visit.let_in = loop.create_future()
        visit.waits_for = None
        self._waiting[visit] = None
        notice = None
        if self.limits.notice_seconds and visit.tell is not None:
            notice = loop.call_later(self.limits.notice_seconds, self._notice, visit)
        waits_for = self._waits_for(visit)
        try:
            async with asyncio.timeout(None) as visit.limit:
                self._set_limit(visit, began)
                self._watch()
                await visit.let_in
        except TimeoutError:
            if visit.member is None:
                raise self._too_late(visit) from None
        finally:
            now = loop.time()
            visit.charge(now)
            visit.limit = visit.let_in = None
            del self._waiting[visit]
            if notice is not None:
                notice.cancel()
            self._observer.upstream_waited(self.name, waits_for, now - began)
            if visit.waited is not None:
                visit.waited(now - began)
            visit.waits_for = None
            if not self._waiting:
                self._came_back = False

    def _too_late(self, visit: Visit) -> Exception:
        waits_for = self._waits_for(visit)
        if waits_for == "paused":
            return Unavailable(f"upstream {self.name} is paused, or all its addresses are drained", reason="paused")
        if waits_for == "away":
            problem = visit.problem or next(iter(self._trouble.values()))
            seconds = self.limits.wait_seconds
            return Unavailable(f"{problem}; no address was up for {seconds:g} s", reason=problem.reason)
        return self.busy(visit, waits_for, f"its place in line was not reached in {self.limits.connect_seconds:g} s")

    def busy(self, visit: Visit, why: Why, what: str) -> HostBusy:
        """The error of a session that is refused for `why`."""
        if why == "upstream" and self._seats.is_own_limit(visit):
            why = "identity"
        return _BUSY[why](f"upstream {self.name}: {what}; {counted(self._line.waiting, 'session')} of this worker in line")

    def _notice(self, visit: Visit) -> None:
        assert visit.tell is not None
        if visit.let_in is None or visit.let_in.done():
            return  # it is in line no longer
        now = asyncio.get_running_loop().time()
        waits_for = self._waits_for(visit)
        left = visit.patience[_clock(waits_for)] - (now - visit.since)
        visit.tell(waits_for, self._line.ahead(visit), left)

    # -- who gets a place ----------------------------------------------------------------------------------------------

    def _open(self, visit: Visit) -> Sequence[str]:
        """The addresses that may serve `visit` now."""
        if not (self.drained or visit.without or visit.failed):
            return self._addresses
        closed = (self.drained, visit.without, visit.failed)
        return [address for address in self._addresses if not any(address in each for each in closed)]

    def _state(self, visit: Visit) -> WaitsFor | None:
        """Why nobody could serve `visit`, however few sessions there are."""
        addresses = self._open(visit)
        if self.paused or not addresses:
            return "paused"
        if self._trouble and visit.patient and all(address in self._trouble for address in addresses):
            return "away"
        return None

    def _waits_for(self, visit: Visit) -> WaitsFor:
        why = self._state(visit) or self._line.why(visit)
        return "identity" if why == "upstream" and self._seats.is_own_limit(visit) else why

    def kind(self, visit: Visit) -> Hashable:
        return self._seats.kind(visit), visit.without, frozenset(visit.failed), visit.patient, visit is self._trial

    def take(self, visit: Visit) -> bool:
        state, addresses = self._state(visit), self._open(visit)
        if state == "paused" or self._closed:
            return False
        tries = False
        if state == "away" and visit is not self._trial:
            member = self._seats.find_idle(visit, addresses)
            if member is None and self._may_try:
                member, tries = self._seats.find(visit, addresses, None), True
        else:
            member = self._seats.find(visit, addresses, DIALS_AT_ONCE if self._came_back else None)
        if member is None:
            return False
        if tries:
            self._trial, self._may_try = visit, False
        visit.member = member
        member.places += 1
        self._places += 1
        member.used = self._places
        self._seats.taken(visit)
        return True

    def give_back(self, visit: Visit) -> None:
        assert visit.member is not None
        visit.member.places -= 1
        self._seats.given_back(visit)
        visit.member = None

    # -- what changes --------------------------------------------------------------------------------------------------

    def dialed(self, address: str, error: Unavailable | None) -> None:
        """A login at `address` succeeded or failed, or a command was not accepted there in time."""
        before = address in self._trouble
        if error is None:
            self._trial_pause, self._trial_dial = FIRST_TRIAL_SECONDS, TRIAL_DIAL_SECONDS
        if error is not None and error.passing:
            self._trouble[address] = _copy(error)
        else:
            self._trouble.pop(address, None)
        if before is not (address in self._trouble):
            self._came_back = self._came_back or (before and bool(self._waiting))
            self._reconsider()
        else:
            self.changed()

    def changed(self) -> None:
        """A place may have become free."""
        if self._waiting and not self._closed:
            _wake(self._line.advance())

    def _reconsider(self) -> None:
        """What sessions wait for may be another thing now."""
        if self._closed:
            return
        self.changed()
        now = asyncio.get_running_loop().time() if self._waiting else 0.0
        for visit in self._waiting:
            if visit.member is None:
                visit.charge(now)
                self._set_limit(visit, now)
        self._watch()

    def _set_limit(self, visit: Visit, now: float) -> None:
        if visit.limit is None or visit.limit.expired():
            return
        visit.waits_for = self._waits_for(visit)
        visit.limit.reschedule(now + max(visit.patience[_clock(visit.waits_for)], 0.0))

    def _watch(self) -> None:
        """Sets the timers that are needed while sessions wait."""
        if not self._waiting or self._closed:
            return
        loop = asyncio.get_running_loop()
        if self._trial_timer is None and self._trial is None and any(visit.waits_for == "away" for visit in self._waiting):
            self._trial_timer = loop.call_later(self._trial_pause, self._try)
            self._trial_pause = min(2 * self._trial_pause, MOST_TRIAL_SECONDS)
        if self._press_timer is None and self.limits.ends_idle_sessions:
            self._press_timer = loop.call_later(PRESS_SECONDS, self._press)

    def _try(self) -> None:
        """Lets the next in line dial, if still no address is up."""
        self._trial_timer = None
        self._may_try = self._trial is None
        self.changed()
        self._may_try = False
        self._watch()

    def _press(self) -> None:
        """While sessions wait, ends those whose clients have been idle for too long."""
        self._press_timer = None
        wanted: Counter[tuple[Member, ...]] = Counter()
        most = len(self._addresses) * self.limits.connections_max
        for visit in islice(self.in_line(), most):
            if self._waits_for(visit) == "upstream":
                wanted[tuple(self._seats.candidates(visit, self._open(visit)))] += 1
        for members, count in wanted.items():
            for member in members:
                if count > 0:
                    count -= member.end_idle_sessions(count)
        self._watch()


def _copy(error: Unavailable) -> Unavailable:
    """Without the traceback and the context, whose frames hold the failed connection and its session."""
    return Unavailable(str(error), reason=error.reason, passing=error.passing)


def _wake(visits: Iterable[Visit]) -> None:
    for visit in visits:
        visit.wake()
