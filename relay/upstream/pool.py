"""Warm, authenticated connections to one git host, each leased to one session at a time and given back when it ended cleanly.

The slow part of an SSH login (fork, privilege separation, key exchange, first channel) is paid ahead: `idle` connections stand ready
with a channel open. A lease takes the one used last; one that turns out dead is replaced without the session noticing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from relay.errors import RelayError, Unavailable
from relay.events import Observer
from relay.tasks import Tasks
from relay.upstream.libssh2 import Connection, Login

RETRY_FIRST_SECONDS = 0.25  # after a failed dial that no session waits for; doubles
RETRY_MOST_SECONDS = 15.0

_log = logging.getLogger("relay.upstream")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one upstream in one worker; see config.Upstream."""

    connections_max: int
    idle_connections: int
    idle_seconds: float
    connect_seconds: float
    keepalive_seconds: float


class Pool:
    """The connections to one upstream; all methods belong to one loop."""

    def __init__(self, name: str, addresses: list[tuple[str, int]], login: Login, limits: Limits, observer: Observer) -> None:
        self.name = name
        self._addresses = addresses
        self._login = login
        self._limits = limits
        self._observer = observer
        self._idle: deque[tuple[float, Connection]] = deque()  # (since, connection), the one used last at the right
        self._leased: set[Connection] = set()
        self._recycling: set[Connection] = set()
        self._dialing = 0
        self._dials_ahead = 0  # whose task has not begun: they count already, or the next who counts would start them again
        self._waiters: deque[asyncio.Future[Connection]] = deque()
        self._tasks = Tasks()
        self._retry_seconds = RETRY_FIRST_SECONDS
        self._retry: asyncio.TimerHandle | None = None
        self._reap: asyncio.TimerHandle | None = None
        self._closed = False
        self.up: bool | None = None  # by the outcome of the last dial; None: not tried yet

    def __repr__(self) -> str:
        return f"<pool {self.name} {' '.join(f'{state}={count}' for state, count in self.states.items())}>"

    @property
    def states(self) -> dict[str, int]:
        return {"idle": len(self._idle), "leased": len(self._leased), "dialing": self._coming(), "waiting": len(self._waiters)}

    def start(self) -> None:
        """Dials the warm connections; the loop must be running."""
        self._keep_warm()

    async def close(self) -> None:
        """Closes idle connections and ends dials; leased ones close when their sessions give them back."""
        self._closed = True
        for timer in (self._retry, self._reap):
            if timer is not None:
                timer.cancel()
        while self._idle:
            self._idle.pop()[1].close()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(Unavailable(f"upstream {self.name}: closing", reason="exhausted"))
        await self._tasks.cancel()
        self._dials_ahead = 0
        while self._recycling:  # a task that is cancelled before it begins closes nothing
            self._recycling.pop().close()

    # -- for a session ---------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def lease(self, command: str, environment: list[tuple[str, str]]) -> AsyncIterator[Connection]:
        """A connection on which `command` has been accepted; given back when it ended by itself, closed otherwise.

        As long as no byte was spliced a connection that fails is replaced by another, the last one by a fresh dial.
        Raises Unavailable within connect_seconds: dial, timeout, host_key, handshake, auth, channel, exec, exhausted.
        """
        started = time.monotonic()
        connection, warm = await self._started(command, environment)
        self._observer.upstream_leased(self.name, time.monotonic() - started, warm)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        finally:
            self._leased.discard(connection)
            self._give_back(connection)

    async def _started(self, command: str, environment: list[tuple[str, str]]) -> tuple[Connection, bool]:
        deadline = self._deadline()
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    connection, warm = await self._take(deadline)
                    try:
                        await connection.run(command, environment)
                        return connection, warm
                    except BaseException as error:
                        connection.close()
                        self._leased.discard(connection)
                        self._room()
                        if not (warm and isinstance(error, Unavailable)):
                            raise
                        _log.info("upstream %s: a warm connection was dead and is replaced: %s", self.name, error)
        except TimeoutError:
            raise Unavailable(
                f"upstream {self.name}: no connection within {self._limits.connect_seconds:g} s ({self!r})",
                reason="timeout" if len(self._leased) < self._limits.connections_max else "exhausted",
            ) from None

    async def _take(self, deadline: float) -> tuple[Connection, bool]:
        """An idle connection, a fresh one, or, at the limit, the next that is given back. The caller owns it in `_leased`."""
        if self._idle:
            connection = self._idle.pop()[1]
            connection.on_lost(None)
            self._leased.add(connection)
            self._keep_warm()
            return connection, True
        if self._total() < self._limits.connections_max:
            try:
                connection = await self._dial(deadline)
            except BaseException:
                self._room()
                raise
            self._leased.add(connection)
            return connection, False
        waiter: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter, True
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # handed over in the moment of giving up
                self._leased.discard(waiter.result())
                self._offer(waiter.result())
            else:
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)
            raise

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._limits.connect_seconds

    # -- connections come and go -----------------------------------------------------------------------------------------

    def _total(self) -> int:
        return len(self._idle) + len(self._leased) + self._coming()

    def _coming(self) -> int:
        return self._dialing + self._dials_ahead + len(self._recycling)

    async def _dial(self, deadline: float) -> Connection:
        """Tries the addresses in order, until `deadline` of the loop's clock, when the caller cancels."""
        self._dialing += 1
        try:
            for position, (host, port) in enumerate(self._addresses):
                started = time.monotonic()
                try:
                    connection = await Connection.dial(host, port, self._login, self._limits.keepalive_seconds)
                except Unavailable as error:
                    self._observer.upstream_dialed(self.name, f"{host}:{port}", error.reason, time.monotonic() - started, str(error))
                    if position == len(self._addresses) - 1:
                        self.up = False
                        raise
                except asyncio.CancelledError:
                    # before that the session left, or the pool closes, which says nothing of the git host
                    if asyncio.get_running_loop().time() >= deadline:
                        self._observer.upstream_dialed(self.name, f"{host}:{port}", "timeout", time.monotonic() - started)
                        self.up = False
                    raise
                else:
                    self._observer.upstream_dialed(self.name, f"{host}:{port}", "ok", time.monotonic() - started)
                    self.up = True
                    self._retry_seconds = RETRY_FIRST_SECONDS
                    return connection
            raise AssertionError("an upstream has at least one address")
        finally:
            self._dialing -= 1

    def _give_back(self, connection: Connection) -> None:
        if connection.usable and not self._closed:
            self._recycling.add(connection)
            self._tasks.start(self._recycle(connection), f"recycle {self.name}")
        else:
            connection.close()
            self._room()

    async def _recycle(self, connection: Connection) -> None:
        """Closes the channel, opens the next one ahead; meanwhile it counts as dialing."""
        try:
            async with asyncio.timeout(self._limits.connect_seconds):
                await connection.prepare()
        except (Unavailable, TimeoutError) as error:
            _log.info("upstream %s: a connection could not be used again: %s", self.name, error)
            connection.close()
        except BaseException:
            connection.close()
            raise
        finally:
            self._recycling.discard(connection)
        if connection.usable:
            self._offer(connection)
        else:
            self._room()

    def _offer(self, connection: Connection) -> None:
        """A ready connection goes to who waits longest, else to the idle ones."""
        if self._closed:
            connection.close()
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._leased.add(connection)
                waiter.set_result(connection)
                return
        self._idle.append((time.monotonic(), connection))
        connection.on_lost(self._lost)
        if len(self._idle) > self._limits.idle_connections:
            self._reap_later()

    def _lost(self, connection: Connection) -> None:
        """The far side closed an idle connection."""
        self._idle = deque(entry for entry in self._idle if entry[1] is not connection)
        _log.info("upstream %s: %s closed an idle connection", self.name, connection.address)
        self._keep_warm()

    def _room(self) -> None:
        """A connection went: who waits at the limit may have a fresh one, and the warm ones are filled up."""
        if self._waiters and not self._closed and self._total() < self._limits.connections_max:
            self._dial_soon()
        self._keep_warm()

    def _keep_warm(self) -> None:
        if self._closed or self._retry is not None:
            return
        missing = self._limits.idle_connections - len(self._idle) - self._coming()
        room = self._limits.connections_max - self._total()
        for _ in range(min(missing, room)):
            self._dial_soon()

    def _dial_soon(self) -> None:
        self._dials_ahead += 1
        self._tasks.start(self._dial_ahead(), f"dial {self.name}")

    async def _dial_ahead(self) -> None:
        self._dials_ahead -= 1
        deadline = self._deadline()
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._dial(deadline)
        except (RelayError, TimeoutError) as error:
            self._dial_failed(error)
        else:
            self._offer(connection)

    def _dial_failed(self, error: Exception) -> None:
        said = str(error) or f"no connection within {self._limits.connect_seconds:g} s"
        _log.warning("upstream %s: %s; next try in %.2f s", self.name, said, self._retry_seconds)
        if self._retry is None and not self._closed:
            self._retry = asyncio.get_running_loop().call_later(self._retry_seconds, self._retry_now)
            self._retry_seconds = min(self._retry_seconds * 2, RETRY_MOST_SECONDS)

    def _retry_now(self) -> None:
        self._retry = None
        self._room()

    def _reap_later(self) -> None:
        if self._reap is None and not self._closed:
            self._reap = asyncio.get_running_loop().call_later(self._limits.idle_seconds, self._reap_now)

    def _reap_now(self) -> None:
        """Closes connections beyond the warm ones that have been idle for idle_seconds; the one idle longest goes first."""
        self._reap = None
        old = time.monotonic() - self._limits.idle_seconds
        while len(self._idle) > self._limits.idle_connections and self._idle[0][0] <= old:
            self._idle.popleft()[1].close()
        if len(self._idle) > self._limits.idle_connections:
            self._reap_later()
