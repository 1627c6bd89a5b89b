"""Audit: one line for each session, refused authentication and rejected command, as JSON or, on a terminal, as text.

The structs below are the schema; `schema()` gives it as JSON Schema. What a stranger said has its control characters escaped and its
length capped, and in every line the address stands before it. A rejected command is one line, `command_rejected`, in place of `session`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import sys
import time
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from relay.events import AuthFailure, ConnectionRecord, Observer, Outcome, SessionRecord
from relay.log import Format, escaped, is_text, redacted, rfc3339

LINE_BYTES = 4096  # PIPE_BUF: up to here a write to a pipe is never torn by another worker's
BACKLOG_BYTES = 1 << 20  # lines that wait for a disk or a reader; beyond it the oldest are lost
RETRY_SECONDS = 1.0
COMPLAIN_SECONDS = 60.0

# bytes within a JSON string; their sum and the rest of a line stay below LINE_BYTES
NAME_BYTES = 255
REPOSITORY_BYTES = 1100
DETAIL_BYTES = 500
WORD_BYTES = 80

_log = logging.getLogger("relay.audit")

Time = Annotated[str, Meta(description="when the line was written: RFC 3339, UTC, milliseconds")]
Connection = Annotated[str, Meta(description="id of the client connection")]
Address = Annotated[str, Meta(description="IP address of the client; behind a trusted balancer the real one")]
Port = Annotated[int, Meta(description="TCP port of the client")]
Key = Annotated[str, Meta(description="SHA256 fingerprint of the client's key, empty when none was offered")]
Reason = Annotated[str, Meta(description="one word of a closed set")]
Detail = Annotated[str, Meta(description="what exactly happened; not for parsing")]
SessionId = Annotated[str, Meta(description="id of the session, unique with its connection's")]
Who = Annotated[str, Meta(description="identity that the proven key belongs to")]
Service = Annotated[str, Meta(description="git service; empty for a shell's greeting, or if the command was not understood")]
Repository = Annotated[str, Meta(description="canonical name: no slash at either end, no .git suffix")]
Upstream = Annotated[str, Meta(description="name of the git host; empty when none was found or asked")]
Host = Annotated[str, Meta(description="address of the git host; empty when no connection was had")]


class _Line(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    time: Time
    connection: Connection
    address: Address
    port: Port


class SessionLine(_Line, frozen=True, kw_only=True, tag="session"):
    """A session that ended."""

    session: SessionId
    identity: Who
    key: Key
    service: Service
    repository: Repository
    protocol: Annotated[str, Meta(description="GIT_PROTOCOL as the client set it; empty when it did not")]
    operation: Annotated[str, Meta(description="of the LFS services: download or upload; else empty")]
    upstream: Upstream
    host: Host
    bytes_in: Annotated[int, Meta(description="client to git host")]
    bytes_out: Annotated[int, Meta(description="git host to client, stdout and stderr")]
    seconds: Annotated[float, Meta(description="from the command to the end")]
    exit_status: Annotated[int | None, Meta(description="exit status that the client got; null after a signal")]
    exit_signal: Annotated[str | None, Meta(description="signal that ended the git host's command, without SIG")]
    result: Annotated[str, Meta(description="ok, exit, signal, or whose fault it was: client, policy, upstream, relay")]
    reason: Reason
    detail: Detail


class CommandRejected(_Line, frozen=True, kw_only=True, tag="command_rejected"):
    """An exec that was not carried; refused by the relay, or by the git host because it has no such repository."""

    session: SessionId
    identity: Who
    key: Key
    service: Service
    repository: Repository
    upstream: Upstream
    host: Host
    seconds: Annotated[float, Meta(description="from the command to its refusal")]
    exit_status: Annotated[int | None, Meta(description="exit status that the client got")]
    result: Annotated[str, Meta(description="whose fault it was: client, policy, relay")]
    reason: Reason
    detail: Detail


class AuthFailed(_Line, frozen=True, kw_only=True, tag="auth_failed"):
    """An authentication that was refused; a client that offers several keys may be refused several times and then come in."""

    key: Key
    reason: Reason
    user: Annotated[str, Meta(description="user name that the client gave")]
    client_version: Annotated[str, Meta(description="SSH version line of the client")]
    detail: Detail


Line = SessionLine | CommandRejected | AuthFailed


def schema() -> dict[str, Any]:
    """JSON Schema of a line."""
    return msgspec.json.schema(Line)


class Audit(Observer):
    """Writes to `output`, "-" for stdout, or a file (from `base`, if relative) that is opened for appending, mode 0640.

    Raises OSError when it cannot be opened. Later trouble with writing never reaches a session: up to BACKLOG_BYTES of lines are kept
    and tried again.
    """

    def __init__(self, output: str, format: Format = "auto", base: Path = Path()) -> None:
        self._output = output if output == "-" else str(base / output)
        self._text = is_text(format, sys.stdout) if output == "-" else format == "text"
        self._rejected: set[int] = set()  # id() of sessions whose end is told as a rejection
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._torn = False  # the last write left half a line
        self._complained = -COMPLAIN_SECONDS  # when, by the monotonic clock
        self._in_trouble = False  # the log says that lines wait
        self._retry: asyncio.TimerHandle | None = None
        self.lost = 0  # lines, since the start
        self._fd = -1
        self._poll = select.poll()
        self._open()

    # -- the output ------------------------------------------------------------------------------------------------------

    def reopen(self) -> None:
        """After a rotation: the next line goes to a new file. If that cannot be opened the old one stays, and the log says so."""
        if self._output != "-":
            old = self._fd
            try:
                self._open()
            except OSError as error:
                _log.error("audit: %s cannot be opened again, the old file stays in use: %s", self._output, error)
            else:
                self._poll.unregister(old)
                os.close(old)
        self.flush()

    def close(self) -> None:
        """Writes what can be written; what cannot is lost, and the log says how much."""
        if not self.flush():
            self.lost += len(self._backlog)
            _log.error("audit: %d lines were never written to %s", self.lost, self._output)
        if self._retry is not None:
            self._retry.cancel()
        self._poll.unregister(self._fd)  # so that nothing is written any more: the number may be another file's soon
        if self._output != "-":
            os.close(self._fd)

    def flush(self) -> bool:
        """Writes what waits, as far as that does not block; whether nothing waits any more."""
        while self._backlog:
            try:
                self._put(self._backlog[0])
            except OSError as error:
                self._failed(error)
                return False
            self._backlog_bytes -= len(self._backlog.popleft())
        if self._in_trouble:
            self._in_trouble = False
            _log.warning("audit: %s is written again; %d lines were lost since the start", self._output, self.lost)
        return True

    def _open(self) -> None:
        if self._output == "-":
            self._fd = sys.stdout.fileno()
        else:
            # O_NONBLOCK: a named pipe without a reader must not hold the loop
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
            self._fd = os.open(self._output, flags, 0o640)
        self._poll.register(self._fd, select.POLLOUT)

    def _write(self, line: bytes) -> None:
        self._backlog.append(line)
        self._backlog_bytes += len(line)
        while self._backlog_bytes > BACKLOG_BYTES:
            self._backlog_bytes -= len(self._backlog.popleft())
            self.lost += 1
        self.flush()

    def _put(self, line: bytes) -> None:
        """One line, one write: several workers append to the same file."""
        if not self._poll.poll(0):  # a pipe that has room for PIPE_BUF takes a line without blocking
            raise BlockingIOError("the reader does not keep up")
        if self._torn:
            line = b"\n" + line
        if os.write(self._fd, line) < len(line):
            self._torn = True
            raise OSError("only part of a line could be written")
        self._torn = False

    def _failed(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._complained >= COMPLAIN_SECONDS:
            self._complained, self._in_trouble = now, True
            _log.error("audit: %s cannot be written: %s; %d lines wait, %d are lost", self._output, error, len(self._backlog), self.lost)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # the next line tries again
        if self._retry is None:
            self._retry = loop.call_later(RETRY_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self.flush()

    # -- the observer ----------------------------------------------------------------------------------------------------

    def auth_failed(self, connection: ConnectionRecord, reason: AuthFailure, fingerprint: str = "", detail: str = "") -> None:
        line = AuthFailed(
            time=rfc3339(time.time()),
            connection=_word(connection.id),
            address=_word(connection.address),
            port=connection.port,
            key=_word(fingerprint),
            reason=_word(reason),
            user=_name(connection.user),
            client_version=_name(connection.client_version),
            detail=_detail(detail),
        )
        said = f"authentication refused ({line.reason}) to user {line.user!r} from {line.address} {line.key} {line.detail}"
        self._write(_text(line, said) if self._text else _json(line))

    def command_rejected(self, session: SessionRecord, reason: str, detail: str) -> None:
        self._rejected.add(id(session))  # its end, with exit status and time, is told next

    def session_ended(self, session: SessionRecord, outcome: Outcome) -> None:
        rejected = id(session) in self._rejected
        self._rejected.discard(id(session))
        line = _rejection(session, outcome) if rejected else _session(session, outcome)
        self._write(_text(line, _said(line)) if self._text else _json(line))


def _rejection(session: SessionRecord, outcome: Outcome) -> CommandRejected:
    connection, command, route = session.connection, session.command, session.route
    return CommandRejected(
        time=rfc3339(time.time()),
        connection=_word(connection.id),
        address=_word(connection.address),
        port=connection.port,
        session=_word(session.id),
        identity=_name(session.identity.name),
        key=_word(session.identity.fingerprint),
        service=command.service if command is not None else "",
        repository=_repository(command.repository) if command is not None else "",
        upstream=_name(route.upstream) if route is not None else "",
        host=_name(session.address),
        seconds=round(outcome.seconds, 6),
        exit_status=outcome.exit.status,
        result=_word(outcome.result),
        reason=_word(outcome.reason),
        detail=_detail(outcome.detail),
    )


def _session(session: SessionRecord, outcome: Outcome) -> SessionLine:
    connection, command, route = session.connection, session.command, session.route
    return SessionLine(
        time=rfc3339(time.time()),
        connection=_word(connection.id),
        address=_word(connection.address),
        port=connection.port,
        session=_word(session.id),
        identity=_name(session.identity.name),
        key=_word(session.identity.fingerprint),
        service=command.service if command is not None else "",
        repository=_repository(command.repository) if command is not None else "",
        protocol=_word(command.protocol or "") if command is not None else "",
        operation=_word(command.operation or "") if command is not None else "",
        upstream=_name(route.upstream) if route is not None else "",
        host=_name(session.address),
        bytes_in=session.bytes_in,
        bytes_out=session.bytes_out,
        seconds=round(outcome.seconds, 6),
        exit_status=outcome.exit.status,
        exit_signal=_word(outcome.exit.signal) if outcome.exit.signal is not None else None,
        result=_word(outcome.result),
        reason=_word(outcome.reason),
        detail=_detail(outcome.detail),
    )


def _word(text: str) -> str:
    return escaped(text, WORD_BYTES)


def _name(text: str) -> str:
    return escaped(text, NAME_BYTES)


def _repository(text: str) -> str:
    return escaped(text, REPOSITORY_BYTES)


def _detail(text: str) -> str:
    return escaped(redacted(text), DETAIL_BYTES)


# -- the two formats -----------------------------------------------------------------------------------------------------------


def _json(line: Line) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def _text(line: Line, said: str) -> bytes:
    return f"{line.time} {said.rstrip()}\n".encode()


def _said(line: SessionLine | CommandRejected) -> str:
    what = f"{line.identity} from {line.address} {line.service or 'shell'} {line.repository}".rstrip()
    if isinstance(line, CommandRejected):
        return f"{what}: rejected ({line.reason}) {line.detail}"
    how = {"exit": f"exit {line.exit_status}", "signal": f"killed by SIG{line.exit_signal}"}.get(line.result, line.reason)
    where = f" on {line.upstream} ({line.host})" if line.upstream else ""
    return f"{what}{where}: {how} in {line.seconds:.2f} s, {_size(line.bytes_in)} in, {_size(line.bytes_out)} out {line.detail}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
