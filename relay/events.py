"""Observer: what a worker tells whoever listens (metrics, audit), and the records it tells it about.

Contract: every connection that opened is closed exactly once; every session that started ends exactly once, either with an
exit of the git host or with an error, never both. The hot path increments the integers of `SessionRecord`; observers read them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from relay.model import Command, Exit, Identity, RefUpdate, Route

Step = Literal["handshake", "keys", "access", "routes", "upstream"]
BackendQuestion = Literal["keys", "access", "routes"]
Changing = Literal["keys", "access", "routes", "certificates", "revoked", "audit", "configuration"]  # what an operator changes, or rotates
AuthFailure = Literal[
    "unknown_key",  # offered or proven, but nobody's
    "bad_signature",  # a known key whose signature did not verify
    "unusable_key",  # a key that cannot be decoded, or of a type that is not known
    "wrong_user",  # another user name than the configured one
    "undecided",  # the keys backend could not answer
    "too_many",  # more attempts than auth_attempts
    "grace",  # login_grace_seconds passed
    "certificate",  # a certificate that is not accepted, for another reason than the following three
    "expired",  # a certificate, or a key with an expiry-time, outside its time
    "source_address",  # a certificate or a key that may not be used from this address
    "revoked",  # a key, certificate or CA that is in the revocation list
    "protocol",  # broke the SSH protocol before it was logged in
    "no_common_algorithm",  # no key exchange, host key type, cipher or MAC that both sides know
]
ConnectionOutcome = Literal[
    "ok",  # authenticated, and closed by either side
    "no_auth",  # left before authenticating: scanners, ssh-keyscan
    "probe",  # said nothing and left within a second: a balancer's or a kubelet's check of the port
    "auth_failed",
    "grace",
    "protocol",  # broke the SSH protocol
    "no_common_algorithm",  # client and relay have no key exchange, host key type, cipher or MAC in common
    "limited",  # refused by a limit before the handshake
    "proxy",  # refused for its PROXY header
    "drained",
    "idle",  # authenticated, and without a session for connection_idle_seconds
    "lost",  # authenticated, then reset or timed out
]


@dataclass(slots=True)
class ConnectionRecord:
    """One client connection, as observers see it."""

    id: str
    address: str
    port: int
    since: float = field(default_factory=time.time)  # seconds since the epoch
    started: float = field(default_factory=time.monotonic)
    user: str = ""
    client_version: str = ""
    identity: Identity | None = None


class Asked(Protocol):
    """What a client asked git for, as far as it was read as it went by."""

    @property
    def kind(self) -> Literal["", "clone", "fetch", "list", "push"]:
        """Empty when it never became known."""

    @property
    def version(self) -> int | None:
        """Of git's protocol; 0 and 1 are told apart by what was asked for."""

    @property
    def updates(self) -> Sequence[RefUpdate]:
        """Of a push, perhaps only the first."""

    @property
    def count(self) -> int:
        """All updates that were read."""

    @property
    def truncated(self) -> bool:
        """Whether more may have followed that was not read."""


@dataclass(slots=True)
class SessionRecord:
    """One git session. `bytes_in` is client to git host, `bytes_out` git host to client (stdout and stderr)."""

    id: str
    connection: ConnectionRecord
    identity: Identity
    since: float = field(default_factory=time.time)
    started: float = field(default_factory=time.monotonic)
    # managed by the session
    command: Command | None = None
    route: Route | None = None
    upstream: str = ""  # who is asked, or has served
    address: str = ""  # of the git host, once leased
    asked: Asked | None = None
    bytes_in: int = 0
    bytes_out: int = 0


@dataclass(slots=True)
class Outcome:
    """How one session ended; `result` is one of a closed set and tells client fault, policy, upstream fault and ours apart."""

    result: Literal["ok", "exit", "signal", "client", "policy", "upstream", "relay"]
    reason: str  # "ok", "exit", "signal", or the RelayError's reason
    exit: Exit
    seconds: float
    detail: str = ""  # exact, for the log and the audit line; never for the client


class Observer:
    """The base ignores everything; subclasses override what they count."""

    def connection_opened(self, connection: ConnectionRecord) -> None: ...

    def connection_closed(self, connection: ConnectionRecord, outcome: ConnectionOutcome, detail: str = "") -> None: ...

    def connection_refused(self, address: str, reason: ConnectionOutcome, detail: str) -> None:
        """Turned away at the door; `connection_opened` was never told."""

    def auth_failed(self, connection: ConnectionRecord, reason: AuthFailure, fingerprint: str = "", detail: str = "") -> None: ...

    def auth_succeeded(self, connection: ConnectionRecord, identity: Identity) -> None: ...

    def channel_refused(self, connection: ConnectionRecord) -> None:
        """A draining worker did not open it; the client is to connect anew."""

    def command_rejected(self, session: SessionRecord, reason: str, detail: str) -> None:
        """Told for every exec that is not carried, besides `session_ended`."""

    def session_started(self, session: SessionRecord) -> None: ...

    def session_ended(self, session: SessionRecord, outcome: Outcome) -> None: ...

    def step_took(self, step: Step, seconds: float) -> None: ...

    def upstream_dialed(self, upstream: str, address: str, result: str, seconds: float, detail: str = "") -> None:
        """`result`: ok, or the Unavailable's reason."""

    def upstream_leased(self, upstream: str, seconds: float, warm: bool) -> None: ...

    def upstream_health(self, upstream: str, address: str, up: bool, detail: str = "") -> None:
        """An address was found up or down, for the first time or otherwise than before; by a check or by how dials went."""

    def backend_asked(self, question: BackendQuestion, source: str, seconds: float, result: str) -> None:
        """One question that reached the backend, not answered by a cache. `result`: ok | no | error, or the Undecided's `why`."""

    def cache_asked(self, question: BackendQuestion, result: str) -> None:
        """`result`: hit | negative | miss (the backend was asked) | joined (another's question under way) | stale (it could not answer) |
        shared (another relay had asked)."""

    def change_told(self, what: str, problems: list[str]) -> None:
        """Told when a change of `what` (a Changing) is found not to be in force, with the reasons; and with none when all of it is."""

    def shared_exchanged(self, result: str) -> None:
        """One exchange with the other relays through their Redis. `result`: ok, or the Undecided's `why`."""


EVENTS = tuple(name for name in vars(Observer) if not name.startswith("_"))


class Observers(Observer):
    """Tells several observers, in order; each only of what it does not ignore, which is worked out once."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        for event in EVENTS:
            ignored = getattr(Observer, event)
            told = [tell for one in observers if getattr(tell := getattr(one, event), "__func__", None) is not ignored]
            if told:
                setattr(self, event, told[0] if len(told) == 1 else _all(told))


def _all(told: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def tell(*what: object, **named: object) -> None:
        for one in told:
            one(*what, **named)

    return tell
