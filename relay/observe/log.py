"""The log on stderr: text on a terminal, else JSON lines; repeated lines are summed up, control characters of clients are escaped.

Further fields of a line are passed as `extra={"fields": {...}}`. Keys, signatures and tokens are never passed to a logger; should an
error's text contain one, `redacted` removes it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal, TextIO

import msgspec

from relay.config import LogSettings
from relay.observe.terminal import DEBUG, ERROR, INFO, WARNING, Colour, is_journal, painted, wants_colours, with_priority
from relay.text import escaped, redacted, rfc3339

Format = Literal["auto", "text", "json"]

MESSAGE_BYTES = 8 * 1024
FIELD_BYTES = 2 * 1024
TRACEBACK_BYTES = 16 * 1024
BURST_LINES = 20  # lines of one template that a window writes; the others are counted
WINDOW_FIRST_SECONDS = 1.0
WINDOW_MOST_SECONDS = 60.0
TEMPLATES = 1_000  # that are counted apart; all further ones of a logger count as one

AUDITED = {"audited": True}  # `extra` of a log line that repeats an audit line: omitted when both are on the same terminal

_NUMBER = re.compile(r"\d+")

_COLOURS: dict[int, Colour] = {logging.DEBUG: "dim", logging.INFO: "cyan", logging.WARNING: "yellow", logging.ERROR: "red"}
_PRIORITIES = {logging.DEBUG: DEBUG, logging.INFO: INFO, logging.WARNING: WARNING, logging.ERROR: ERROR}

TemplateKey = tuple[str, str]  # logger, template


def configure(settings: LogSettings, stream: TextIO | None = None) -> logging.Handler:
    """Logs to `stream` (default stderr) from `settings.level` on; replaces the handler of an earlier call."""
    stream = sys.stderr if stream is None else stream
    handler = CalmHandler(stream)
    formatter = TextFormatter(_wants_colours(stream)) if is_text(settings.format, stream) else JSONFormatter()
    handler.setFormatter(PriorityFormatter(formatter) if _is_journal(stream) else formatter)
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, CalmHandler)]:
        root.removeHandler(old)
        old.close()
    if settings.audit == "-" and _on_one_screen(stream, sys.stdout):
        handler.addFilter(lambda record: record.levelno > logging.INFO or not getattr(record, "audited", False))
    root.addHandler(handler)
    root.setLevel(settings.level.upper())
    # at INFO asyncssh logs what the observers log too; at DEBUG its lines are part of the trace (relay.ssh.trace)
    asyncssh_level = logging.DEBUG if root.level <= logging.DEBUG else max(root.level, logging.WARNING)
    logging.getLogger("asyncssh").setLevel(asyncssh_level)
    return handler


def is_text(format: Format, stream: TextIO) -> bool:
    """Whether lines are text; auto: text on a terminal, else JSON."""
    return format == "text" or (format == "auto" and stream.isatty())


def _on_one_screen(one: TextIO, other: TextIO) -> bool:
    """Whether both are the same terminal."""
    if not (_has_descriptor(one) and _has_descriptor(other) and one.isatty() and other.isatty()):
        return False
    first, second = os.fstat(one.fileno()), os.fstat(other.fileno())
    return first.st_rdev == second.st_rdev


def _wants_colours(stream: TextIO) -> bool:
    return _has_descriptor(stream) and wants_colours(stream.fileno())


def _is_journal(stream: TextIO) -> bool:
    return _has_descriptor(stream) and is_journal(stream.fileno())


def _has_descriptor(stream: TextIO) -> bool:
    try:
        stream.fileno()
    except OSError:  # io.UnsupportedOperation, of a stream in memory
        return False
    return True


# -- formats -----------------------------------------------------------------------------------------------------------------


class JSONFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, further fields, and `exception` with a traceback. No further field replaces
    one of the former."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        for name, value in _fields(record):
            line.setdefault(name, value)
        if traceback := _traceback(self, record):
            line["exception"] = "\n".join(traceback)
        return msgspec.json.encode(line).decode()


class TextFormatter(logging.Formatter):
    """2026-08-01T12:00:00.000Z INFO    relay.server: message name=value; a traceback follows, indented."""

    def __init__(self, coloured: bool = False) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname:<7}"
        if self._coloured:
            level = painted(level, _COLOURS.get(record.levelno))
        words = [f"{rfc3339(record.created)} {level} {record.name}: {_message(record)}"]
        words += [f"{name}={value}" for name, value in _fields(record)]
        return "\n    ".join([" ".join(words), *_traceback(self, record)])


class PriorityFormatter(logging.Formatter):
    """Prefixes each line of another formatter with the priority for the journal, which `journalctl -p warning` filters by."""

    def __init__(self, of: logging.Formatter) -> None:
        super().__init__()
        self._of = of

    def format(self, record: logging.LogRecord) -> str:
        return with_priority(self._of.format(record), _PRIORITIES.get(record.levelno, INFO))


def _message(record: logging.LogRecord) -> str:
    return escaped(redacted(record.getMessage()), MESSAGE_BYTES)


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, int | float | bool | str | None]]:
    for name, value in getattr(record, "fields", {}).items():
        plain = value is None or isinstance(value, int | float)
        yield escaped(str(name), FIELD_BYTES), value if plain else escaped(redacted(str(value)), FIELD_BYTES)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    """The lines of a record's traceback; of a long one the end, which has the error."""
    if not record.exc_info:
        return []
    text = redacted(formatter.formatException(record.exc_info))
    return [escaped(line, MESSAGE_BYTES) for line in text[-TRACEBACK_BYTES:].splitlines()]


