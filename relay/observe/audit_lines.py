"""What an audit line says: the structs are its schema, in JSON as on the audit page. See relay.observe.audit for when there is one.

What a stranger said has its control characters escaped and its length capped, and in every line the address stands before it.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from relay.events import Asked, AuthFailure, ConnectionRecord, Outcome, SessionRecord
from relay.model import Identity
from relay.text import escaped, redacted, rfc3339

LINE_BYTES = 4096  # PIPE_BUF: up to here a write to a pipe is never torn by another worker's
SPARE_BYTES = 64  # of a line with ref updates: its end, and the digits of refs_more

# bytes within a JSON string; their sum and the rest of a line stay below LINE_BYTES
NAME_BYTES = 255
REPOSITORY_BYTES = 1100
DETAIL_BYTES = 500
KEY_ID_BYTES = 160
WORD_BYTES = 80
REF_BYTES = 300

Time = Annotated[str, Meta(description="when the line was written: RFC 3339, UTC, milliseconds")]
Connection = Annotated[str, Meta(description="id of the client connection")]
Address = Annotated[str, Meta(description="IP address of the client; behind a trusted balancer the real one")]
Port = Annotated[int, Meta(description="TCP port of the client")]
Key = Annotated[str, Meta(description="SHA256 fingerprint of the client's key, empty when none was offered")]
Result = Literal["ok", "exit", "signal", "client", "policy", "upstream", "relay"]  # of an Outcome
ReasonWord = Annotated[str, Meta(description="one word of a closed set")]
Refused = Annotated[AuthFailure, Meta(description="why it was refused")]
Detail = Annotated[str, Meta(description="what exactly happened; not for parsing")]
SessionId = Annotated[str, Meta(description="id of the session, unique with its connection's")]
Who = Annotated[str, Meta(description="identity that the proven key belongs to")]
Service = Annotated[str, Meta(description="git service; empty for a shell's greeting, or if the command was not understood")]
Repository = Annotated[str, Meta(description="canonical name: no slash at either end, no .git suffix")]
Upstream = Annotated[str, Meta(description="name of the git host; empty when none was found or asked")]
Host = Annotated[str, Meta(description="address of the git host; empty when no connection was had")]


class AuditCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """The OpenSSH certificate that an identity was proven with."""

    ca: Annotated[str, Meta(description="SHA256 fingerprint of the CA's key")]
    key_id: Annotated[str, Meta(description="key id, as the CA wrote it")]
    serial: Annotated[int, Meta(description="serial number; 0 when the CA does not number")]


Certificate = Annotated[AuditCertificate | None, Meta(description="what was proven with; null for a plain key")]


class Updated(msgspec.Struct, frozen=True, kw_only=True):
    """One ref that a push asks to change; an id of zeros stands for no object: a ref that is made, or deleted."""

    ref: Annotated[str, Meta(description="full name")]
    old: Annotated[str, Meta(description="object id that the client took it to have")]
    new: Annotated[str, Meta(description="object id that it was to get")]


Kind = Annotated[
    Literal["", "clone", "fetch", "list", "push"],
    Meta(description="what git was asked for, as read from the requests that went by; empty when that did not tell, and of other services"),
]
GitVersion = Annotated[int | None, Meta(description="version of git's protocol; 0 and 1 are told apart by what the client set")]
Refs = Annotated[list[Updated], Meta(description="of a push: what it asked for, as many as the line has room for; git may refuse some")]
RefsMore = Annotated[int, Meta(description="further ref updates, for which the line has no room")]
RefsTruncated = Annotated[bool, Meta(description="whether the push went on after what was read of its list, or could not be read")]


class _Line(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    time: Time
    connection: Connection
    address: Address
    port: Port


class AuditSession(_Line, frozen=True, kw_only=True, tag="session"):
    """A session that ended."""

    session: SessionId
    identity: Who
    key: Key
    certificate: Certificate
    service: Service
    repository: Repository
    protocol: Annotated[str, Meta(description="GIT_PROTOCOL as the client set it; empty when it did not")]
    operation: Annotated[str, Meta(description="of the LFS services: download or upload; else empty")]
    upstream: Upstream
    host: Host
    kind: Kind
    git_version: GitVersion
    refs: Refs
    refs_more: RefsMore
    refs_truncated: RefsTruncated
    bytes_in: Annotated[int, Meta(description="client to git host")]
    bytes_out: Annotated[int, Meta(description="git host to client, stdout and stderr")]
    seconds: Annotated[float, Meta(description="from the command to the end")]
    exit_status: Annotated[int | None, Meta(description="exit status sent to the client; null after a signal, or if it had left")]
    exit_signal: Annotated[str | None, Meta(description="signal that ended the git host's command, without SIG")]
    result: Annotated[Result, Meta(description="ok, exit, signal, or whose fault it was: client, policy, upstream, relay")]
    reason: ReasonWord
    detail: Detail


class CommandRejected(_Line, frozen=True, kw_only=True, tag="command_rejected"):
    """An exec that was not carried; refused by the relay, or by the git host because it has no such repository."""

    session: SessionId
    identity: Who
    key: Key
    certificate: Certificate
    service: Service
    repository: Repository
    upstream: Upstream
    host: Host
    kind: Kind
    git_version: GitVersion
    refs: Refs
    refs_more: RefsMore
    refs_truncated: RefsTruncated
    seconds: Annotated[float, Meta(description="from the command to its refusal")]
    exit_status: Annotated[int | None, Meta(description="exit status sent to the client; null if it had left")]
    times: Annotated[int, Meta(description="sessions that the line is about: above 1 when more were refused because of too many")]
    result: Annotated[Result, Meta(description="whose fault it was: client, policy, relay")]
    reason: ReasonWord
    detail: Detail


class AuthFailed(_Line, frozen=True, kw_only=True, tag="auth_failed"):
    """One attempt that was refused; a client that offers several keys may be refused several times and then come in."""

    key: Key
    reason: Refused
    user: Annotated[str, Meta(description="user name that the client gave")]
    client_version: Annotated[str, Meta(description="SSH version line of the client")]
    detail: Detail


class LoginFailed(_Line, frozen=True, kw_only=True, tag="login_failed"):
    """A connection that ended without having come in, though it tried: once a connection, so this is the line to count and to ban by."""

    key: Key
    reason: Annotated[
        AuthFailure | Literal["no_key"],
        Meta(description="of the last attempt; no_key: it only asked for other ways in, such as passwords, which are not looked at"),
    ]
    attempts: Annotated[int, Meta(description="how many were refused, each an auth_failed; those that could not be decided left out")]
    user: Annotated[str, Meta(description="user name that the client gave")]
    client_version: Annotated[str, Meta(description="SSH version line of the client")]


class WorkerLost(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="worker_lost"):
    """A worker process that died, and took with it the sessions that it served: they have no line of their own."""

    time: Time
    pid: Annotated[int, Meta(description="process id, as the log names the worker")]
    how: Annotated[str, Meta(description="how it ended: a signal or an exit status")]
    sessions: Annotated[int, Meta(description="how many it served when it was last asked, about a second before")]


Pushed = TypeVar("Pushed", AuditSession, CommandRejected)
AuditLine = AuditSession | CommandRejected | AuthFailed | LoginFailed | WorkerLost


def audit_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a line."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "git-ssh-relay audit", **msgspec.json.schema(AuditLine)}


# -- lines of what observers are told --------------------------------------------------------------------------------------------


def refusal(connection: ConnectionRecord, reason: AuthFailure, fingerprint: str, detail: str) -> AuthFailed:
    return AuthFailed(
        time=rfc3339(time.time()),
        connection=_word(connection.id),
        address=_word(connection.address),
        port=connection.port,
        key=_word(fingerprint),
        reason=reason,
        user=_name(connection.user),
        client_version=_name(connection.client_version),
        detail=_detail(detail),
    )


def failed_login(connection: ConnectionRecord, reason: AuthFailure | Literal["no_key"], fingerprint: str, attempts: int) -> LoginFailed:
    return LoginFailed(
        time=rfc3339(time.time()),
        connection=_word(connection.id),
        address=_word(connection.address),
        port=connection.port,
        key=_word(fingerprint),
        reason=reason,
        attempts=attempts,
        user=_name(connection.user),
        client_version=_name(connection.client_version),
    )


def lost(pid: int, how: str, sessions: int) -> WorkerLost:
    return WorkerLost(time=rfc3339(time.time()), pid=pid, how=_word(how), sessions=sessions)


def rejection(session: SessionRecord, outcome: Outcome, times: int = 1) -> CommandRejected:
    connection, command = session.connection, session.command
    line = CommandRejected(
        time=rfc3339(time.time()),
        connection=_word(connection.id),
        address=_word(connection.address),
        port=connection.port,
        session=_word(session.id),
        identity=_name(session.identity.name),
        key=_word(session.identity.fingerprint),
        certificate=_certified(session.identity),
        service=command.service if command is not None else "",
        repository=_repository(command.repository) if command is not None else "",
        upstream=_name(session.upstream),
        host=_name(session.address),
        kind=_kind(session.asked),
        git_version=session.asked.version if session.asked is not None else None,
        refs=[],
        refs_more=0,
        refs_truncated=session.asked is not None and session.asked.truncated,
        seconds=round(outcome.seconds, 6),
        exit_status=outcome.exit.status,
        times=times,
        result=outcome.result,
        reason=_word(outcome.reason),
        detail=_detail(outcome.detail),
    )
    return _with_refs(line, session.asked)


def ended(session: SessionRecord, outcome: Outcome) -> AuditSession:
    connection, command = session.connection, session.command
    line = AuditSession(
        time=rfc3339(time.time()),
        connection=_word(connection.id),
        address=_word(connection.address),
        port=connection.port,
        session=_word(session.id),
        identity=_name(session.identity.name),
        key=_word(session.identity.fingerprint),
        certificate=_certified(session.identity),
        service=command.service if command is not None else "",
        repository=_repository(command.repository) if command is not None else "",
        protocol=_word(command.protocol or "") if command is not None else "",
        operation=_word(command.operation or "") if command is not None else "",
        upstream=_name(session.upstream),
        host=_name(session.address),
        kind=_kind(session.asked),
        git_version=session.asked.version if session.asked is not None else None,
        refs=[],
        refs_more=0,
        refs_truncated=session.asked is not None and session.asked.truncated,
        bytes_in=session.bytes_in,
        bytes_out=session.bytes_out,
        seconds=round(outcome.seconds, 6),
        exit_status=outcome.exit.status,
        exit_signal=_word(outcome.exit.signal) if outcome.exit.signal is not None else None,
        result=outcome.result,
        reason=_word(outcome.reason),
        detail=_detail(outcome.detail),
    )
    return _with_refs(line, session.asked)


def _kind(asked: Asked | None) -> Kind:
    return asked.kind if asked is not None else ""


def _with_refs(line: Pushed, asked: Asked | None) -> Pushed:
    """The line with as many ref updates as leave it shorter than LINE_BYTES."""
    if asked is None or not asked.count:
        return line
    refs: list[Updated] = []
    room = LINE_BYTES - SPARE_BYTES - len(msgspec.json.encode(line))
    for update in asked.updates:
        told = Updated(ref=escaped(update.ref, REF_BYTES), old=update.old, new=update.new)
        room -= len(msgspec.json.encode(told)) + 1
        if room < 0:
            break
        refs.append(told)
    return msgspec.structs.replace(line, refs=refs, refs_more=asked.count - len(refs))


def _certified(identity: Identity) -> AuditCertificate | None:
    told = identity.certificate
    return None if told is None else AuditCertificate(ca=_word(told.ca), key_id=escaped(told.key_id, KEY_ID_BYTES), serial=told.serial)


def _word(text: str) -> str:
    return escaped(text, WORD_BYTES)


def _name(text: str) -> str:
    return escaped(text, NAME_BYTES)


def _repository(text: str) -> str:
    return escaped(text, REPOSITORY_BYTES)


def _detail(text: str) -> str:
    return escaped(redacted(text), DETAIL_BYTES)
