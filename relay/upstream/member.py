"""One address of an upstream: its warm, authenticated connections, each leased to one session at a time.

The slow part of an SSH login (fork, privilege separation, key exchange, first channel) is done ahead: idle connections have a channel
open. A lease takes the idle connection used last; if it is dead, another replaces it and the session does not notice. When the session
has ended cleanly its connection becomes idle again.

Whoever comes here has a place already, one of connections_max (relay.upstream.gate): it takes an idle connection, dials one, or waits
for one that is being made or recycled.
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
from relay.upstream.logins import Logins
from relay.upstream.refusals import Refusals

_log = logging.getLogger("relay.upstream")


@dataclass(frozen=True, slots=True)
class MemberLimits:
    """The limits of one upstream in one worker; see config.UpstreamSettings."""

    connections_max: int  # to each address
    idle_connections: int  # to each address
    idle_seconds: float
    connect_seconds: float
    keepalive_seconds: float
    wait_seconds: float = 0
    notice_seconds: float = 0
    policy: Policy = "first"
    health_seconds: float = 0
    health_fall: int = 3
    health_rise: int = 2
    replay_budget: int = 0  # sessions a second that are replayed
    ends_idle_sessions: bool = True  # whether sessions with an idle client are ended for those that wait; not where all are one identity's
    quiet: bool = False  # for an identity's pool: the health of its addresses is reported by the pool that checks them


class Member:
    """The connections to one address; all methods belong to one loop. `alone`: its upstream has no other address."""

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
        self.neighbours: Callable[[], Iterable[Member]] = lambda: ()  # other members with connections to the same address
        self.on_dialed: Callable[[str, Unavailable | None], None] = lambda address, error: None  # a login succeeded, or why it failed
        self.on_idle: Callable[[], None] = lambda: None  # a connection has become idle
        self.places = 0  # taken by sessions, whether they have their connection yet or not
        self._colleagues = colleagues if colleagues is not None else Colleagues()
        self.used = 0  # as policy.Candidate.used
        self.health = Health(upstream, self.address, limits.health_fall, limits.health_rise, observer, quiet=limits.quiet)
        proven = lambda: self.health.breaker.proven  # noqa: E731
        self._logins = Logins(upstream, self.address, identity, self._dial_host, proven, self._keep_warm, refusals, self._colleagues)
        self._upstream = upstream
        self._host, self._port = host, port
        self._login = login
        self._limits = limits
        self._observer = observer
        self._alone = alone
        self._idle: deque[tuple[float, Connection]] = deque()  # (idle since, connection), the one used last at the right
        self._idle_life = (idle_lives if idle_lives is not None else IdleLives()).of(self.address)
        self._leased: set[Connection] = set()
        self._recycling: set[Connection] = set()
        self._dialing = 0
        self._dials_ahead = 0  # scheduled dials that do not run yet; counted so that none is scheduled twice
        self._own_dials = 0  # of `_dialing`, those that a session makes for itself
        self._waiters: deque[asyncio.Future[Connection]] = deque()  # sessions with a place; for each a connection is being prepared
        self._tasks = Tasks()
        self._retry: asyncio.TimerHandle | None = None
        self._reap: asyncio.TimerHandle | None = None
        self._reap_at = 0.0  # on the loop's clock; uvloop's handle of a timer that is due at once has no `when`
        self._closed = False
        self._shut = False  # see `shut`

    def __repr__(self) -> str:
        return f"<{self.address} {' '.join(f'{state}={count}' for state, count in self.states.items())}>"

    @property
    def states(self) -> dict[str, int]:
        return {"idle": len(self._idle), "leased": len(self._leased), "dialing": self._being_prepared(), "waiting": len(self._waiters)}

    @property
    def up(self) -> bool | None:
        return self.health.up

    @property
    def full(self) -> bool:
        return self.places >= self._limits.connections_max

    @property
    def sessions(self) -> int:
        return self.places

    @property
    def unserved(self) -> int:
        """How many sessions have a place and no connection yet."""
        return self.places - len(self._leased)

    @property
    def spare(self) -> int:
        """How many idle connections there are that no session with a place is about to take."""
        return len(self._idle) - self.unserved

    def start(self) -> None:
        """Dials the warm connections and begins to check; the loop must be running."""
        self._logins.start(self._limits.connect_seconds)
        self._keep_warm()
        if self._limits.health_seconds or self._logins.shared:
            self._colleagues.listen(self._upstream, self.address, self._on_news)
        if self._limits.health_seconds:
            self._tasks.start(
                check_for_ever(self.health, self._check, self._limits.health_seconds, self._limits.connect_seconds, self._after_check),
                f"check {self._upstream} {self.address}",
            )

    async def close(self) -> None:
        """Closes idle connections and ends dials; leased ones are closed when their sessions end."""
        self._closed = True
        self._logins.stop()
        for timer in (self._retry, self._reap):
            if timer is not None:
                timer.cancel()
        while self._idle:
            self._idle.pop()[1].close()
        self._fail_waiting(Unavailable(f"upstream {self._upstream}: closing", reason="closing"), len(self._waiters))
        await self._tasks.cancel()
        self._dials_ahead = 0
        while self._recycling:  # asyncio skips the whole body of a task cancelled before its first step
            self._recycling.pop().close()

    def shut(self, shut: bool) -> None:
        """True: the operator wants no session here. Nothing is dialled, idle connections are closed, leased ones when they are given back.

        Health checks go on, so that the operator sees when the git host is back.
        """
        if shut is self._shut or self._closed:
            return
        self._shut = shut
        if not shut:
            if self.health.breaker.state == "closed":
                self._keep_warm()
            elif self._limits.idle_connections or not self._alone:
                self._dial_trial()
            return
        for timer in (self._retry, self._reap):
            if timer is not None:
                timer.cancel()
        self._retry = self._reap = None
        while self._idle:
            self._idle.pop()[1].close()
        self._fail_waiting(Unavailable(f"{self.address}: paused or drained", reason="paused", passing=True), len(self._waiters))

    # -- for a session -------------------------------------------------------------------------------------------------

    async def serve(
        self, command: str, environment: list[tuple[str, str]], until: float, *, fresh: bool = False
    ) -> tuple[Connection, bool]:
        """A connection on which the git host has accepted `command`, and whether it was warm; the caller must call `ended`.

        The session must have one of the `places`. A warm connection on which the command fails is replaced by another warm one, and at
        last by a fresh dial. `until`, on the loop's clock, is the end of this address's share of the time. `fresh`: no idle connection
        serves, since the session has just lost one here, and those from before may be lost in the same moment.
        Raises Unavailable: dial, timeout, host_key, handshake, auth, channel, exec, paused.
        """
        asked = False  # whether the command was sent on a connection
        try:
            async with asyncio.timeout_at(until):
                while True:
                    asked = False
                    connection, warm = await self._take(until, fresh)
                    asked = True
                    try:
                        await connection.run(command, environment)
                        return connection, warm
                    except BaseException as error:
                        connection.close()
                        self._leased.discard(connection)
                        self._use_free_place()
                        if not (warm and isinstance(error, Unavailable)):
                            raise
                        _log.info("upstream %s: a warm connection was dead and is replaced: %s", self._upstream, error)
        except TimeoutError:
            late = Unavailable(f"upstream {self._upstream}: no connection in time ({self!r})", reason="timeout")
            if asked:
                self._address_failed(late, f"{self.address}: a command was not accepted in time")
            raise late from None

    def ended(self, connection: Connection) -> None:
        """The session on `connection` has ended: makes the connection idle again, or closes it."""
        self._leased.discard(connection)
        if connection.usable and not self._closed and not self._shut:
            self._recycling.add(connection)
            self._tasks.start(self._recycle(connection), f"recycle {self._upstream}")
        else:
            connection.close()
            self._use_free_place()

    async def _take(self, until: float, fresh: bool) -> tuple[Connection, bool]:
        """An idle connection unless `fresh`, else a new one, else the next that is ready. Adds it to `_leased`.

        For each waiter a connection is being prepared: together with those in use and those that sessions dial for themselves there are
        no more waiters than places, and all other connections are neither idle nor in use.
        """
        if fresh and self._idle and self._total() >= self._limits.connections_max:
            self._idle.popleft()[1].close()  # makes room
        elif self._idle and not fresh:
            connection = self._idle.pop()[1]
            connection.on_lost(None)
            self._leased.add(connection)
            self._keep_warm()
            return connection, True
        if self._total() < self._limits.connections_max:
            self._own_dials += 1
            try:
                connection = await self._dial(until)
            except BaseException:  # a cancellation too: a waiting session may use the place
                self._use_free_place()
                raise
            finally:
                self._own_dials -= 1
            self._leased.add(connection)
            return connection, False
        waiter: asyncio.Future[Connection] = self._tasks.loop.create_future()
        self._waiters.append(waiter)
        try:
            return await waiter, True
        except BaseException:  # a cancellation, or no connection can be had
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # a connection was handed over in the same moment: the next session gets it
                self._leased.discard(waiter.result())
                self._hand_over(waiter.result())
            else:
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)
            raise

    def end_idle_sessions(self, wanted: int) -> int:
        """Others wait in line: ends as many sessions as are `wanted` whose clients have been idle for too long, the longest idle first.

        Returns how many connections are on their way, those included that are being prepared.
        """
        coming = self._being_prepared()
        if wanted > coming:
            idle = [(owed, connection) for connection in self._leased if (owed := connection.owed) is not None]
            idle.sort(key=lambda one: one[0], reverse=True)
            for _, connection in idle[: wanted - coming]:
                if not connection.give_way():
                    break
                coming += 1
        return coming

    # -- opening and closing connections -------------------------------------------------------------------------------

    def _total(self) -> int:
        return len(self._idle) + len(self._leased) + self._being_prepared()

    def _being_prepared(self) -> int:
        return self._dialing + self._dials_ahead + len(self._recycling)

    async def _dial(self, deadline: float) -> Connection:
        """Dials; the caller cancels at `deadline` of the loop's clock."""
        self._dialing += 1
        started = time.monotonic()
        try:
            connection = await self._logins.log_in()
        except Unavailable as error:
            self._dialed(error.reason, started, str(error))
            self._address_failed(error)
            raise
        except asyncio.CancelledError:
            # before `deadline`: the session ended, or the pool closes, which says nothing about the git host
            if self._tasks.loop.time() >= deadline:
                self._dialed("timeout", started)
                self._address_failed(Unavailable(f"{self.address}: no login in time", reason="timeout"))
            raise
        except Exception as error:  # a bug of the relay: the breaker must not wait for this trial for ever
            self._address_failed(Unavailable(f"{self.address}: {type(error).__name__}: {error}"))
            raise
        finally:
            self._dialing -= 1
        self._dialed("ok", started)
        self.health.dialed(None)
        if self._retry is not None:  # the host is back before its next trial
            self._retry.cancel()
            self._retry = None
            self._keep_warm()
        self.on_dialed(self.address, None)
        return connection

    async def _dial_host(self) -> Connection:
        return await Connection.dial(self._host, self._port, self._login, self._limits.keepalive_seconds)

    def _dialed(self, result: str, started: float, detail: str = "") -> None:
        self._observer.upstream_dialed(self._upstream, self.address, result, time.monotonic() - started, detail)

    async def _recycle(self, connection: Connection) -> None:
        """Closes the channel and opens the next one ahead; meanwhile the connection counts as dialing."""
        try:
            async with asyncio.timeout_at(self._tasks.loop.time() + self._limits.connect_seconds):
                await connection.prepare()
        except (Unavailable, TimeoutError) as error:
            _log.info("upstream %s: a connection could not be used again: %s", self._upstream, error)
            connection.close()
        except BaseException:  # a cancellation, or a bug of the relay, which Tasks logs
            connection.close()
            raise
        finally:
            self._recycling.discard(connection)
        if connection.usable:
            self._hand_over(connection)
        else:
            self._use_free_place()

    def _hand_over(self, connection: Connection) -> None:
        """Gives a ready connection to the session that has waited longest for one here, or makes it idle."""
        if self._closed or self._shut:
            connection.close()
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._leased.add(connection)
                waiter.set_result(connection)
                return
        self._idle.append((time.monotonic(), connection))
        connection.on_lost(self._idle_lost)
        self._close_surplus()
        self._reap_later()
        self.on_idle()

    def _idle_lost(self, connection: Connection) -> None:
        """The git host closed an idle connection."""
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

    def _use_free_place(self) -> None:
        """A connection was closed: dials one for a waiting session, and warm ones as far as some are missing."""
        if self._waiters and not self._closed and self._total() < self._limits.connections_max:
            self._dial_soon()
        self._keep_warm()

    def _keep_warm(self) -> None:
        if self._closed or self._shut or self._logins.waits or self._retry is not None or self.health.breaker.state != "closed":
            return
        old = self._old()
        missing = self._limits.idle_connections - (len(self._idle) - old) - self._being_prepared()
        room = self._limits.connections_max - self._total()
        if missing > 0 and room <= 0 and old and not self._being_prepared():  # otherwise an old one serves until its replacement is there
            self._close_oldest()
            room += 1
        for _ in range(min(missing, room)):
            self._dial_soon()

    def _dial_soon(self) -> None:
        self._dials_ahead += 1
        self._tasks.start(self._dial_ahead(), f"dial {self._upstream}")

    async def _dial_ahead(self) -> None:
        self._dials_ahead -= 1
        deadline = self._tasks.loop.time() + self._limits.connect_seconds
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._dial(deadline)
        except (Unavailable, TimeoutError) as error:  # `_address_failed` has logged it and set the timer for the next try
            said = error if isinstance(error, Unavailable) else Unavailable(f"{self.address}: no login in time", reason="timeout")
            self._fail_waiting(said, len(self._waiters) - (self._being_prepared() - self._own_dials))
            return
        self._hand_over(connection)
        self._keep_warm()

    def _fail_waiting(self, error: Unavailable, count: int) -> None:
        """Fails the sessions that came last, for which no connection is being prepared any more."""
        for _ in range(count):
            waiter = self._waiters.pop()
            if not waiter.done():
                waiter.set_exception(Unavailable(str(error), reason=error.reason, passing=error.passing))

    # -- failures and news ---------------------------------------------------------------------------------------------

    def _address_failed(self, error: Unavailable, because: str = "") -> None:
        """A dial failed, or a command was not accepted in time: sets the timer for the next dial.

        None is set for a lone address without warm connections: the next session's dial is the trial.
        """
        was_down = self.health.up is False
        self.health.dialed(error, because)
        self.on_dialed(self.address, error)
        if self._retry is not None or self._closed or self._shut or (self._alone and not self._limits.idle_connections):
            return
        pause, refused = self.health.breaker.pause(), self._logins.pause(error)
        if refused is None:
            return
        pause = max(pause, refused)
        level = logging.DEBUG if was_down else logging.INFO
        _log.log(level, "upstream %s: %s; next try in %.2f s", self._upstream, because or error, pause)
        self._retry_in(pause)

    def _retry_in(self, seconds: float) -> None:
        self._retry = self._tasks.loop.call_later(seconds, self._retry_now)

    def _retry_now(self) -> None:
        self._retry = None
        if self.health.breaker.state == "closed":
            self._use_free_place()
        else:
            self._dial_trial()

    def _dial_trial(self) -> None:
        """One dial that decides whether the breaker closes; its connection serves sessions."""
        if self._closed or self._shut:  # news of another worker may come all the same
            return
        if self._total() >= self._limits.connections_max:
            self._retry_in(self.health.breaker.pause())  # connections_max are in use: no trial can be made, and none is needed yet
        else:
            self.health.breaker.try_again()
            self._dial_soon()

    async def _check(self, recent: float) -> bool:
        """Health check: from the connections if there are any, else by a key exchange, which only one worker makes."""
        everyone = (self, *self.neighbours())
        now = self._tasks.loop.time()
        if any(time.monotonic() - one.health.logged_in < recent for one in everyone):
            return True
        for one in everyone:
            for _, connection in list(one._idle):
                try:
                    await connection.alive()
                except Unavailable:  # the git host closed this one, which says nothing about others
                    one._close_idle(connection)
                except BaseException:  # a cancellation: the check's time is over
                    one._close_idle(connection)
                    raise
                else:
                    return True
        recent = max(recent, self._limits.keepalive_seconds)  # how often a running command's git host is asked
        if any(now - connection.heard < recent for one in everyone for connection in one._leased):
            return True
        if not self._colleagues.probing or any(one._being_prepared() for one in everyone):
            return False  # another worker, or the dial that is being made, will find out
        await probe(self._host, self._port, self._login.host_keys, self._login.algorithms)
        return True

    def _close_idle(self, connection: Connection) -> None:
        """Closes an idle connection that does not answer."""
        if any(entry[1] is connection for entry in self._idle):
            self._idle = deque(entry for entry in self._idle if entry[1] is not connection)
            connection.close()
            self._use_free_place()

    def _on_news(self, news: HostNews) -> None:
        """News of the address from another worker."""
        if news.identity:
            return
        if news.reason == "auth":
            if self._logins.hear(news):
                if self.health.breaker.state == "open" and self._retry is not None:
                    self._retry.cancel()
                    self._retry_now()
                self._logins.wait_no_more()
            return
        self.health.heard = time.monotonic()
        self.health.checked(Unavailable(news.problem, reason=news.reason) if news.problem else None)
        self._try_again()

    def _after_check(self, error: Unavailable | None) -> None:
        self._colleagues.tell(HostNews(self._upstream, self.address, str(error) if error else "", error.reason if error else ""))
        self._try_again()

    def _try_again(self) -> None:
        """Makes a trial dial if checks pass again while the breaker is open and no retry is set."""
        if self.health.checks_pass and self.health.breaker.state == "open" and self._retry is None:
            self._dial_trial()

    # -- closing what is not needed ------------------------------------------------------------------------------------

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
        if self._closed or self._shut:
            return
        now = time.monotonic()
        waits = []
        if len(self._idle) > self._limits.idle_connections:
            waits.append(self._idle[0][0] + self._limits.idle_seconds - now)
        after, old = self._idle_life.replace_after(), self._old()
        if after is not None and old < len(self._idle):  # the old ones wait for their replacements
            waits.append(self._idle[old][0] + after - now)
        if waits:
            loop, seconds = self._tasks.loop, max(min(waits), 0.0)
            if self._reap is not None and self._reap_at > loop.time() + seconds:
                self._reap.cancel()
                self._reap = None
            if self._reap is None:
                self._reap_at = loop.time() + seconds
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
