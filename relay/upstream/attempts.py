"""Which git host serves a session's command. As long as nothing was carried, a failure moves the session to another one.

There are two cases, each with a lease of its own (what a lease retries within itself is in relay.upstream.pool):

1. A replica cannot serve: the primary is tried (`Route.upstreams` has the order).
2. The connection to an address is lost after the command was accepted: another address of the same upstream is tried.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from relay.errors import HostBusy, Lost, Unavailable, UpstreamError
from relay.events import Observer, SessionRecord
from relay.model import Command, Exit, Route
from relay.upstream.gate import Tell
from relay.upstream.identities import IdentityPools
from relay.upstream.libssh2 import Connection
from relay.upstream.pool import Pool

_log = logging.getLogger("relay.session")  # these lines tell of a session


@dataclass(frozen=True, slots=True)
class Attempts:
    """The attempts to serve one session.

    `environment` returns the variables for an upstream. `carry` carries the session over a connection on which its command was
    accepted, and returns how the command ended. `may_move` tells, after a failure, whether another git host may serve the session:
    false once something was carried, or when the client is gone. `tell` tells the client why its session waits.
    """

    record: SessionRecord
    pools: Mapping[str, Pool | IdentityPools]
    observer: Observer
    environment: Callable[[str], list[tuple[str, str]]]
    carry: Callable[[Connection], Awaitable[Exit]]
    may_move: Callable[[], bool]
    tell: Tell | None = None

    async def serve(self, command: Command, route: Route) -> Exit:
        """Raises as `carry`, and Unavailable when no git host accepted the command; the error is the last attempt's."""
        *replicas, last = route.upstreams(command.needs)
        for name in replicas:
            try:
                return await self._serve_by(name, command, route, patient=False)
            except (UpstreamError, HostBusy) as error:
                if not self.may_move() or error.reason in ("identity", "repository"):  # these hold for all upstreams
                    raise
                _log.warning("session %s: upstream %s cannot serve it, %s is asked: %s", self.record.id, name, last, error)
        return await self._serve_by(last, command, route)

    async def _serve_by(self, name: str, command: Command, route: Route, *, patient: bool = True) -> Exit:
        """One upstream: each of its addresses once, as long as each is lost before anything was carried. `patient` as in Own.lease."""
        record = self.record
        record.upstream, record.address = name, ""
        pools = self.pools.get(name)
        if pools is None:
            raise Unavailable(f"the route names upstream {name!r}, which is not configured", reason="no_upstream")
        pool = pools.of(record.identity.name, self.tell, self._waited)
        line, environment = command.line(route.path), self.environment(name)
        lost: list[str] = []  # addresses
        while True:
            started = time.monotonic()
            async with pool.lease(line, environment, command.repository, lost, again=bool(lost), patient=patient) as upstream:
                self.observer.step_took("upstream", time.monotonic() - started)
                record.address = upstream.address
                try:
                    return await self.carry(upstream)
                except Lost as error:
                    if not self.may_move():
                        raise
                    lost.append(upstream.address)
                    if len(lost) == len(pool.members):
                        raise
                    _log.info("session %s: upstream %s: %s; nothing was carried yet, the next address is asked", record.id, name, error)

    def _waited(self, seconds: float) -> None:
        self.record.waited += seconds
