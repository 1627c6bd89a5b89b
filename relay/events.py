"""Observer: the events of a worker, which metrics and audit receive, and the records that the events carry.

Contract: for every `connection_opened` there is exactly one `connection_closed`; for every `session_started` exactly one
`session_ended`, with an exit of the git host or with an error, never both. The hot path increments the integers of `SessionRecord`;
observers read them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, Protocol

from relay.model import Command, Exit, Identity, RefUpdate, Route

Step = Literal["handshake", "keys", "access", "routes", "upstream"]
BackendQuestion = Literal["keys", "access", "routes"]
WaitsFor = Literal[  # why a session stands in line for a git host
    "identity",  # its identity has as many connections as it may have
    "repository",  # its repository has as many connections as it may have
    "upstream",  # all connections of the git host are in use
    "paused",  # the operator paused the upstream, or drained all its addresses
    "away",  # no address of the upstream is up
]
Changing = Literal["keys", "access", "routes", "certificates", "revoked", "audit", "configuration"]  # what an operator may change or rotate
AuthFailure = Literal[
    "unknown_key",  # the key has no owner
    "bad_signature",  # the key has an owner, but the signature did not verify
    "unusable_key",  # a key that cannot be decoded or has an unknown type
    "wrong_user",  # a user name other than the configured one
    "undecided",  # the keys backend could not answer
    "too_many",  # more attempts than auth_attempts
    "grace",  # login_grace_seconds passed
    "certificate",  # a certificate that is refused for a reason other than the next three
    "expired",  # a certificate or a key with an expiry-time that is not valid now, or an identity that may log in no longer by [policy]
    "source_address",  # a certificate, a key, or by [policy] an identity, that is not valid from this address
    "key_type",  # a type of key, or of a certificate's CA, that [policy] does not allow
    "key_size",  # an RSA key, or a certificate's CA, with fewer bits than [policy] asks for
    "not_touched",  # a security key that signed without a touch
    "not_verified",  # a security key that signed without its PIN or another check of its owner, though verify-required asks for it
    "revoked",  # a key, certificate or CA that is in the revocation list
    "protocol",  # the client broke the SSH protocol before its login
    "no_common_algorithm",  # client and relay have no key exchange, host key type, cipher or MAC in common
]
ConnectionOutcome = Literal[
    "ok",  # logged in, and closed by either side
    "no_auth",  # disconnected before it tried to log in: scanners, ssh-keyscan
    "probe",  # disconnected within a second without sending anything: a port check of a load balancer or kubelet
    "auth_failed",
    "grace",
    "protocol",  # broke the SSH protocol
    "no_common_algorithm",  # client and relay have no key exchange, host key type, cipher or MAC in common
    "limited",  # refused by a limit before the handshake
    "proxy",  # refused for its PROXY header
    "drained",
    "idle",  # logged in, and without a session for connection_idle_seconds
    "lost",  # logged in, then reset or timed out
]
SourceKind = Literal[
    "stranger",  # nobody has logged in from there to this worker within known_source_seconds
    "known",  # somebody has, so failed logins weigh less
    "exempt",  # in limits.exempt, or a load balancer's own connection: not penalised, nor counted by source
]
ReplayResult = Literal[
    "served",  # the next git host said what the lost one had said, and went on
    "differed",  # it said something else
    "lost",  # it was lost too; a request is replayed once
    "budget",  # not replayed: replay_budget was used up
    "unavailable",  # no connection came within wait_seconds
    "ended",  # the client left, the session was ended, or the next git host refused the command
]

PacksResult = Literal[
    "hit",  # answered from an entry
    "joined",  # from one that another session fills
    "filled",  # from one that this session has begun to fill
    "passed",  # the git host answered: the request is not kept, the first of its kind, or the git host does not agree
    "failed",  # an entry that was to answer failed; another one, or the git host, goes on if no pack data was passed on
]
PacksDirection = Literal["in", "out"]  # from git hosts to entries, from entries to clients
ServedBy = Literal["", "host", "cache"]
TraceResult = Literal[
    "sent",
    "failed",  # the collector did not take them; they are lost
    "dropped",  # queue_spans waited already
]

# of the login or session that this task works for (W3C Trace Context): handed to HTTP authorities; empty while it is not traced
traceparent: ContextVar[str] = ContextVar("traceparent", default="")


@dataclass(slots=True)
class ConnectionRecord:
    """A client connection, for observers."""

    id: str
    address: str
    port: int
    since: float = field(default_factory=time.time)  # seconds since the epoch
    started: float = field(default_factory=time.monotonic)
    source: SourceKind = "stranger"
    user: str = ""
    client_version: str = ""
    identity: Identity | None = None
    traceparent: str = ""  # of its login; managed by the observer that traces


class Asked(Protocol):
    """What a client asked git for, as far as the relay read it from the passing requests."""

    @property
    def kind(self) -> Literal["", "clone", "fetch", "list", "push"]:
        """Empty while unknown."""

    @property
    def version(self) -> int | None:
        """Version of git's protocol; 0 or 1 follows from GIT_PROTOCOL."""

    @property
    def updates(self) -> Sequence[RefUpdate]:
        """Ref updates of a push, at most a limited number of them."""

    @property
    def count(self) -> int:
        """Number of all ref updates that were read."""

    @property
    def truncated(self) -> bool:
        """Whether the push may have ref updates that were not read."""


