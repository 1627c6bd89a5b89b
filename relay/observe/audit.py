"""Audit: one line for each session, refused attempt, failed login and rejected command, as JSON or, on a terminal, as text.

relay.observe.audit_lines declares the lines. A rejected command has one line, `command_rejected`, and no `session` line. A failed
login has one line, `login_failed`, after those of its attempts. The first session beyond a connection's limit has a line; further ones
are summed up, because a client may ask ten thousand times a second.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import stat
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from relay import config
from relay.errors import TooMany
from relay.events import AuthFailure, ConnectionOutcome, ConnectionRecord, Observer, Outcome, SessionRecord
from relay.model import Identity
from relay.observe.audit_lines import AuditLine, began, ended, failed_login, lost, refusal, rejection
from relay.observe.audit_text import priority, text
from relay.observe.log import Format, is_text
from relay.observe.terminal import is_journal, wants_colours, with_priority
from relay.text import counted

BACKLOG_BYTES = 1 << 20  # of lines that could not be written yet; beyond this the oldest are dropped
RETRY_SECONDS = 1.0
COMPLAIN_SECONDS = 60.0
EXCESS_SECONDS = 60.0  # at most one line in this time for all excess sessions of a connection

_log = logging.getLogger("relay.audit")


@dataclass(slots=True)
class _Failing:
    """The refused login attempts of a connection."""

    attempts: int = 0
    reason: AuthFailure | None = None  # of the last attempt
    key: str = ""  # fingerprint of the last key offered
    undecided: bool = False  # a backend could not decide an attempt; the client did not fail


@dataclass(slots=True)
class _Excess:
    """Sessions of a connection that were refused as too many and have no line yet."""

    written: float  # when the last line about them was written, by the monotonic clock
    times: int = 0
    last: tuple[SessionRecord, Outcome] | None = None


class Audit(Observer):
    """Writes to `output`, "-" for stdout, or a file (from `base`, if relative) that is opened for appending, mode 0640.

    Raises OSError when it cannot be opened. Later trouble with writing never reaches a session: up to BACKLOG_BYTES of lines are kept
    and tried again.
    """

    def __init__(
        self, output: str, format: Format = "auto", base: Path = Path(), tell: Callable[[str, list[str]], None] | None = None
    ) -> None:
        """`tell` is `Observer.change_reported`: called when the output cannot be written or reopened, and when it can be again."""
        self._output = output if output == "-" else str(base / output)
        self._text = is_text(format, sys.stdout) if output == "-" else format == "text"
        self._coloured = output == "-" and wants_colours(sys.stdout.fileno())
        self._journal = output == "-" and is_journal(sys.stdout.fileno())
        self._rejected: set[int] = set()  # id() of sessions whose end is written as command_rejected
        self._failing: dict[int, _Failing] = {}  # by id() of connections that may still log in
        self._excess: dict[int, _Excess] = {}  # by id() of live connections
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._torn = False  # the last write ended in the middle of a line
        self._complained = -COMPLAIN_SECONDS  # when the last complaint was logged, by the monotonic clock
        self._in_trouble = False  # the log has a complaint that is not taken back yet
        self._retry: asyncio.TimerHandle | None = None
        self.lost = 0  # lines dropped since the start
        self._tell_trouble = tell
        self._troubles: dict[str, str] = {}  # "open" or "write": the problem in words
        self._fd = -1
        self._poll = select.poll()
        self._may_block = True  # a regular file never does
        self._open()

    # -- the output ------------------------------------------------------------------------------------------------------

    def reopen(self) -> None:
        """After a rotation: opens the file anew. If that fails the old file stays in use, and an error is logged."""
        if self._output != "-":
            old = self._fd
            try:
                self._open()
            except OSError as error:
                _log.error("audit: %s cannot be opened again, the old file stays in use: %s", self._output, error)
                self._trouble("open", f"audit: {self._output} cannot be opened again, the old file stays in use: {error}")
            else:
                self._trouble("open", None)
                self._poll.unregister(old)
                os.close(old)
        self.flush()

    def close(self) -> None:
        """Flushes; lines that cannot be written are dropped, and the log has their number."""
        if not self.flush():
            self.lost += len(self._backlog)
            _log.error("audit: %s never written to %s", counted(self.lost, "line", "were"), self._output)
        if self._retry is not None:
            self._retry.cancel()
        self._poll.unregister(self._fd)
        self._may_block = True  # no write after this, as nothing is polled: the descriptor's number may be reused
        if self._output != "-":
            os.close(self._fd)

    def flush(self) -> bool:
        """Writes the backlog as far as that does not block; true when it is empty."""
        while self._backlog:
            try:
                self._put(self._backlog[0])
            except OSError as error:
                self._failed(error)
                return False
            self._backlog_bytes -= len(self._backlog.popleft())
        if self._troubles:
            self._trouble("write", None)
        if self._in_trouble:
            self._in_trouble = False
            _log.warning("audit: %s is written again; %s lost since the start", self._output, counted(self.lost, "line", "were"))
        return True

    def _open(self) -> None:
        if self._output == "-":
            self._fd = sys.stdout.fileno()
        else:
            # O_NONBLOCK: opening a named pipe without a reader must not block the event loop
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
            self._fd = os.open(self._output, flags, 0o640)
        self._poll.register(self._fd, select.POLLOUT)
        self._may_block = not stat.S_ISREG(os.fstat(self._fd).st_mode)

    def begin(self, session: SessionRecord) -> str:
        """Writes that the session begins, and returns why that is impossible; empty when the line is written."""
        if not self.flush():
            return self._troubles.get("write", "lines wait to be written")
        try:
            self._put(self._shown(began(session)))
        except OSError as error:
            self._failed(error)
            return self._troubles["write"]
        return ""

    @property
    def unwritable(self) -> bool:
        """Whether the last line could not be written, and none since."""
        return "write" in self._troubles

    def _emit(self, line: AuditLine) -> None:
        self._write(self._shown(line))

    def _shown(self, line: AuditLine) -> bytes:
        written = text(line, self._coloured) if self._text else msgspec.json.encode(line).decode()
        return (with_priority(written, priority(line)) if self._journal else written).encode() + b"\n"

    def _write(self, line: bytes) -> None:
        self._backlog.append(line)
        self._backlog_bytes += len(line)
        while self._backlog_bytes > BACKLOG_BYTES:
            self._backlog_bytes -= len(self._backlog.popleft())
            self.lost += 1
        self.flush()

    def _put(self, line: bytes) -> None:
        """Writes a line by a single write(2), because several workers append to the same file."""
        if self._may_block and not self._poll.poll(0):  # a writable pipe takes PIPE_BUF bytes, so a whole line, without blocking
            raise BlockingIOError("the reader does not keep up")
        if self._torn:
            line = b"\n" + line
        if os.write(self._fd, line) < len(line):
            self._torn = True
            raise OSError("only part of a line could be written")
        self._torn = False

    def _trouble(self, which: str, text: str | None) -> None:
        before = list(self._troubles.values())
        if text is None:
            self._troubles.pop(which, None)
        else:
            self._troubles[which] = text
        if self._tell_trouble is not None and before != list(self._troubles.values()):
            self._tell_trouble("audit", list(self._troubles.values()))

    def _failed(self, error: OSError) -> None:
        self._trouble("write", f"audit: {self._output} cannot be written: {error}")
        now = time.monotonic()
        if now - self._complained >= COMPLAIN_SECONDS:
            self._complained, self._in_trouble = now, True
            waiting = counted(len(self._backlog), "line", "wait")
            _log.error("audit: %s cannot be written: %s; %s, lost so far: %d", self._output, error, waiting, self.lost)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # the next line triggers the next attempt
        if self._retry is None:
            self._retry = loop.call_later(RETRY_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self.flush()

    # -- the observer ----------------------------------------------------------------------------------------------------

    def auth_failed(self, connection: ConnectionRecord, reason: AuthFailure, fingerprint: str = "", detail: str = "") -> None:
        self._emit(refusal(connection, reason, fingerprint, detail))
        failing = self._failing.setdefault(id(connection), _Failing())
        if reason == "undecided":
            failing.undecided = True
        elif reason != "too_many":  # reported in addition to the refused attempt itself
            failing.attempts += 1
            failing.reason = reason
            failing.key = fingerprint or failing.key

    def auth_succeeded(self, connection: ConnectionRecord, identity: Identity) -> None:
        self._failing.pop(id(connection), None)

    def connection_closed(self, connection: ConnectionRecord, outcome: ConnectionOutcome, detail: str = "") -> None:
        failing = self._failing.pop(id(connection), None) or _Failing()
        if failing.reason is not None:
            self._emit(failed_login(connection, failing.reason, failing.key, failing.attempts))
        elif outcome == "auth_failed" and not failing.undecided:
            self._emit(failed_login(connection, "no_key", "", 0))
        excess = self._excess.pop(id(connection), None)
        if excess is not None:
            self._write_excess(excess)

    def command_rejected(self, session: SessionRecord, reason: str, detail: str) -> None:
        self._rejected.add(id(session))  # session_ended follows, with exit status and time

    def session_ended(self, session: SessionRecord, outcome: Outcome) -> None:
        rejected = id(session) in self._rejected
        self._rejected.discard(id(session))
        if rejected and outcome.reason == TooMany.reason:
            self._count_excess(session, outcome)
        else:
            self._emit(rejection(session, outcome) if rejected else ended(session, outcome))

    def _count_excess(self, session: SessionRecord, outcome: Outcome) -> None:
        now = time.monotonic()
        excess = self._excess.setdefault(id(session.connection), _Excess(now - EXCESS_SECONDS))
        excess.times += 1
        excess.last = (session, outcome)
        if now - excess.written >= EXCESS_SECONDS:
            excess.written = now
            self._write_excess(excess)

    def _write_excess(self, excess: _Excess) -> None:
        if excess.last is not None:
            self._emit(rejection(*excess.last, excess.times))
            excess.times, excess.last = 0, None

    # -- the supervisor --------------------------------------------------------------------------------------------------

    def worker_lost(self, pid: int, how: str, sessions: int) -> None:
        self._emit(lost(pid, how, sessions))


def tell_of_lost_worker(settings: config.LogSettings, base: Path, pid: int, how: str, sessions: int) -> None:
    """Writes one line for the supervisor, which keeps no audit open."""
    try:
        audit = Audit(settings.audit, settings.format, base)
    except OSError as error:
        _log.error("audit: %s cannot be opened, so the worker that died has no line: %s", settings.audit, error)
        return
    audit.worker_lost(pid, how, sessions)
    audit.close()
