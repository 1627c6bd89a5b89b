"""The audit lines: each struct is one kind of line, in JSON and on the audit page; relay.observe.audit decides when one is written.

Text that a client chose has its control characters escaped and its length capped, and the client's address comes before it in every line.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from relay.events import Asked, AuthFailure, ConnectionRecord, Outcome, ServedBy, SessionRecord
from relay.model import Identity
from relay.text import escaped, redacted, rfc3339

LINE_BYTES = 4096  # PIPE_BUF: the kernel writes up to this much to a pipe in one piece, so lines of two workers do not mix
SPARE_BYTES = 64  # kept free in a line with ref updates, for its newline and the digits of refs_more

# limits of single fields, in bytes within a JSON string; all of them and the field names fit into LINE_BYTES
NAME_BYTES = 255
REPOSITORY_BYTES = 1100
DETAIL_BYTES = 500
KEY_ID_BYTES = 160
WORD_BYTES = 80
REF_BYTES = 300

WrittenAt = Annotated[str, Meta(description="when the line was written: RFC 3339, UTC, milliseconds")]
ConnectionId = Annotated[str, Meta(description="id of the client connection")]
ClientAddress = Annotated[str, Meta(description="IP address of the client; behind a trusted load balancer the one in its PROXY header")]
ClientPort = Annotated[int, Meta(description="TCP port of the client")]
Fingerprint = Annotated[str, Meta(description="SHA256 fingerprint of the client's key, empty when the client offered none")]
Result = Literal["ok", "exit", "signal", "client", "policy", "upstream", "relay"]  # of relay.events.Outcome
ReasonWord = Annotated[str, Meta(description="one word of a closed set")]
AuthRefusal = Annotated[AuthFailure, Meta(description="why it was refused")]
Detail = Annotated[str, Meta(description="what happened, in full; its wording may change, so do not parse it")]
SessionId = Annotated[str, Meta(description="id of the session, unique together with the connection's id")]
IdentityName = Annotated[str, Meta(description="identity that the client's verified key belongs to")]
ServiceName = Annotated[str, Meta(description="git service; empty when the client asked for a shell, or its command could not be parsed")]
RepositoryName = Annotated[str, Meta(description="canonical name: no slash at either end, no .git suffix")]
MovedFrom = Annotated[str, Meta(description="name that the client asked for, if the repository has moved; empty otherwise")]
UpstreamName = Annotated[str, Meta(description="name of the upstream; empty when the session was routed to none")]
WaitedSeconds = Annotated[float, Meta(description="of these, seconds in line for the git host; 0 when a connection was free")]
HostAddress = Annotated[str, Meta(description="address of the git host; empty when the session got no connection to one")]


class AuditCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """The OpenSSH certificate that the client logged in with."""

    ca: Annotated[str, Meta(description="SHA256 fingerprint of the CA's key")]
    key_id: Annotated[str, Meta(description="key id, as the CA wrote it")]
    serial: Annotated[int, Meta(description="serial number; 0 when the CA sets none")]


UsedCertificate = Annotated[AuditCertificate | None, Meta(description="certificate that the client logged in with; null for a plain key")]


class Updated(msgspec.Struct, frozen=True, kw_only=True):
    """One ref that a push asks to change; an object id of zeros means that the ref is created (`old`) or deleted (`new`)."""

    ref: Annotated[str, Meta(description="full name of the ref")]
    old: Annotated[str, Meta(description="object id that the client believed the ref to have")]
    new: Annotated[str, Meta(description="object id that the ref was to get")]


RequestKind = Annotated[
    Literal["", "clone", "fetch", "list", "push"],
    Meta(description="what the client asked git for, by the requests that passed; empty when they did not show it"),
]
GitVersion = Annotated[int | None, Meta(description="version of git's protocol; 0 or 1 follows from GIT_PROTOCOL")]
RefUpdates = Annotated[
    list[Updated],
    Meta(description="of a push: the ref updates that it asked for, as many as fit into the line; the git host may refuse some"),
]
RefsMore = Annotated[int, Meta(description="number of further ref updates that do not fit into the line")]
RefsTruncated = Annotated[
    bool, Meta(description="true when the push had more ref updates than the relay read, or the relay could not parse them")
]


class _Line(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    time: WrittenAt
    connection: ConnectionId
    address: ClientAddress
    port: ClientPort


class AuditSession(_Line, frozen=True, kw_only=True, tag="session"):
    """A session that ended."""

    session: SessionId
    identity: IdentityName
    key: Fingerprint
    certificate: UsedCertificate
    service: ServiceName
    repository: RepositoryName
    moved_from: MovedFrom
    protocol: Annotated[str, Meta(description="GIT_PROTOCOL as the client set it; empty when the client set none")]
    operation: Annotated[str, Meta(description="of the LFS services: download or upload; empty for others")]
    upstream: UpstreamName
    host: HostAddress
    kind: RequestKind
    git_version: GitVersion
    served_by: Annotated[
        ServedBy, Meta(description="cache when at least one answer came from [packs], else host; empty when neither was reached")
    ]
    replays: Annotated[int, Meta(description="how often another connection was to go on with the session after its git host was lost")]
    refs: RefUpdates
    refs_more: RefsMore
    refs_truncated: RefsTruncated
    bytes_in: Annotated[int, Meta(description="bytes from client to git host")]
    bytes_out: Annotated[int, Meta(description="bytes from git host to client, stdout and stderr")]
    seconds: Annotated[float, Meta(description="seconds from the command to the end of the session")]
    waited_seconds: WaitedSeconds
    exit_status: Annotated[
        int | None, Meta(description="exit status sent to the client; null after a signal, or when the client had disconnected")
    ]
    exit_signal: Annotated[str | None, Meta(description="signal that ended the command on the git host, without SIG")]
    result: Annotated[Result, Meta(description="ok, exit, signal, or at fault: client, policy, upstream, relay")]
    reason: ReasonWord
    detail: Detail


class SessionBegan(_Line, frozen=True, kw_only=True, tag="session_began"):
    """A session that is about to begin; only with `audit_required`. A `session` or `command_rejected` line follows when it ends."""

    session: SessionId
    identity: IdentityName
    key: Fingerprint
    certificate: UsedCertificate


class CommandRejected(_Line, frozen=True, kw_only=True, tag="command_rejected"):
    """A command that did not run: the relay refused it, or the git host has no such repository."""

    session: SessionId
    identity: IdentityName
    key: Fingerprint
    certificate: UsedCertificate
    service: ServiceName
    repository: RepositoryName
    moved_from: MovedFrom
    upstream: UpstreamName
    host: HostAddress
    kind: RequestKind
    git_version: GitVersion
    refs: RefUpdates
    refs_more: RefsMore
    refs_truncated: RefsTruncated
    seconds: Annotated[float, Meta(description="seconds from the command to its refusal")]
    waited_seconds: WaitedSeconds
    exit_status: Annotated[int | None, Meta(description="exit status sent to the client; null when the client had disconnected")]
    times: Annotated[
        int, Meta(description="number of sessions that the line reports: above 1 when a connection exceeded its limit several times")
    ]
    result: Annotated[Result, Meta(description="at fault: client, policy, relay")]
    reason: ReasonWord
    detail: Detail


class AuthFailed(_Line, frozen=True, kw_only=True, tag="auth_failed"):
    """One refused login attempt; a client that offers several keys may be refused several times before it logs in."""

    key: Fingerprint
    reason: AuthRefusal
    user: Annotated[str, Meta(description="user name that the client gave")]
    client_version: Annotated[str, Meta(description="SSH version line of the client")]
    detail: Detail


class LoginFailed(_Line, frozen=True, kw_only=True, tag="login_failed"):
    """A connection that tried to log in and ended without success. One line for each connection, so count and ban by this one."""

    key: Fingerprint
    reason: Annotated[
        AuthFailure | Literal["no_key"],
        Meta(description="reason of the last refusal; no_key: the client tried only other methods, such as passwords"),
    ]
    attempts: Annotated[int, Meta(description="number of refused attempts, each an auth_failed line; undecided ones are not counted")]
    user: Annotated[str, Meta(description="user name that the client gave")]
    client_version: Annotated[str, Meta(description="SSH version line of the client")]


class WorkerLost(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="worker_lost"):
    """A worker process that died; its sessions ended with it and have no line of their own."""

    time: WrittenAt
    pid: Annotated[int, Meta(description="process id of the worker, as in the log")]
    how: Annotated[str, Meta(description="how the worker ended: by a signal or with an exit status")]
    sessions: Annotated[int, Meta(description="number of sessions that it served about a second before, when the supervisor last asked it")]


SessionLine = TypeVar("SessionLine", AuditSession, CommandRejected)
AuditLine = AuditSession | CommandRejected | SessionBegan | AuthFailed | LoginFailed | WorkerLost


def audit_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of an audit line."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "git-ssh-relay audit", **msgspec.json.schema(AuditLine)}


# -- lines made from what observers receive ----------------------------------------------------------------------------------------


def refusal(connection: ConnectionRecord, reason: AuthFailure, fingerprint: str, detail: str) -> AuthFailed:
    return AuthFailed(**_login_fields(connection, fingerprint), reason=reason, detail=_detail(detail))


def failed_login(connection: ConnectionRecord, reason: AuthFailure | Literal["no_key"], fingerprint: str, attempts: int) -> LoginFailed:
    return LoginFailed(**_login_fields(connection, fingerprint), reason=reason, attempts=attempts)


def lost(pid: int, how: str, sessions: int) -> WorkerLost:
    return WorkerLost(time=rfc3339(time.time()), pid=pid, how=_word(how), sessions=sessions)


def rejection(session: SessionRecord, outcome: Outcome, times: int = 1) -> CommandRejected:
    return _with_refs(CommandRejected(**_session_fields(session, outcome), times=times), session.asked)


def began(session: SessionRecord) -> SessionBegan:
    return SessionBegan(
        **_connection_fields(session.connection),
        session=_word(session.id),
        identity=_name(session.identity.name),
        key=_word(session.identity.fingerprint),
        certificate=_certified(session.identity),
    )


def ended(session: SessionRecord, outcome: Outcome) -> AuditSession:
    command = session.command
    line = AuditSession(
        **_session_fields(session, outcome),
        protocol=_word(command.protocol or "") if command is not None else "",
        operation=_word(command.operation or "") if command is not None else "",
        served_by=session.served_by,
        replays=session.replays,
        bytes_in=session.bytes_in,
        bytes_out=session.bytes_out,
        exit_signal=_word(outcome.exit.signal) if outcome.exit.signal is not None else None,
    )
    return _with_refs(line, session.asked)


def _connection_fields(connection: ConnectionRecord) -> dict[str, Any]:
    """The fields of `_Line`."""
    return {
        "time": rfc3339(time.time()),
        "connection": _word(connection.id),
        "address": _word(connection.address),
        "port": connection.port,
    }


def _login_fields(connection: ConnectionRecord, fingerprint: str) -> dict[str, Any]:
    """The fields that both lines about logins have."""
    return {
        **_connection_fields(connection),
        "key": _word(fingerprint),
        "user": _name(connection.user),
        "client_version": _name(connection.client_version),
    }


def _session_fields(session: SessionRecord, outcome: Outcome) -> dict[str, Any]:
    """The fields that both lines about sessions have; `_with_refs` adds the ref updates."""
    command, asked = session.command, session.asked
    return {
        **_connection_fields(session.connection),
        "session": _word(session.id),
        "identity": _name(session.identity.name),
        "key": _word(session.identity.fingerprint),
        "certificate": _certified(session.identity),
        "service": command.service if command is not None else "",
        "repository": _repository(command.repository) if command is not None else "",
        "moved_from": _name(session.moved_from),
        "upstream": _name(session.upstream),
        "host": _name(session.address),
        "kind": _kind(asked),
        "git_version": asked.version if asked is not None else None,
        "refs": [],
        "refs_more": 0,
        "refs_truncated": asked is not None and asked.truncated,
        "seconds": round(outcome.seconds, 6),
        "waited_seconds": round(session.waited, 6),
        "exit_status": outcome.exit.status,
        "result": outcome.result,
        "reason": _word(outcome.reason),
        "detail": _detail(outcome.detail),
    }


def _kind(asked: Asked | None) -> RequestKind:
    return asked.kind if asked is not None else ""


def _with_refs(line: SessionLine, asked: Asked | None) -> SessionLine:
    """The line with as many ref updates as fit into LINE_BYTES."""
    if asked is None or not asked.count:
        return line
    refs: list[Updated] = []
    free = LINE_BYTES - SPARE_BYTES - len(msgspec.json.encode(line))
    for update in asked.updates:
        shown = Updated(ref=escaped(update.ref, REF_BYTES), old=update.old, new=update.new)
        free -= len(msgspec.json.encode(shown)) + 1
        if free < 0:
            break
        refs.append(shown)
    return msgspec.structs.replace(line, refs=refs, refs_more=asked.count - len(refs))


def _certified(identity: Identity) -> AuditCertificate | None:
    used = identity.certificate
    return None if used is None else AuditCertificate(ca=_word(used.ca), key_id=escaped(used.key_id, KEY_ID_BYTES), serial=used.serial)


_word = partial(escaped, limit=WORD_BYTES)
_name = partial(escaped, limit=NAME_BYTES)
_repository = partial(escaped, limit=REPOSITORY_BYTES)


def _detail(text: str) -> str:
    return escaped(redacted(text), DETAIL_BYTES)
