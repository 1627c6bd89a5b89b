"""Which git host serves a session's command, and which one goes on with it when the connection to that one is lost.

There are three cases, each with a lease of its own (what a lease retries within itself is in relay.upstream.gate):

1. A replica cannot serve: the primary is tried (`Route.upstreams` has the order).
2. The connection to an address is lost after the command was accepted and before anything was carried: each other address of the same
   upstream is tried, at once.
3. The connection is lost later, or at each address in turn: the session is replayed on another connection, if it still can be
   (relay.replay). It may be one to the same address, and may take `wait_seconds` to come (relay.upstream.gate); there is one replay a
   request, and `replay_budget` a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from relay.errors import HostBusy, Lost, NoExit, RelayError, Unavailable, UpstreamError
from relay.events import Observer, ReplayResult, SessionRecord
from relay.model import Command, Exit, Route
from relay.replay import Stage
from relay.upstream.gate import Tell
from relay.upstream.identities import IdentityPools
from relay.upstream.libssh2 import Connection
from relay.upstream.pool import Lease, Own, Pool

_SAID: dict[ReplayResult, str] = {
    "served": "goes on, the client has noticed nothing",
    "differed": "does not say what the lost one said",
    "lost": "was lost too, before it had said what the client has already",
    "unavailable": "is not replaced, no connection came in time",
    "ended": "did not go on, the session ended before that",
}

_log = logging.getLogger("relay.session")  # these lines tell of a session


@dataclass(slots=True)
class _Serving:
    """The upstream that serves a session, and what it is asked."""

    pool: Own
    line: str
    environment: list[tuple[str, str]]
    repository: str
    spare: bool  # whether another upstream serves if this one cannot; then there is no waiting for it
    lost: list[str] = field(default_factory=list)  # addresses that were lost while nothing was carried


@dataclass(slots=True)
class _Replay:
    """One move of a session to another connection, from the loss of the one before."""

    error: RelayError
    carried: bool  # whether the client has something of the session already
    lost_at: str  # the address
    without: list[str] = field(default_factory=list)  # addresses that are not asked first
    turn_seconds: float = 0.0  # until its turn by replay_budget
    exhausted: bool = False  # all addresses of the upstream were lost, and another upstream is asked
    counted: bool = False  # in the session's record
    began: float = field(default_factory=time.monotonic)


class Attempts:
    """The attempts to serve one session, and its relay.replay.Moves.

    `environment` returns the variables for an upstream. `carry` carries the session over a connection on which its command was
    accepted, and returns how the command ended. `may_move` tells, after a failure, whether another git host may serve the session:
    as long as none has, and after `permit` said yes, unless the client is gone. `tell` tells the client why its session waits.
    """

    def __init__(
        self,
        record: SessionRecord,
        pools: Mapping[str, Pool | IdentityPools],
        observer: Observer,
        environment: Callable[[str], list[tuple[str, str]]],
        carry: Callable[[Connection], Awaitable[Exit]],
        may_move: Callable[[], bool],
        tell: Tell | None = None,
    ) -> None:
        self._record = record
        self._pools = pools
        self._observer = observer
        self._environment = environment
        self._carry = carry
        self._may_move = may_move
        self._tell_waiting = tell
        self._serving: _Serving | None = None
        self._had_one = False  # whether the session had a connection before, and has given it back
        self._replayed: set[Stage | None] = set()  # where the session was replayed
        self._replay: _Replay | None = None  # whose result is not known yet

    async def serve(self, command: Command, route: Route) -> Exit:
        """Raises as `carry`, and Unavailable when no git host accepted the command; the error is the last attempt's.

        May be called again for a session that went on without a connection (relay.packs): it is the next in line then.
        """
        try:
            *replicas, last = route.upstreams(command.needs)
            for name in replicas:
                try:
                    return await self._serve_by(name, command, route, spare=True)
                except (UpstreamError, HostBusy) as error:
                    if not self._may_move() or error.reason in ("identity", "repository"):  # these hold for all upstreams
                        raise
                    error.with_traceback(None)
                    _log.warning("session %s: upstream %s cannot serve it, %s is asked: %s", self._record.id, name, last, error)
            return await self._serve_by(last, command, route, spare=False)
        finally:
            self._tell("ended")
            self._serving = None  # its pool leads back here, and so to the session and its connection

    async def _serve_by(self, name: str, command: Command, route: Route, *, spare: bool) -> Exit:
        """One upstream; `spare` as in _Serving."""
        record = self._record
        record.upstream, record.address = name, ""
        pools = self._pools.get(name)
        if pools is None:
            raise Unavailable(f"the route names upstream {name!r}, which is not configured", reason="no_upstream")
        pool = pools.of(record.identity.name, self._tell_waiting, self._waited)
        serving = _Serving(pool, command.line(route.path), self._environment(name), command.repository, spare)
        self._serving = serving
        if self._replay is not None:  # begun on another upstream
            self._replay.without, self._replay.exhausted = [], False
        while True:
            if self._replay is None:
                lease = await self._lease(serving, [], again=self._had_one)
            else:
                lease = await self._lease_again(serving, self._replay)
            record.address = lease.connection.address
            try:
                how = await self._carry(lease.connection)
            except (Lost, NoExit) as error:
                goes_on = self._replay is not None and not self._replay.exhausted and self._may_move()
                lease.end(failed=not goes_on)
                if not goes_on:
                    raise
                error.with_traceback(None)  # its frames refer to the Splice, which has the error: a cycle that keeps the connection
            except BaseException:  # a cancellation too: the command may still run, so its connection is closed
                lease.end(failed=True)
                raise
            else:
                self._had_one = True
                lease.end()
                return how

    async def _lease(
        self,
        serving: _Serving,
        without: list[str],
        *,
        again: bool = False,
        patient: bool | None = None,
        spent_seconds: float = 0.0,
        lost_at: str = "",
    ) -> Lease:
        """A lease that has begun; the arguments are those of Own.lease."""
        started = time.monotonic()
        patient = not serving.spare if patient is None else patient
        line, environment, repository = serving.line, serving.environment, serving.repository
        lease = serving.pool.lease(
            line, environment, repository, without, again=again, patient=patient, spent_seconds=spent_seconds, lost_at=lost_at
        )
        await lease.begin()
        self._observer.step_took("upstream", time.monotonic() - started)
        return lease

    async def _lease_again(self, serving: _Serving, replay: _Replay) -> Lease:
        """A connection for a session that was lost: the addresses that are left at once, then any that comes within wait_seconds."""
        if not replay.counted:
            replay.counted = True
            self._record.replays += 1
        await asyncio.sleep(replay.turn_seconds)
        if replay.without:
            try:
                return await self._lease(serving, replay.without, again=True, patient=False)
            except (Unavailable, HostBusy) as error:  # the lost address may be back
                _log.info("session %s: %s; any address is asked", self._record.id, error.with_traceback(None))
        try:
            return await self._lease(serving, [], again=True, spent_seconds=replay.turn_seconds, lost_at=replay.lost_at)
        except (Unavailable, HostBusy) as error:
            if not serving.spare:
                self._tell("unavailable")
            if not replay.carried:
                raise
            raise Lost(f"{replay.error}; no connection to go on with: {error.with_traceback(None)}") from None

    def _waited(self, seconds: float) -> None:
        self._record.waited += seconds

    # -- for relay.replay ------------------------------------------------------------------------------------------------------

    def permit(self, stage: Stage | None, error: RelayError) -> bool:
        """As relay.replay.Moves.permit: the git host that serves is lost, `stage` is None if nothing was carried."""
        serving, record = self._serving, self._record
        assert serving is not None
        again = self._replay is None
        self._tell("lost")
        replay = _Replay(error, stage is not None, record.address)
        if stage is None:
            serving.lost.append(record.address)
            left = len(serving.lost) < len(serving.pool.members)
            if left or serving.spare:
                replay.without, replay.exhausted = [*serving.lost], not left
                self._replay = replay
                return True
        elif len(serving.pool.members) > 1:
            replay.without = [record.address]
        if stage in self._replayed:
            if again:  # the replay before was told as served
                self._count("lost")
                _log.info("session %s: upstream %s: %s; a request is replayed once", record.id, record.upstream, error)
            return False
        turn = serving.pool.replays.reserve(0.0 if serving.spare else serving.pool.wait_seconds)
        if turn is None:
            self._count("budget")
            budget = serving.pool.replays.per_second
            _log.warning(
                "session %s: upstream %s: %s; not replayed, replay_budget = %d is used up", record.id, record.upstream, error, budget
            )
            return False
        replay.turn_seconds = turn
        self._replayed.add(stage)
        self._replay = replay
        return True

    def caught_up(self) -> None:
        self._tell("served")

    def differed(self) -> None:
        self._tell("differed")

    def completed(self, error: RelayError) -> None:
        record = self._record
        _log.info("session %s: upstream %s: %s; the client had the whole answer and wanted no more", record.id, record.upstream, error)

    def _count(self, result: ReplayResult) -> None:
        self._observer.session_replayed(self._record, result)

    def _tell(self, result: ReplayResult) -> None:
        """The result of the replay that is under way, if one is."""
        replay, self._replay = self._replay, None
        if replay is None:
            return
        self._count(result)
        record, seconds = self._record, time.monotonic() - replay.began
        host, what = record.address or "it", _SAID[result]
        _log.info(
            "session %s: upstream %s: the git host was lost (%s), %.2f s later %s %s",
            record.id,
            record.upstream,
            replay.error,
            seconds,
            host,
            what,
        )
