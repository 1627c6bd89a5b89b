"""One git session: from the exec request to the exit status, in one coroutine, top to bottom.

`Session._run` is the whole of it: parse, authorize, route, lease, splice, outcome. `_say` is the only method that turns a RelayError
into text and an exit status for the client; `_ended` reports the outcome to the observer exactly once, however the session ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import asyncssh
from msgspec.structs import replace

from relay.access import Access, check, may_read
from relay.backends.decision import Deciding, Decision
from relay.config import Config
from relay.errors import (
    BrokeProtocol,
    ClientGone,
    ClientIdle,
    Ended,
    Frozen,
    ReadOnly,
    Refused,
    RelayError,
    Stalled,
    TooMany,
    Unaudited,
    UpstreamError,
)
from relay.events import ConnectionRecord, Observer, Outcome, SessionRecord, WaitsFor, traceparent
from relay.git.command import parse
from relay.git.pktline import FLUSH_PKT
from relay.intercept import PushGate, RequestReader, intercept
from relay.model import Command, Exit, Grant, Identity, Route
from relay.observe.log import AUDITED
from relay.packs.delivery import Delivery
from relay.packs.desk import Desk, Packs
from relay.packs.fill import Order
from relay.replay import Replay, follows
from relay.routes import Routes
from relay.splice import Splice
from relay.ssh.backpressure import Budget
from relay.ssh.channel import Channel
from relay.tasks import Tasks
from relay.text import client_text, printable
from relay.upstream.attempts import Attempts
from relay.upstream.identities import IdentityPools
from relay.upstream.libssh2 import Connection
from relay.upstream.pool import Pool

LAST_WORDS_SECONDS = 5.0  # how long a client may take to receive the message when the relay ends its session

NO_TEXT = "it is read-only"  # in place of an empty text of a route's read_only

GIT_SERVICES = ("git-upload-pack", "git-receive-pack", "git-upload-archive")  # whose client shows stderr to a person, as it is

_log = logging.getLogger("relay.session")


@dataclass(frozen=True, slots=True)
class Services:
    """What every session of a worker shares."""

    config: Config
    access: Access
    routes: Routes
    pools: Mapping[str, Pool | IdentityPools]
    observer: Observer
    tasks: Tasks
    budget: Budget
    frozen: dict[str, str] = field(default_factory=dict)  # upstreams that take no pushes, with the text that clients read; may change
    packs: Packs | None = None  # None: no answers are kept
    begins: Callable[[SessionRecord], str] | None = None  # writes to the audit that a session begins; returns why it cannot. None: off
    left: set[Session] = field(default_factory=set)  # whose client has disconnected while the git host's command still runs


class State(StrEnum):
    """How far a session is; `_NEXT` has the transitions."""

    OPEN = "open"  # the channel is open, exec or shell not requested yet
    REQUESTED = "requested"  # asyncio has scheduled the session's task but not begun it
    PREPARING = "preparing"  # authorize, route, lease; the client's input is kept
    SPLICED = "spliced"  # a Splice or a Delivery has the client's input, until the outcome
    OVER = "over"


_NEXT = {
    State.OPEN: (State.REQUESTED,),
    State.REQUESTED: (State.PREPARING,),
    State.PREPARING: (State.SPLICED, State.OVER),
    State.SPLICED: (State.PREPARING, State.OVER),  # back when the session goes on with another connection, or without one
    State.OVER: (),
}


class Session(asyncssh.SSHServerSession[bytes]):
    """asyncssh's callbacks around `_run`, the coroutine of the session."""

    def __init__(
        self,
        record: SessionRecord,
        identity: Identity,
        services: Services,
        reauthorize: Callable[[], Awaitable[None]],
        closed: Callable[[], object],
    ) -> None:
        # given by the connection
        self._reauthorize = reauthorize
        self._closed = closed
        self.record = record
        self._identity = identity
        self._services = services
        # managed here
        self._state = State.OPEN
        self._channel: Channel | None = None
        self._task: asyncio.Task[None] | None = None
        self._splice: Splice | Delivery | None = None
        self._replay: Replay | None = None
        self._moved: Splice | None = None  # that has lost or left its git host, until the next Splice goes on where it stopped
        self._interceptor: RequestReader | PushGate | None = None
        self._early: list[bytes] = []  # client input received before a Splice takes it
        self._eof = False  # whether the client has sent EOF
        self._noticed = False  # whether the client was told that it waits
        self._gone: str | None = None  # why the client's channel is gone
        self._stop: RelayError | None = None  # why the relay ends the session

    def _enter(self, state: State) -> None:
        assert state in _NEXT[self._state], f"session {self.record.id} is {self._state.value}, it cannot become {state.value}"
        self._state = state

    # -- the path --------------------------------------------------------------------------------------------------------

    async def _run(self, serve: Callable[[Channel], Awaitable[Exit]], channel: Channel) -> None:
        started = time.monotonic()
        error: RelayError | None = None
        how, told = Exit(status=0), False
        if self.record.traceparent:
            traceparent.set(self.record.traceparent)  # for this task, and those that it starts
        try:
            self._begin()
            await self._reauthorize()
            self._record_beginning()
            how = await serve(channel)
            told = await self._finish(how, channel)
        except RelayError as known:
            if isinstance(known, ClientGone) and self._stop is not None:
                known = self._stop  # the channel closed because the relay ended the session
            error = known.with_traceback(
                None
            )  # the traceback's frames refer to this one: a cycle that keeps channel, splice and connection
        except asyncio.CancelledError:
            error = self._stop or (ClientGone(self._gone) if self._gone is not None else Ended("the worker was stopped"))
        except Exception as unknown:  # noqa: BLE001 - a bug of the relay ends this session, as an internal error, and no other
            _log.exception("session %s failed", self.record.id)
            error = RelayError(f"{type(unknown).__name__}: {unknown}")
        if error is not None:
            how, told = Exit(status=error.exit_status), await self._say(error, channel)
        self._ended(how, told, error, time.monotonic() - started)

    async def _finish(self, how: Exit, channel: Channel) -> bool:
        """Sends the exit. False when the client received all output and closed the channel, so needs none. Raises as Channel.finish."""
        try:
            await channel.finish(how, self._services.config.limits.stall_seconds)
        except ClientGone:
            if channel.cut or self._stop is not None:
                raise
            return False
        return True

    def _begin(self) -> None:
        """Raises if the client disconnected, or the relay ended the session, before the task's first step."""
        self._enter(State.PREPARING)
        if self._gone is not None:
            raise ClientGone(self._gone)
        if self._stop is not None:
            raise self._stop

    def _record_beginning(self) -> None:
        """With audit_required: raises Unaudited when the audit cannot be written."""
        begins = self._services.begins
        if begins is not None and (why := begins(self.record)):
            raise Unaudited(why)

    async def _serve(self, line: str, channel: Channel) -> Exit:
        record, identity = self.record, self._identity
        command = record.command = parse(line, channel.protocol, self._services.config.names.strip)
        decision = await self._decide(command, identity)
        command, grant, route = decision.command, decision.grant, decision.route
        if decision.moved_from:
            await self._tell_moved(decision)
        if command.service in GIT_SERVICES:
            self._tell_notices(route.notice)
        closed = self._write_refusal(command, route)
        if closed is not None and (command.service != "git-receive-pack" or self._is_paused(route.upstream)):
            raise closed  # no list of refs to report on, or none before the upstream is resumed
        # before a connection is leased: the audit line of a session that gets none has its git version too
        self._interceptor = self._intercept(command, grant, closed)
        attempts = Attempts(
            record=record,
            pools=self._services.pools,
            observer=self._services.observer,
            environment=lambda upstream: self._environment(command, upstream),
            carry=lambda upstream: self._carry(upstream, channel),
            may_move=lambda: self._state is State.PREPARING and self._gone is None,
            tell=self._tell_waiting,
        )
        packs, desk = self._services.packs, None
        if packs is not None and follows(command):
            self._replay = desk = Desk(command, attempts, packs, record, lambda upstream: self._order(command, route, upstream))
        else:
            self._replay = Replay(command, attempts)
        try:
            how = await attempts.serve(command, route)
            while desk is not None and desk.parked:
                delivered = await self._deliver(desk, channel)
                if delivered is not None:
                    how = delivered
                    break
                how = await attempts.serve(command, route)
        except asyncio.CancelledError:
            later = b"".join([self._replay.later, *self._early])  # no git host was given it
            if self._gone is None or self._stop is not None or not self._replay.settled or later not in (b"", FLUSH_PKT):
                raise
            return Exit(status=0)  # the client left with all that it had asked for while another git host was looked for
        finally:
            self._replay = self._moved = None  # both lead back to the session, and so to the connection to the git host
            if desk is not None:
                desk.close()
        if self._interceptor is not None and self._interceptor.refusal is not None:
            raise self._interceptor.refusal
        return how

    async def _decide(self, command: Command, identity: Identity) -> Decision:
        record, config = self.record, self._services.config

        def became(now: Command, moved_from: str) -> None:
            record.command, record.moved_from = now, moved_from

        deciding = Deciding(
            config.ignoring, config.folds, lambda named: self._check(identity, named), lambda named: self._find(named, identity), became
        )
        decision = await deciding.decide(command)
        became(decision.command, decision.moved_from)
        record.route = decision.route
        return decision

    async def _tell_moved(self, decision: Decision) -> None:
        """Tells the client the new name, if it may read there: who may not must not learn from the old name that there is a new one.

        git-lfs shows what comes on stderr as an error of its own, and git's own session tells the same.
        """
        command, record = decision.command, self.record
        _log.info("session %s of %s: %s has moved to %s", record.id, self._identity.name, decision.moved_from, command.repository)
        if command.service not in GIT_SERVICES:
            return
        readable = command.needs == "read" or await may_read(
            self._services.access, self._identity, command, record.connection.address, record.id
        )
        if readable:
            self._notice(f"relay: {printable(decision.moved_from)} is {printable(command.repository)} now, please use that name")

    def _tell_notices(self, of_route: str | None = None) -> None:
        """The operator's lines, for all and for this route."""
        for text in dict.fromkeys((self._services.config.notice, of_route or "")):
            if text := client_text(text):
                self._notice(f"relay: notice: {text}")

    def _tell_waiting(self, waits_for: WaitsFor, ahead: int, seconds: float) -> None:
        """Tells the client once why it waits, and at most how long."""
        if self._noticed:
            return
        self._noticed = True
        if waits_for == "paused":
            self._notice(f"relay: the git host is closed for maintenance, waiting up to {seconds:.0f} s for it")
        elif waits_for == "away":
            self._notice(f"relay: the git host does not answer, it may be restarting; waiting up to {seconds:.0f} s for it")
        elif waits_for == "identity":
            self._notice("relay: waiting, as many of your sessions use the git host as may at once")
        elif waits_for == "repository":
            self._notice("relay: waiting, as many sessions use this repository as may at once")
        else:
            self._notice(f"relay: waiting for the git host, in line before you: {ahead}")

    def _notice(self, text: str) -> None:
        """Sends a line on stderr, and the session goes on."""
        channel = self._channel
        if channel is not None and self._gone is None and not channel.is_closing():
            channel.write_stderr(text.encode() + b"\n")

    async def _carry(self, upstream: Connection, channel: Channel) -> Exit:
        """Splices the client's channel with the git host's connection. May be called again after an UpstreamError, see Attempts."""
        limits = self._services.config.limits
        before, self._moved = self._moved, None
        splice = Splice(
            channel,
            upstream,
            self.record,
            limits.stall_seconds,
            self._interceptor,
            limits.client_idle_seconds,
            limits.client_idle_busy_seconds,
            self._replay,
            before,
        )
        if not self.record.served_by:
            self.record.served_by = "host"
        self._connect(splice, channel)
        try:
            how = await splice.run()
        except UpstreamError:
            if splice.moved and self._gone is None:
                self._go_on_after(splice)
            raise
        if splice.moved:
            self._go_on_after(splice)
        return how

    def _go_on_after(self, splice: Splice) -> None:
        """What the client sends from here on is kept for the next git host, or for a Delivery."""
        self._enter(State.PREPARING)
        self._early = splice.late
        self._moved, self._splice = splice, None
        if splice.interceptor is None:
            self._interceptor = None

    async def _deliver(self, desk: Desk, channel: Channel) -> Exit | None:
        """The session goes on without a connection: sends it what `desk` has found. None if it needs a git host again."""
        if self._gone is not None:
            raise self._stop or ClientGone(self._gone)
        if self._stop is not None:
            raise self._stop
        self.record.address = ""
        if desk.reader is None:
            return None  # the git host does not agree: it is asked by the client itself
        limits = self._services.config.limits
        delivery = Delivery(channel, desk, self.record, limits.stall_seconds, limits.client_idle_seconds)
        self._connect(delivery, channel)
        how = await delivery.run()
        if how is None:
            self._enter(State.PREPARING)
            self._early, self._splice = delivery.late, None
        return how

    def _order(self, command: Command, route: Route, upstream: str) -> Order:
        """What a fill for this session asks of the upstream that serves it."""
        pools = self._services.pools[upstream]
        own = pools.of(self._identity.name, self._tell_waiting)
        line, environment = command.line(route.path), self._environment(command, upstream)
        patient = upstream == route.upstreams(command.needs)[-1]
        return Order(
            upstream,
            route.path,
            self._identity.name if isinstance(pools, IdentityPools) else "",
            lambda: own.lease(line, environment, command.repository, again=True, patient=patient),
        )

    def _write_refusal(self, command: Command, route: Route) -> ReadOnly | None:
        """Why a command that writes is refused although access allows it: the upstream is frozen, or the route is read-only."""
        if command.needs != "write":
            return None
        if (frozen := self._services.frozen.get(route.upstream)) is not None:
            text = client_text(frozen)
            return Frozen(f"upstream {route.upstream} is frozen", message=f"{Frozen.message}: {text}", text=text)
        if route.read_only is not None:
            text = client_text(route.read_only) or NO_TEXT
            return ReadOnly(f"the route of {command.repository} is read-only", message=f"{ReadOnly.message}: {text}", text=text)
        return None

    def _is_paused(self, upstream: str) -> bool:
        pool = self._services.pools.get(upstream)
        return pool is not None and pool.paused

    def _intercept(self, command: Command, grant: Grant, closed: ReadOnly | None) -> RequestReader | PushGate | None:
        return intercept(command, grant, self.record, self._services.config.limits.stall_seconds, closed)

    async def _check(self, identity: Identity, command: Command) -> Grant:
        access, started = self._services.access, time.monotonic()
        try:
            return await check(access, identity, command, self.record.connection.address, self.record.id)
        finally:
            self._services.observer.step_took("access", time.monotonic() - started)

    async def _find(self, command: Command, identity: Identity) -> Route:
        routes, started = self._services.routes, time.monotonic()
        try:
            return await routes.find(command, identity)
        finally:
            self._services.observer.step_took("routes", time.monotonic() - started)

    def _environment(self, command: Command, upstream: str) -> list[tuple[str, str]]:
        environment = []
        if command.protocol is not None:
            environment.append(("GIT_PROTOCOL", command.protocol))
        if self._services.config.upstreams[upstream].send_identity:
            environment.append(("RELAY_IDENTITY", self._identity.name))
            environment.append(("RELAY_KEY", self._identity.fingerprint))
            environment.append(("RELAY_CLIENT", self.record.connection.address))
            environment.append(("RELAY_SESSION", self.record.id))
        return environment

    def _connect(self, splice: Splice | Delivery, channel: Channel) -> None:
        """Gives the client's input to the splice from now on, beginning with what was received early."""
        self._enter(State.SPLICED)
        self._splice = splice
        channel.on_drained(splice.client_drained)
        channel.widen()
        early, self._early = self._early, []
        for data in early:
            splice.client_data(data)
        if self._eof:
            splice.client_eof()
        channel.resume_reading()

    # -- the end ---------------------------------------------------------------------------------------------------------

    async def _say(self, error: RelayError, channel: Channel) -> bool:
        """Sends the error's text and exit status to the client. False when the client has already disconnected."""
        if self._gone is not None or channel.is_closing():
            return False
        try:
            if error.message:
                channel.write_stderr(error.message.encode("utf-8", "replace") + b"\n")
        except BrokenPipeError:
            pass  # the channel has sent EOF already (the git host ended its output): only the exit may follow
        patience = self._services.config.limits.stall_seconds
        if isinstance(error, BrokeProtocol | Ended | Stalled | ClientIdle):
            patience = min(patience, LAST_WORDS_SECONDS)
        try:
            await channel.finish(Exit(status=error.exit_status), patience)
        except (RelayError, asyncio.CancelledError):
            channel.abort()  # the client does not receive the error either; the outcome is reported all the same
        return True

    def _ended(self, how: Exit, told: bool, error: RelayError | None, seconds: float) -> None:
        """Reports the outcome to observer and log. `told`: the exit was sent to the client."""
        self._enter(State.OVER)
        self._services.left.discard(self)
        observer = self._services.observer
        result = "signal" if how.signal is not None else "exit" if how.status else "ok"
        if not told:
            how = replace(how, status=None)
        if error is None:
            outcome = Outcome(result=result, reason=result, exit=how, seconds=seconds)  # type: ignore[arg-type]
        else:
            detail = str(error)
            outcome = Outcome(result=error.fault, reason=error.reason, exit=how, seconds=seconds, detail=detail)
            if isinstance(error, Refused):
                observer.command_rejected(self.record, type(error).reason, detail)  # the class's reason; the instance's may be finer
            level = logging.INFO if error.fault in ("client", "policy") else logging.WARNING
            _log.log(level, "session %s of %s: %s: %s", self.record.id, self._identity.name, error.reason, detail, extra=AUDITED)
        observer.session_ended(self.record, outcome)

    @property
    def over(self) -> bool:
        """Whether no command runs on this channel: none was requested, or its session has ended."""
        return self._state is State.OPEN or self._state is State.OVER

    @property
    def channel_over(self) -> bool:
        """Whether the session no longer counts against sessions_per_connection."""
        return self._channel is not None and self._channel.over

    def end(self, error: RelayError) -> bool:
        """Ends the session (drain, operator, protocol error): the client reads `error.message`. False if it has ended or is being ended."""
        if self.over or self._stop is not None:
            return False
        self._stop = error
        if self._splice is None or not self._splice.stop(error):
            self._cancel()
        return True

    def kill(self) -> None:
        """As `end`, at once: for a client that does not receive its message either."""
        self._stop = self._stop or Ended("the worker was stopped")
        self._cancel()

    def _cancel(self) -> None:
        """A task that has not begun is left alone: asyncio would skip its whole body, `finally` too. `_begin` ends the session."""
        if self._state is State.PREPARING or self._state is State.SPLICED:
            assert self._task is not None
            self._task.cancel()

    # -- asyncssh's callbacks --------------------------------------------------------------------------------------------

    def connection_made(self, chan: Channel) -> None:  # type: ignore[override]
        self._channel = chan
        chan.on_broken(self._broke)

    def _broke(self, what: str) -> bool:
        if self.end(BrokeProtocol(what)):
            return True
        _log.info("session %s of %s: its channel is closed: %s", self.record.id, self._identity.name, what)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = str(exc) if exc is not None else "the client closed the channel"
        if self._channel is not None:
            self._stop = self._stop or self._channel.ended_by
            self._channel.gone()
        self._closed()
        if self._splice is not None:
            self._splice.client_gone(self._gone, self._stop)
            if not self.over:
                self._services.left.add(self)
        else:
            self._cancel()

    def exec_requested(self, command: str) -> bool:
        return self._start(lambda channel: self._serve(command, channel))

    def shell_requested(self) -> bool:
        return self._start(self._greet)

    def subsystem_requested(self, subsystem: str) -> bool:
        return False

    def pty_requested(self, term_type: str, term_size: object, term_modes: object) -> bool:
        return False

    def _start(self, serve: Callable[[Channel], Awaitable[Exit]]) -> bool:
        assert self._channel is not None
        self._enter(State.REQUESTED)
        self._services.observer.session_started(self.record)
        self._task = self._services.tasks.start(self._run(serve, self._channel), f"session {self.record.id}")
        return True

    async def _greet(self, channel: Channel) -> Exit:
        greeting = self._services.config.greeting.format(identity=self._identity.name)
        if greeting:
            channel.write(greeting.encode() + b"\n")
        self._tell_notices()
        return Exit(status=0)

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if self._splice is not None:
            self._splice.client_data(data)
        else:
            self._early.append(data)
            if self._channel is not None:
                self._channel.pause_reading()  # what follows waits in the channel, which counts it against the budget

    def eof_received(self) -> bool:
        self._eof = True
        if self._splice is not None:
            self._splice.client_eof()
        return True  # else asyncssh answers with an EOF of its own at once

    def pause_writing(self) -> None:
        pass  # the splice looks at Channel.full after every write instead

    def resume_writing(self) -> None:
        if self._channel is not None:
            self._channel.writable_again()


def new_session(
    connection: ConnectionRecord,
    identity: Identity,
    number: int,
    services: Services,
    reauthorize: Callable[[], Awaitable[None]],
    closed: Callable[[], object],
) -> Session:
    """A channel's session. The observer learns of its record with the exec or shell request.

    `reauthorize` is awaited before the command is parsed; it raises if the identity's key was revoked meanwhile. `closed` is called
    when the channel has closed.
    """
    record = SessionRecord(id=f"{connection.id}-{number}", connection=connection, identity=identity)
    return Session(record, identity, services, reauthorize, closed)


def refuse(connection: ConnectionRecord, identity: Identity, number: int, services: Services, detail: str) -> None:
    """Reports to the observer a session that was refused before it had a channel."""
    record = SessionRecord(id=f"{connection.id}-{number}", connection=connection, identity=identity)
    error = TooMany(detail)
    services.observer.session_started(record)
    services.observer.command_rejected(record, error.reason, detail)
    outcome = Outcome(result=error.fault, reason=error.reason, exit=Exit(status=error.exit_status), seconds=0.0, detail=detail)
    services.observer.session_ended(record, outcome)
