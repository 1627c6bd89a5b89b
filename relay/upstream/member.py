"""One address of an upstream: its warm, authenticated connections, each leased to one session at a time.

A connection is given back when its session ended cleanly. The slow part of an SSH login (fork, privilege separation, key exchange,
first channel) is paid ahead: `idle` connections stand ready with a channel open. A lease takes the one used last; one that turns out
dead is replaced without the session noticing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from relay.address import format_address
from relay.config import Policy
from relay.errors import Unavailable
from relay.events import Observer
from relay.tasks import Tasks
from relay.upstream.colleagues import Colleagues, HostNews
from relay.upstream.health import Health, check_for_ever
from relay.upstream.idle_life import IdleLives
from relay.upstream.libssh2 import Connection, Login, probe
from relay.upstream.refusals import Refusals

TURN_AFTER = 1.5  # times refused_seconds: then a worker tries a refused login though the one that probes has told nothing
PRESS_SECONDS = 0.25  # how often idle sessions are looked for while others stand in line

_log = logging.getLogger("relay.upstream")


@dataclass(frozen=True, slots=True)
class MemberLimits:
    """Of one upstream in one worker; see config.Upstream."""

    connections_max: int  # to each address
    idle_connections: int  # to each address
    idle_seconds: float
    connect_seconds: float
    keepalive_seconds: float
    policy: Policy = "first"
    health_seconds: float = 0
    health_fall: int = 3
    health_rise: int = 2
    presses: bool = True  # whether idle sessions give way to those that stand in line; not where all are one person's
    quiet: bool = False  # an identity's own: whether its addresses are up is told by another pool of theirs


class Member:
    """The connections to one address; all methods belong to one loop. `alone`: its upstream has no other."""

    def __init__(
        self,
        upstream: str,
        host: str,
        port: int,
        login: Login,
        limits: MemberLimits,
        observer: Observer,
        *,
        alone: bool = True,
        colleagues: Colleagues | None = None,
        identity: str = "",
        refusals: Refusals | None = None,
        idle_lives: IdleLives | None = None,
    ) -> None:
        self.address = format_address(host, port)
        self.neighbours: Callable[[], Iterable[Member]] = lambda: ()  # other members to the same address, which know of it too
        self._colleagues = colleagues if colleagues is not None else Colleagues()
        self._identity = identity
        self._refusals = refusals
        self._refused = False  # by the last login, here or in another worker
        self._turn = asyncio.Lock()
        self.used = 0  # see policy.Candidate
        self.health = Health(upstream, self.address, limits.health_fall, limits.health_rise, observer, quiet=limits.quiet)
        self._upstream = upstream
        self._host, self._port = host, port
        self._login = login
        self._limits = limits
        self._observer = observer
        self._alone = alone
        self._idle: deque[tuple[float, Connection]] = deque()  # (since, connection), the one used last at the right
        self._idle_life = (idle_lives if idle_lives is not None else IdleLives()).of(self.address)
        self._leased: set[Connection] = set()
        self._recycling: set[Connection] = set()
        self._dialing = 0
        self._dials_ahead = 0  # whose task has not begun: they count already, or the next who counts would start them again
        self._waiters: deque[asyncio.Future[Connection]] = deque()
        self._tasks = Tasks()
        self._retry: asyncio.TimerHandle | None = None
        self._reap: asyncio.TimerHandle | None = None
        self._pressing: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<{self.address} {' '.join(f'{state}={count}' for state, count in self.states.items())}>"

    @property
    def states(self) -> dict[str, int]:
        return {"idle": len(self._idle), "leased": len(self._leased), "dialing": self._coming(), "waiting": len(self._waiters)}

    @property
    def up(self) -> bool | None:
        return self.health.up

    @property
    def full(self) -> bool:
        return len(self._leased) >= self._limits.connections_max

    @property
    def sessions(self) -> int:
        return len(self._leased) + len(self._waiters) + self._dialing

    def start(self) -> None:
        """Dials the warm connections and begins to check; the loop must be running."""
        self._keep_warm()
        if self._limits.health_seconds or (self._refusals is not None and not self._identity):
            self._colleagues.listen(self._upstream, self.address, self._told)
        if self._limits.health_seconds:
            self._tasks.start(
                check_for_ever(self.health, self._check, self._limits.health_seconds, self._limits.connect_seconds, self._after_check),
                f"check {self._upstream} {self.address}",
            )

    async def close(self) -> None:
        """Closes idle connections and ends dials; leased ones close when their sessions give them back."""
        self._closed = True
        for timer in (self._retry, self._reap, self._pressing):
            if timer is not None:
                timer.cancel()
        while self._idle:
            self._idle.pop()[1].close()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(Unavailable(f"upstream {self._upstream}: closing", reason="exhausted"))
        await self._tasks.cancel()
        self._dials_ahead = 0
        while self._recycling:  # a task that is cancelled before it begins closes nothing
            self._recycling.pop().close()

    # -- for a session ---------------------------------------------------------------------------------------------------

    async def serve(self, command: str, environment: list[tuple[str, str]], until: float, deadline: float) -> tuple[Connection, bool]:
        """A connection on which `command` has been accepted, and whether it stood ready; the caller gives it back by `ended`.

        As long as no byte was spliced a connection that fails is replaced by another, the last one by a fresh dial. `until`, on the
        loop's clock, is when the address has had its time; who stands in line because all connections are in use waits to `deadline`.
        Raises Unavailable: dial, timeout, host_key, handshake, auth, channel, exec, exhausted.
        """
        asked = False  # a connection was there, and the command is on its way
        try:
            async with asyncio.timeout_at(until) as limit:
                while True:
                    asked = False
                    connection, warm = await self._take(limit, deadline)
                    asked = True
                    try:
                        await connection.run(command, environment)
                        return connection, warm
                    except BaseException as error:
                        connection.close()
                        self._leased.discard(connection)
                        self._room()
                        if not (warm and isinstance(error, Unavailable)):
                            raise
                        _log.info("upstream %s: a warm connection was dead and is replaced: %s", self._upstream, error)
        except TimeoutError:
            reason = "timeout" if len(self._leased) < self._limits.connections_max else "exhausted"
            late = Unavailable(f"upstream {self._upstream}: no connection in time ({self!r})", reason=reason)
            if asked:
                self._failed(late, f"{self.address}: a command was not accepted in time")
            raise late from None

    def ended(self, connection: Connection) -> None:
        """A session is through with it."""
        self._leased.discard(connection)
        if connection.usable and not self._closed:
            self._recycling.add(connection)
            self._tasks.start(self._recycle(connection), f"recycle {self._upstream}")
        else:
            connection.close()
            self._room()

    async def _take(self, limit: asyncio.Timeout, deadline: float) -> tuple[Connection, bool]:
        """An idle connection, a fresh one, or, at the limit, the next that is given back. The caller owns it in `_leased`."""
        if self._idle:
            connection = self._idle.pop()[1]
            connection.on_lost(None)
            self._leased.add(connection)
            self._keep_warm()
            return connection, True
        if self._total() < self._limits.connections_max:
            try:
                connection = await self._dial(limit.when() or deadline)
            except BaseException:  # a cancellation too: who stands in line may have the place
                self._room()
                raise
            self._leased.add(connection)
            return connection, False
        limit.reschedule(deadline)
        waiter: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._press()
        try:
            return await waiter, True
        except BaseException:  # a cancellation, or the end of the pool: a connection that was handed over goes on
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # handed over in the moment of giving up
                self._leased.discard(waiter.result())
                self._offer(waiter.result())
            else:
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)
            raise

    def _press(self) -> None:
        """While sessions stand in line those give way whose clients have owed the next word for too long, the longest first."""
        if self._limits.presses and self._pressing is None and self._waiters and not self._closed:
            self._pressing = asyncio.get_running_loop().call_later(PRESS_SECONDS, self._press_now)

    def _press_now(self) -> None:
        self._pressing = None
        wanted = sum(not waiter.done() for waiter in self._waiters) - self._coming()
        if wanted > 0:
            idle = [(owed, connection) for connection in self._leased if (owed := connection.owed) is not None]
            idle.sort(key=lambda one: one[0], reverse=True)
            for _, connection in idle[:wanted]:
                if not connection.give_way():
                    break
        self._press()

    # -- connections come and go -----------------------------------------------------------------------------------------

    def _total(self) -> int:
        return len(self._idle) + len(self._leased) + self._coming()

    def _coming(self) -> int:
        return self._dialing + self._dials_ahead + len(self._recycling)

    async def _dial(self, deadline: float) -> Connection:
        """Dials until `deadline` of the loop's clock, when the caller cancels."""
        self._dialing += 1
        started = time.monotonic()
        try:
            connection = await self._log_in()
        except Unavailable as error:
            self._dialed(error.reason, started, str(error))
            self._failed(error)
            raise
        except asyncio.CancelledError:
            # before that the session left, or the pool closes, which says nothing of the git host
            if asyncio.get_running_loop().time() >= deadline:
                self._dialed("timeout", started)
                self._failed(Unavailable(f"{self.address}: no login in time", reason="timeout"))
            raise
        except Exception as error:  # a fault of ours, after which the breaker must not wait for this trial for ever
            self._failed(Unavailable(f"{self.address}: {type(error).__name__}: {error}"))
            raise
        finally:
            self._dialing -= 1
        self._dialed("ok", started)
        self.health.dialed(None)
        return connection

    async def _log_in(self) -> Connection:
        refusals = self._refusals
        if refusals is None:
            return await Connection.dial(self._host, self._port, self._login, self._limits.keepalive_seconds)
        async with self._turn:  # who waits here learns of a refusal before making another
            refusals.check(self._identity, self.address)
            # each identity's logins are made one at a time, and the upstream's own until one was accepted
            if self._identity or self._refused or not self.health.breaker.proven:
                return await self._log_in_now(refusals)
        return await self._log_in_now(refusals)

    async def _log_in_now(self, refusals: Refusals) -> Connection:
        try:
            connection = await Connection.dial(self._host, self._port, self._login, self._limits.keepalive_seconds)
        except Unavailable as error:
            if error.reason == "auth":
                self._remember(str(error), refusals.seconds)
                self._colleagues.tell(HostNews(self._upstream, self.address, str(error), error.reason, self._identity, refusals.seconds))
            raise
        if self._refused and not self._identity:
            refusals.forget(self._identity, self.address)
            self._colleagues.tell(HostNews(self._upstream, self.address, reason="auth"))
        self._refused = False
        return connection

    def _remember(self, detail: str, seconds: float) -> None:
        """One worker tries a refused login again; the others wait for its news a while longer."""
        assert self._refusals is not None
        self._refused = True
        if not self._identity and not self._colleagues.probing:
            seconds *= TURN_AFTER
        self._refusals.add(self._identity, self.address, detail, seconds)

    def _dialed(self, result: str, started: float, detail: str = "") -> None:
        self._observer.upstream_dialed(self._upstream, self.address, result, time.monotonic() - started, detail)

    async def _recycle(self, connection: Connection) -> None:
        """Closes the channel, opens the next one ahead; meanwhile it counts as dialing."""
        try:
            async with asyncio.timeout(self._limits.connect_seconds):
                await connection.prepare()
        except (Unavailable, TimeoutError) as error:
            _log.info("upstream %s: a connection could not be used again: %s", self._upstream, error)
            connection.close()
        except BaseException:  # a cancellation, or a fault of ours, which the task's end tells
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
        self._close_surplus()
        self._reap_later()

    def _lost(self, connection: Connection) -> None:
        """The far side closed an idle connection."""
        now = time.monotonic()
        for since, one in self._idle:
            if one is connection:
                self._tell_idle(self._idle_life.closed(now - since))
        self._idle = deque(entry for entry in self._idle if entry[1] is not connection)
        self._keep_warm()
        self._reap_later()

    def _tell_idle(self, said: str) -> None:
        if said:
            _log.info("upstream %s: %s: %s", self._upstream, self.address, said)

    def _room(self) -> None:
        """A connection went: who waits at the limit may have a fresh one, and the warm ones are filled up."""
        if self._waiters and not self._closed and self._total() < self._limits.connections_max:
            self._dial_soon()
        self._keep_warm()

    def _keep_warm(self) -> None:
        if self._closed or self._retry is not None or self.health.breaker.state != "closed":
            return
        old = self._old()
        missing = self._limits.idle_connections - (len(self._idle) - old) - self._coming()
        room = self._limits.connections_max - self._total()
        if missing > 0 and room <= 0 and old and not self._coming():  # otherwise an old one serves until its replacement is there
            self._close_oldest()
            room += 1
        for _ in range(min(missing, room)):
            self._dial_soon()

    def _dial_soon(self) -> None:
        self._dials_ahead += 1
        self._tasks.start(self._dial_ahead(), f"dial {self._upstream}")

    async def _dial_ahead(self) -> None:
        self._dials_ahead -= 1
        deadline = asyncio.get_running_loop().time() + self._limits.connect_seconds
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._dial(deadline)
        except (Unavailable, TimeoutError) as error:  # told by `_failed`, which sees to the next try
            self._send_on(error)
            return
        self._offer(connection)
        self._keep_warm()

    def _send_on(self, error: Exception) -> None:
        """A dial failed: who stands in line would wait in vain, unless a connection that is in use may come back to an only address."""
        if self._alone and (self._leased or self._recycling):
            return
        said = str(error) or f"{self.address}: no login in time"
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(Unavailable(said, reason=error.reason if isinstance(error, Unavailable) else "timeout"))

    # -- when it does not answer -----------------------------------------------------------------------------------------

    def _failed(self, error: Unavailable, because: str = "") -> None:
        """A dial failed, for a session or ahead of one: another follows after a pause, if connections are to be kept or others wait for it.

        To a lone address without warm connections the next session's dial is the trial.
        """
        was_down = self.health.up is False
        self.health.dialed(error, because)
        if self._retry is not None or self._closed or (self._alone and not self._limits.idle_connections):
            return
        pause = self.health.breaker.pause()
        if self._refusals is not None and error.reason == "auth":
            if self._identity:
                return  # the next session's dial is the trial, once it may be made
            pause = max(pause, self._refusals.left(self._identity, self.address))
        level = logging.DEBUG if was_down else logging.INFO
        _log.log(level, "upstream %s: %s; next try in %.2f s", self._upstream, because or error, pause)
        self._retry_in(pause)

    def _retry_in(self, seconds: float) -> None:
        self._retry = asyncio.get_running_loop().call_later(seconds, self._retry_now)

    def _retry_now(self) -> None:
        self._retry = None
        if self.health.breaker.state == "closed":
            self._room()
        else:
            self._trial()

    def _trial(self) -> None:
        """One dial that decides whether the breaker closes; its connection serves."""
        if self._total() >= self._limits.connections_max:
            self._retry_in(self.health.breaker.pause())  # it is still in use: no trial can be made, and none is needed yet
        else:
            self.health.breaker.try_again()
            self._dial_soon()

    async def _check(self, recent: float) -> bool:
        """From what the connections to the address know anyway; a key exchange only when there is none, and by one worker of all."""
        everyone = (self, *self.neighbours())
        now = asyncio.get_running_loop().time()
        if any(time.monotonic() - one.health.logged_in < recent for one in everyone):
            return True
        for one in everyone:
            for _, connection in list(one._idle):
                try:
                    await connection.alive()
                except Unavailable:  # the git host closed it, which says nothing of the next
                    one._drop(connection)
                except BaseException:  # a cancellation, which is the time limit
                    one._drop(connection)
                    raise
                else:
                    return True
        recent = max(recent, self._limits.keepalive_seconds)  # so often a running command's host is asked
        if any(now - connection.heard < recent for one in everyone for connection in one._leased):
            return True
        if not self._colleagues.probing or any(one._coming() for one in everyone):
            return False  # another worker, or a dial that is under way, will tell
        await probe(self._host, self._port, self._login.host_keys, self._login.algorithms)
        return True

    def _drop(self, connection: Connection) -> None:
        """An idle connection that does not answer."""
        if any(entry[1] is connection for entry in self._idle):
            self._idle = deque(entry for entry in self._idle if entry[1] is not connection)
            connection.close()
            self._room()

    def _told(self, news: HostNews) -> None:
        """What another worker knows of the address."""
        if news.identity:
            return
        if news.reason == "auth":
            self._told_of_login(news)
            return
        self.health.heard = time.monotonic()
        self.health.checked(Unavailable(news.problem, reason=news.reason) if news.problem else None)
        self._try_again()

    def _told_of_login(self, news: HostNews) -> None:
        """Another worker's login with the upstream's own key was refused, or is accepted again."""
        if self._refusals is None:
            return
        if news.problem:
            self._remember(news.problem, news.seconds)
            return
        self._refused = False
        self._refusals.forget(self._identity, self.address)
        if self.health.breaker.state == "open" and self._retry is not None and not self._closed:
            self._retry.cancel()
            self._retry_now()

    def _after_check(self, error: Unavailable | None) -> None:
        self._colleagues.tell(HostNews(self._upstream, self.address, str(error) if error else "", error.reason if error else ""))
        self._try_again()

    def _try_again(self) -> None:
        """A host that answers again though its breaker is open, with no trial under way, is given one."""
        if self.health.checks_pass and self.health.breaker.state == "open" and self._retry is None:
            self._trial()

    # -- fewer again -----------------------------------------------------------------------------------------------------

    def _old(self) -> int:
        """How many idle connections the git host may soon close."""
        after = self._idle_life.replace_after()
        if after is None:
            return 0
        latest = time.monotonic() - after
        return sum(since <= latest for since, _ in self._idle)

    def _close_oldest(self) -> None:
        self._idle.popleft()[1].close()
        self._tell_idle(self._idle_life.replaced())

    def _close_surplus(self) -> None:
        """Closes old connections that are not needed as warm ones: their replacements are there."""
        for _ in range(min(self._old(), len(self._idle) - self._limits.idle_connections)):
            self._close_oldest()

    def _reap_later(self) -> None:
        """Sets the timer for the connection that is the next to be closed or replaced."""
        if self._closed:
            return
        now = time.monotonic()
        waits = []
        if len(self._idle) > self._limits.idle_connections:
            waits.append(self._idle[0][0] + self._limits.idle_seconds - now)
        after, old = self._idle_life.replace_after(), self._old()
        if after is not None and old < len(self._idle):  # the old ones wait for their replacements
            waits.append(self._idle[old][0] + after - now)
        if waits:
            loop, seconds = asyncio.get_running_loop(), max(min(waits), 0.0)
            if self._reap is not None and self._reap.when() > loop.time() + seconds:
                self._reap.cancel()
                self._reap = None
            if self._reap is None:
                self._reap = loop.call_later(seconds, self._reap_now)

    def _reap_now(self) -> None:
        """Closes connections beyond the warm ones after idle_seconds, the one idle longest first, and has old ones replaced."""
        self._reap = None
        latest = time.monotonic() - self._limits.idle_seconds
        while len(self._idle) > self._limits.idle_connections and self._idle[0][0] <= latest:
            self._idle.popleft()[1].close()
        self._close_surplus()
        self._keep_warm()
        self._reap_later()
