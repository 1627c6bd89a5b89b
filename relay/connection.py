"""One client connection: it authenticates the client (RFC 4252), opens its sessions (RFC 4254) and reports how it ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from secrets import token_hex

import asyncssh
from asyncssh.connection import SSHServerConnection
from asyncssh.constants import DISC_NO_MORE_AUTH_METHODS_AVAILABLE, OPEN_RESOURCE_SHORTAGE

from relay.address import plain_address
from relay.admission.farewell import Farewells
from relay.admission.limits import Admission, Failure, Refusal, Ticket, source_of
from relay.errors import BrokeProtocol, Revoked, Undecided
from relay.events import AuthFailure, ConnectionOutcome, ConnectionRecord, traceparent
from relay.keys import Certificates, KeyFacts, KeyOptions, Keys, Needs, NotAccepted, Policing
from relay.model import Identity
from relay.session import Services, Session, new_session, refuse
from relay.ssh.backpressure import Flow
from relay.ssh.channel import Channel
from relay.ssh.client_connection import ClientConnection, KeepaliveTimeout, LoginTimeout
from relay.ssh.client_key import ClientKey, with_our_signatures
from relay.ssh.kex import NoCommonAlgorithm
from relay.ssh.packets import PacketConnection, Unanswered
from relay.ssh.userauth import Judge
from relay.text import counted, printable

PROBE_SECONDS = 1.0  # a client that sends nothing and disconnects earlier checks the port; that is no failed login
LEAVE_QUIET_SECONDS = 0.5  # without a session or a channel open request, before a draining worker ends a connection
TRUSTED_SECONDS = 0.5  # a key that was validated longer ago is validated again before a session: it may have been revoked

_PENALISED: dict[ConnectionOutcome, Failure] = {
    "grace": "grace",
    "protocol": "auth",
}  # of connections that did not authenticate; every other outcome as noauth

_NOT_SSH = (  # asyncssh raises these when a client breaks the protocol (reason codes of RFC 4253 section 11.1)
    asyncssh.ProtocolError,
    asyncssh.ProtocolNotSupported,
    asyncssh.KeyExchangeFailed,
    asyncssh.MACError,
    asyncssh.ServiceNotAvailable,
)

_log = logging.getLogger("relay.connection")


def _broke_protocol(connection: PacketConnection) -> bool:
    return connection.ended_by is not None and isinstance(connection.ended_by(), BrokeProtocol)


@dataclass(frozen=True, slots=True)
class ConnectionServices:
    """What all connections of a worker share; `services` is what their sessions share too."""

    keys: Keys
    certificates: Certificates
    policy: Policing
    gate: Admission
    services: Services
    live: set[ConnectionHandler]
    farewells: Farewells
    draining: Callable[[], bool] = lambda: False


class ConnectionHandler(Judge):
    """The server logic of one connection: what asyncssh calls an SSHServer. Its connection is a ClientConnection."""

    def __init__(self, shared: ConnectionServices) -> None:
        # set by the worker
        self._shared = shared
        self._services = shared.services
        self._config = shared.services.config
        # managed here
        self.record = ConnectionRecord(id=token_hex(6), address="", port=0)
        self.sessions: dict[int, Session] = {}
        self.idle_since: float | None = None  # monotonic, since when the authenticated connection has no session
        self._connection: ClientConnection | None = None
        self._flow = Flow(shared.services.budget)
        self._ticket: Ticket | None = None
        self._user = ""
        self._owners: dict[
            str, tuple[str | None, float]
        ] = {}  # fingerprint -> (identity, when it was asked for); a key is offered, then used to sign
        self._candidate: Identity | None = None  # of the key that is being validated; not authenticated before auth_completed
        self._validate_again: Callable[[], Awaitable[Identity | None]] | None = (
            None  # validates the key anew; raises NotAccepted, Undecided
        )
        self._needs = Needs(touch=True)  # of the candidate's signature
        self._flags: int | None = None  # of the signature that was accepted
        self._validated_at = 0.0  # monotonic, when the answer that is in use was asked for
        self._failures = 0
        self._failure_counted = False  # whether `_failures` includes the failure that is about to be sent
        self._greeted = False  # the client was sent the configured banner
        self._banner_sent = False  # the client was told that its key could not be looked up
        self._number = 0
        self._leaving = False  # channel open requests get no answer: the connection is about to end
        self._quiet_since = 0.0  # monotonic, the last channel open request while leaving
        self._keepalive_sent = self._keepalive_answered = False  # since the last session ended or a channel was requested
        self._progress: tuple[int | None, float] = (None, 0.0)  # bytes that the client had read, and since when no more
        self._outcome: ConnectionOutcome | None = None
        self._detail = ""

    def __repr__(self) -> str:
        who = self.record.identity.name if self.record.identity else "not authenticated"
        return f"<connection {self.record.id} {self.record.address} {who} sessions={len(self.sessions)}>"

    # -- opening and closing ---------------------------------------------------------------------------------------------

    def connection_made(self, conn: SSHServerConnection) -> None:
        assert isinstance(conn, ClientConnection), "asyncssh.create_server takes Server.git_server"
        self._connection = conn
        observer = self._services.observer
        peer = conn.get_extra_info("peername")
        if not peer:  # the client reset it before it was accepted: there is no address to count or to penalise
            observer.connection_refused("unknown", "no_auth", "it had gone when it was accepted")
            conn.abort()
            return
        self.record.address, self.record.port = plain_address(str(peer[0])), int(peer[1])
        entered = self._shared.gate.enter(self.record.address, named_by_header=bool(conn.get_extra_info("named_by_header")))
        if isinstance(entered, Refusal):
            self._outcome = "limited"
            observer.connection_refused(self.record.address, "limited", f"{entered.reason}: {entered.detail}")
            _log.warning("a connection from %s was turned away: %s", self.record.address, entered.detail)
            self._shared.farewells.say(conn.let_go(), source_of(self.record.address), entered.reason)
            return
        self._ticket = entered
        self.record.source = entered.kind
        conn.flow = self._flow
        self._shared.live.add(self)
        observer.connection_opened(self.record)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ticket is None:
            return  # it was not admitted
        self._shared.live.discard(self)
        outcome, detail = self._outcome_and_detail(exc)
        if self.record.identity is None:
            self._unauthenticated_end(self._ticket, outcome, detail)
        self._ticket.leave()
        self._ticket = None
        self._services.observer.connection_closed(self.record, outcome, detail)
        self._connection = None

    def _unauthenticated_end(self, ticket: Ticket, outcome: ConnectionOutcome, detail: str) -> None:
        """Penalises the source of a connection that did not authenticate, and audits why."""
        connection, record = self._connection, self.record
        if outcome == "probe":
            _log.debug("a connection from %s said nothing and left", record.address)
            ticket.probed()
            return
        if connection is not None and not record.client_version:
            record.client_version = printable(str(connection.get_extra_info("client_version", "")), 100)
        if outcome == "grace" or outcome == "protocol" or outcome == "no_common_algorithm":
            self._fail(outcome, detail=detail, counted=False)
        if outcome == "no_common_algorithm":
            _log.warning("a connection from %s (%s) cannot log in: %s", record.address, record.client_version, detail)
        ticket.failed(_PENALISED.get(outcome, "noauth"))
        if connection is not None:
            ticket.cost(connection.cpu_seconds)
            if connection.ended_by is not None and not _broke_protocol(connection):
                ticket.failed("crash")

    def _outcome_and_detail(self, exc: Exception | None) -> tuple[ConnectionOutcome, str]:
        detail = printable(str(exc)) if exc is not None else ""
        if self._outcome is not None:
            return self._outcome, self._detail or detail
        if self.record.identity is not None:
            if isinstance(exc, OSError | KeepaliveTimeout):
                return "lost", detail
            return ("protocol" if isinstance(exc, _NOT_SSH) else "ok"), detail
        if isinstance(exc, LoginTimeout):
            return "grace", detail
        if isinstance(exc, NoCommonAlgorithm):
            return "no_common_algorithm", exc.reason
        connection = self._connection
        if isinstance(exc, _NOT_SSH) or (connection is not None and _broke_protocol(connection)):
            return "protocol", detail
        if connection is not None and not connection.said and time.monotonic() - self.record.started < PROBE_SECONDS:
            return "probe", detail
        return ("auth_failed" if self._failures else "no_auth"), detail

    def end(self, outcome: ConnectionOutcome, reason: str) -> None:
        """Sends a disconnect message (RFC 4253 section 11.1), then closes. Unsent bytes are lost, so only without live sessions."""
        if self._connection is not None:
            self._outcome = outcome
            self._connection.disconnect(asyncssh.DISC_BY_APPLICATION, reason)

    def leave(self, patience: float) -> None:
        """Ends a connection without sessions while its worker drains; called repeatedly until the connection is closed.

        There are two cases:

        1. It has had no session. Its client has just logged in and may be about to open its channel: it has `patience` seconds for that.
        2. It has had one. If the client is OpenSSH's ControlMaster then other ssh processes talk to it, which the relay does not see.
           An ssh that waits for its channel dials afresh when the master exits; one that writes to the master at that moment fails. So
           channel open requests get no answer from now on, which makes each ssh wait, and the connection ends when there was no request
           during LEAVE_QUIET_SECONDS. The answer to a keepalive shows that the master has passed on the last session's exit status.
        """
        if self.idle_since is None or self._connection is None:
            return
        idle = time.monotonic() - self.idle_since
        if self._number and not self._leaving:
            self._leaving, self._keepalive_sent, self._keepalive_answered = True, False, False
            self._quiet_since = time.monotonic()
        if self._leaving and not self._keepalive_sent:
            self._keepalive_sent = True
            self._connection.create_task(self._send_keepalive(self._connection))
        quiet = self._leaving and self._keepalive_answered and time.monotonic() - self._quiet_since >= LEAVE_QUIET_SECONDS
        if (quiet or idle >= patience) and self.unsent == 0:
            self.end("drained", "The service is restarting, connect again")

    async def _send_keepalive(self, connection: ClientConnection) -> None:
        await connection._make_global_request(b"keepalive@openssh.com")
        self._keepalive_answered = True

    def abort(self) -> None:
        if self._connection is not None:
            self._connection.abort()

    @property
    def unsent(self) -> int:
        """Bytes in the client's write buffer."""
        return self._connection.unsent if self._connection is not None else 0

    def is_stalled(self, seconds: float) -> bool:
        """Whether bytes wait for the client and it has read none for `seconds`; called repeatedly."""
        now = time.monotonic()
        taken = self._connection.taken if self._connection is not None and self.unsent else None
        if taken is None or taken != self._progress[0]:
            self._progress = (taken, now)
        return now - self._progress[1] >= seconds and taken is not None

    def abort_as_lost(self, detail: str) -> None:
        """Ends it without a disconnect message, which the client would not read."""
        if self._connection is not None:
            self._outcome, self._detail = "lost", detail
            self._connection.abort()

    # -- authentication -------------------------------------------------------------------------------------------------------

    def begin_auth(self, username: str) -> bool:
        """Synchronous, since asyncssh's input buffer would grow without limit while it is awaited."""
        self._user = username
        self.record.user = printable(username, 64)
        if self._connection is not None:
            self.record.client_version = printable(str(self._connection.get_extra_info("client_version", "")), 100)
        if self._config.banner and self._connection is not None and not self._greeted:
            self._greeted = True
            self._connection.send_auth_banner(self._config.banner_lines)
        self._services.observer.step_took("handshake", time.monotonic() - self.record.started)
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Not called: relay.ssh.userauth calls `validate_key`."""
        return await self.validate_key(username, ClientKey.of(key))

    async def validate_key(self, username: str, key: ClientKey) -> bool:
        """Called for the offer and again for the signed request; does not authenticate by itself."""
        self._candidate = None
        fingerprint = key.fingerprint
        if username != self._config.user:
            self._fail("wrong_user", fingerprint)
            return False
        options = KeyOptions()
        if self._shared.certificates.checks_keys:
            try:
                options = await self._shared.certificates.check_key(key.blob, key.fingerprint, self.record.address)
            except NotAccepted as no:
                self._fail(no.reason, fingerprint, str(no))
                return False
        if fingerprint not in self._owners:
            asked = time.monotonic()
            try:
                self._owners[fingerprint] = await self._owner(key), asked
            except Undecided as error:
                self._send_banner(error.message)
                self._fail("undecided", fingerprint, f"{error.why}: {error}")
                return False
        name, asked = self._owners[fingerprint]
        if name is None:
            self._fail("unknown_key", fingerprint)
            return False
        identity = Identity(name=name, fingerprint=fingerprint)
        if not await self._passes_policy(identity, key.facts, options):
            return False
        self._candidate = identity
        self._validate_again, self._validated_at = partial(self._validate_key_again, key), asked
        return True

    async def _passes_policy(self, identity: Identity, facts: KeyFacts, options: KeyOptions) -> bool:
        try:
            self._needs = await self._shared.policy.check(identity.name, facts, options, self.record.address)
        except NotAccepted as no:
            self._refuse_by_policy(identity, no)
            return False
        except Undecided as error:
            self._send_banner(error.message)
            self._fail("undecided", identity.fingerprint, f"{error.why}: {error}")
            return False
        return True

    def _refuse_by_policy(self, identity: Identity, no: NotAccepted) -> None:
        """The client reads that its key is not accepted, as that of a stranger; log and audit have why."""
        record = self.record
        _log.info("a connection from %s as %s (%s) is refused: %s", record.address, identity.name, identity.fingerprint, no)
        self._fail(no.reason, identity.fingerprint, f"{identity.name}: {no}")

    async def validate_certificate(self, username: str, blob: bytes) -> asyncssh.SSHKey | None:
        """As `validate_key`, for an OpenSSH certificate; returns the key that must have signed. Clients offer the plain key next."""
        self._candidate = None
        if username != self._config.user:
            self._fail("wrong_user", detail="a certificate")
            return None
        asked = time.monotonic()
        try:
            key, identity, facts, options = await self._shared.certificates.judge(blob, self.record.address)
        except NotAccepted as no:
            self._fail(no.reason, no.fingerprint, str(no))
            return None
        if not await self._passes_policy(identity, facts, options):
            return None
        self._candidate = identity
        self._validate_again, self._validated_at = partial(self._validate_certificate_again, blob), asked
        return with_our_signatures(key)

    def validate_ca_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Not called: relay.ssh.userauth calls `validate_certificate`."""
        return False

    async def _owner(self, key: ClientKey) -> str | None:
        started = time.monotonic()
        try:
            owner = self._shared.keys.owner(key.fingerprint, key.line)
            if not (traced := self.record.traceparent) or traceparent.get():
                return await owner
            context = copy_context()  # a task of its own: asyncssh's runs in the context of all connections of the server
            context.run(traceparent.set, traced)
            return await asyncio.get_running_loop().create_task(owner, context=context)
        finally:
            self._services.observer.step_took("keys", time.monotonic() - started)

    async def _validate_key_again(self, key: ClientKey) -> Identity | None:
        options = KeyOptions()
        if self._shared.certificates.checks_keys:
            options = await self._shared.certificates.check_key(key.blob, key.fingerprint, self.record.address)
        if (name := await self._owner(key)) is None:
            return None
        (await self._shared.policy.check(name, key.facts, options, self.record.address)).check(self._flags)
        return Identity(name=name, fingerprint=key.fingerprint)

    async def _validate_certificate_again(self, blob: bytes) -> Identity:
        _, identity, facts, options = await self._shared.certificates.judge(blob, self.record.address)
        (await self._shared.policy.check(identity.name, facts, options, self.record.address)).check(self._flags)
        return identity

    async def _reauthorize(self) -> None:
        """Before a session: raises Revoked when the key is not this identity's any more, Undecided when the backend cannot answer."""
        now = time.monotonic()
        if now - self._validated_at < TRUSTED_SECONDS:
            return
        assert self._validate_again is not None
        try:
            identity = await self._validate_again()
        except NotAccepted as no:
            raise Revoked(f"the key that logged in is not accepted any more: {no}") from None
        if identity != self.record.identity:
            whose = "nobody's" if identity is None else f"{identity.name}'s"
            raise Revoked(f"the key that logged in is {whose} now")
        self._validated_at = now

    def _send_banner(self, message: str) -> None:
        """Sends `message` as a banner (RFC 4252 section 5.4), once, before the failure: the user need not suspect the key."""
        if self._connection is not None and not self._banner_sent:
            self._banner_sent = True
            self._connection.send_auth_banner(message + "\r\n")

    def is_candidate(self) -> bool:
        return self._candidate is not None

    def accepts_flags(self, flags: int | None) -> bool:
        assert self._candidate is not None
        try:
            self._needs.check(flags)
        except NotAccepted as no:
            identity, self._candidate = self._candidate, None
            self._refuse_by_policy(identity, no)
            return False
        self._flags = flags
        return True

    def bad_signature(self, detail: str = "") -> None:
        """The key is known and its signature is wrong."""
        fingerprint, self._candidate = self._candidate.fingerprint if self._candidate else "", None
        if detail:
            _log.warning("a connection from %s (%s) cannot log in: %s", self.record.address, self.record.client_version, detail)
        self._fail("bad_signature", fingerprint, detail)

    def unusable_key(self, detail: str) -> None:
        self._candidate = None
        self._fail("unusable_key", detail=detail)

    def failure_due(self) -> None:
        """Counts requests for other methods, such as password, and superseded requests; keys were counted when they were validated."""
        counted, self._failure_counted = self._failure_counted, False
        if not counted:
            self._failures += 1
            self._check_attempts()

    def _fail(self, reason: AuthFailure, fingerprint: str = "", detail: str = "", counted: bool = True) -> None:
        self._services.observer.auth_failed(self.record, reason, fingerprint, detail)
        if counted:
            if self._ticket is not None and reason != "undecided":
                self._ticket.failed("auth")
            self._failure_counted = True
            self._failures += 1
            self._check_attempts()

    def _check_attempts(self) -> None:
        if self._failures >= self._config.limits.auth_attempts:
            self._outcome = "auth_failed"
            self._services.observer.auth_failed(self.record, "too_many", "", f"{self._failures} attempts")
            raise asyncssh.DisconnectError(DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "Too many authentication failures")

    def auth_completed(self) -> None:
        """The candidate's signature has been verified: it becomes the connection's identity."""
        identity = self.record.identity = self._candidate
        if identity is None:
            raise asyncssh.DisconnectError(DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "No key was proven")
        if self._ticket is not None:
            self._ticket.authenticated()
        self._owners.clear()
        self.idle_since = time.monotonic()
        self._services.observer.auth_succeeded(self.record, identity)

    # -- sessions ----------------------------------------------------------------------------------------------------

    def session_requested(self) -> tuple[Channel, Session]:
        """A channel with its session. Raises ChannelOpenError beyond the limit, and while the worker drains.

        A draining worker opens only a connection's first channel: that client has just logged in. When a ControlMaster's channel is
        refused OpenSSH's client dials a connection of its own, whatever the reason code.
        """
        identity = self.record.identity
        assert identity is not None and self._connection is not None
        if self._number and self._shared.draining():
            self._services.observer.channel_refused(self.record)
            if self._leaving:
                self._quiet_since, self._keepalive_sent, self._keepalive_answered = time.monotonic(), False, False
                raise Unanswered
            raise asyncssh.ChannelOpenError(OPEN_RESOURCE_SHORTAGE, "The service is restarting, connect again")
        self._number += 1
        limit = self._config.limits.sessions_per_connection
        if len(self.sessions) >= limit and sum(not session.channel_over for session in self.sessions.values()) >= limit:
            refuse(self.record, identity, self._number, self._services, f"{counted(limit, 'session', 'are')} open on this connection")
            raise asyncssh.ChannelOpenError(OPEN_RESOURCE_SHORTAGE, "too many concurrent sessions")
        number = self._number
        session = new_session(self.record, identity, number, self._services, self._reauthorize, lambda: self._closed(number))
        self.sessions[number] = session
        self.idle_since = None
        return self._connection.channel_class(self._connection, self._flow), session

    def _closed(self, number: int) -> None:
        self.sessions.pop(number, None)
        if not self.sessions:
            self.idle_since = time.monotonic()