# -- floods ------------------------------------------------------------------------------------------------------------------


class Flood:
    """Decides which lines are written and which are only counted; reads no clock.

    Each template may write `burst` lines in a window. At the window's end one line has the number of those held back, and the next
    window is twice as long, up to a minute. After a window that held nothing back the template is forgotten.
    """

    def __init__(self, burst: int = BURST_LINES) -> None:
        self._burst = burst
        self._windows: dict[TemplateKey, _Window] = {}

    def admits(self, key: TemplateKey, now: float) -> bool:
        """Whether a line of this template is written; called once for each line, after `ended`."""
        if key not in self._windows and len(self._windows) >= TEMPLATES:
            key = (key[0], "...")
        window = self._windows.setdefault(key, _Window(now, WINDOW_FIRST_SECONDS))
        window.lines += 1
        return window.lines <= self._burst

    def ended(self, now: float, all: bool = False) -> list[tuple[TemplateKey, int, float]]:
        """Ends windows that are over, with `all` every one; returns (template, lines held back, seconds) of those that held lines back."""
        summaries = []
        for key, window in list(self._windows.items()):
            if now < window.start + window.seconds and not all:
                continue
            held = window.lines - self._burst
            if held > 0:
                summaries.append((key, held, now - window.start))
                self._windows[key] = _Window(now, min(window.seconds * 2, WINDOW_MOST_SECONDS))
            else:
                del self._windows[key]
        return summaries

    def next_end(self) -> float | None:
        """When the first window that holds lines back ends; None when no window does."""
        return min((one.start + one.seconds for one in self._windows.values() if one.lines > self._burst), default=None)


class _Window:
    __slots__ = ("lines", "seconds", "start")

    def __init__(self, start: float, seconds: float) -> None:
        self.start = start
        self.seconds = seconds
        self.lines = 0


class CalmHandler(logging.StreamHandler[TextIO]):
    """Writes records, and sums up those that repeat too often: a flood of failed logins must not fill the disk."""

    def __init__(self, stream: TextIO, flood: Flood | None = None) -> None:
        super().__init__(stream)
        self._flood = flood or Flood()
        self._timer: asyncio.TimerHandle | None = None
        self._last_held: dict[TemplateKey, logging.LogRecord] = {}  # by template; the summary line shows its text

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock held, as StreamHandler's."""
        now = time.monotonic()
        self._sum_up(now)
        # asyncssh formats connection ids and ports into its templates: ignore digits
        key = (record.name, _NUMBER.sub("#", str(record.msg)[:FIELD_BYTES]))
        if self._flood.admits(key, now):
            super().emit(record)
        else:
            if key in self._last_held or len(self._last_held) < TEMPLATES:
                self._last_held[key] = record
            self._sum_up_later(now)

    def close(self) -> None:
        with self._locked():
            if self._timer is not None:
                self._timer.cancel()
            self._sum_up(time.monotonic(), all=True)
        super().close()

    def _sum_up(self, now: float, all: bool = False) -> None:
        for (logger, template), count, seconds in self._flood.ended(now, all):
            message = "%d more lines like this in %.0f s: %s"
            last = self._last_held.pop((logger, template), None)
            shown = template if last is None else last.getMessage()  # the bare template has no names or addresses
            super().emit(logging.LogRecord(logger, logging.WARNING, __file__, 0, message, (count, seconds, shown), None))

    def _sum_up_later(self, now: float) -> None:
        """With a running event loop a timer writes the summary; without one the next line does."""
        end = self._flood.next_end()
        if self._timer is not None or end is None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._timer = loop.call_later(max(0.0, end - now), self._timer_ended)

    def _timer_ended(self) -> None:
        with self._locked():
            self._timer = None
            now = time.monotonic()
            self._sum_up(now)
            self._sum_up_later(now)

    def _locked(self) -> Any:
        assert self.lock is not None
        return self.lock