@dataclass(slots=True)
class SessionRecord:
    """A git session, for observers. `bytes_in` is client to git host, `bytes_out` git host to client (stdout and stderr)."""

    id: str
    connection: ConnectionRecord
    identity: Identity
    since: float = field(default_factory=time.time)
    started: float = field(default_factory=time.monotonic)
    # managed by the session
    command: Command | None = None  # with the name that the repository has now
    moved_from: str = ""  # the name that the client asked for, if the repository has moved
    route: Route | None = None
    upstream: str = ""  # name of the upstream that is asked or serves
    address: str = ""  # of the git host, once leased
    asked: Asked | None = None
    waited: float = 0.0  # seconds in line for a git host
    bytes_in: int = 0
    bytes_out: int = 0
    served_by: ServedBy = ""  # cache: an entry answered, at least in part; empty until a git host or an entry serves
    replays: int = 0  # how often another connection was to go on after the git host was lost
    traceparent: str = ""  # of the session; managed by the observer that traces


@dataclass(slots=True)
class Outcome:
    """How a session ended. `result`: ok, exit, signal, or at fault: client, policy, upstream, relay."""

    result: Literal["ok", "exit", "signal", "client", "policy", "upstream", "relay"]
    reason: str  # "ok", "exit", "signal", or the RelayError's reason
    exit: Exit
    seconds: float
    detail: str = ""  # exact, for log and audit; never sent to the client


class Observer:
    """The base class ignores every event; subclasses override those that they need."""

    def connection_opened(self, connection: ConnectionRecord) -> None: ...

    def connection_closed(self, connection: ConnectionRecord, outcome: ConnectionOutcome, detail: str = "") -> None: ...

    def connection_refused(self, address: str, reason: ConnectionOutcome, detail: str) -> None:
        """Refused before the handshake; there is no `connection_opened` for it."""

    def auth_failed(self, connection: ConnectionRecord, reason: AuthFailure, fingerprint: str = "", detail: str = "") -> None: ...

    def auth_succeeded(self, connection: ConnectionRecord, identity: Identity) -> None: ...

    def channel_refused(self, connection: ConnectionRecord) -> None:
        """A draining worker refused to open a channel; the client should open a new connection."""

    def command_rejected(self, session: SessionRecord, reason: str, detail: str) -> None:
        """For every command that is refused; `session_ended` follows."""

    def session_started(self, session: SessionRecord) -> None: ...

    def session_replayed(self, session: SessionRecord, result: ReplayResult) -> None:
        """The git host was lost, and another connection went on with the session, or did not; for each such loss."""

    def packs_asked(self, session: SessionRecord, result: PacksResult) -> None:
        """How a fetch is answered that could be kept; after `failed` another one follows, unless the session is lost."""

    def packs_bytes(self, direction: PacksDirection, count: int) -> None:
        """A fill, or an entry on its way to a client, has ended."""

    def session_ended(self, session: SessionRecord, outcome: Outcome) -> None: ...

    def step_took(self, step: Step, seconds: float) -> None: ...

    def upstream_dialed(self, upstream: str, address: str, result: str, seconds: float, detail: str = "") -> None:
        """`result`: ok, or the `reason` of Unavailable."""

    def upstream_leased(self, upstream: str, seconds: float, warm: bool) -> None: ...

    def upstream_waited(self, upstream: str, waits_for: WaitsFor, seconds: float) -> None:
        """A session has stood in line, when it came for `waits_for`, and got a place at the git host, was refused or has left."""

    def upstream_health(self, upstream: str, address: str, up: bool, detail: str = "") -> None:
        """The state of an address became known or changed, by a check or by dials."""

    def backend_asked(self, question: BackendQuestion, source: str, seconds: float, result: str) -> None:
        """A question that reached the backend, past the cache. `result`: ok | no | error, or the `why` of Undecided."""

    def cache_asked(self, question: BackendQuestion, result: str) -> None:
        """A question to the cache. `result`: hit | negative | miss (the backend was asked) | joined (the same question was under way) |
        stale (the backend could not answer) | shared (another relay had asked)."""

    def change_reported(self, what: str, problems: list[str]) -> None:
        """A change of `what` (a Changing) is not in force, for these reasons; or with no problem: it is in force."""

    def shared_exchanged(self, result: str) -> None:
        """An exchange with other relays through the shared Redis. `result`: ok, or the `why` of Undecided."""

    def spans_sent(self, result: TraceResult, count: int) -> None:
        """What became of `count` spans of [tracing]."""


EVENTS = tuple(name for name in vars(Observer) if not name.startswith("_"))


class Observers(Observer):
    """Passes each event to several observers, in order, but only to those that override it."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        for event in EVENTS:
            ignored = getattr(Observer, event)
            handlers = [handler for one in observers if getattr(handler := getattr(one, event), "__func__", None) is not ignored]
            if handlers:
                setattr(self, event, handlers[0] if len(handlers) == 1 else _all(handlers))


def _all(handlers: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def call(*arguments: object, **named: object) -> None:
        for handler in handlers:
            handler(*arguments, **named)

    return call
