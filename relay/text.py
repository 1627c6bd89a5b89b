"""A stranger's text, times and amounts, made fit for a log, a terminal or a message."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime


def size(count: float) -> str:
    """Bytes: 340 B, 12.3 MB, never longer than 8 characters up to a petabyte."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.95 or (unit == "B" and count < 1000):
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def age(seconds: float) -> str:
    """7.3s, 2m05s, 1h07m, 3d04h."""
    if seconds < 60:
        return f"{min(seconds, 59.9):.1f}s"
    if seconds < 3600:
        return f"{int(seconds // 60)}m{int(seconds % 60):02}s"
    if seconds < 4 * 86_400:
        return f"{int(seconds // 3600)}h{int(seconds % 3600 // 60):02}m"
    return f"{int(seconds // 86_400)}d{int(seconds % 86_400 // 3600):02}h"


_ONE = {"": "", "are": " is", "were": " was", "have": " has", "wait": " waits"}


def counted(count: int, noun: str, verb: str = "") -> str:
    """1 problem, 2 problems; with `were`: 1 session was, 2 sessions were."""
    if count == 1:
        return f"{count} {noun}{_ONE[verb]}"
    return f"{count} {noun}s {verb}".rstrip()


def told(error: BaseException) -> str:
    """What an error says, on one line; one that says nothing by its kind in words: ReadTimeout is `read timeout`."""
    if text := " ".join(str(error).split()):
        return text
    kind = type(error).__name__.removesuffix("Error").removesuffix("Exception")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", kind).lower() or "failed"


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def printable(text: str, limit: int = 200) -> str:
    """`text` cut to `limit` characters and fit for a terminal or a log line: everything that is not shown as itself (control and format
    characters, line separators, surrogates, private and unassigned characters) is a question mark."""
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


SHOWN = 60  # characters of a faulty value that a message repeats
_USER_INFO = re.compile(r"://.*@")


def plain(text: str) -> str:
    """Fit for any terminal and any encoding: on one line, without control, format or surrogate characters."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in text)


def quoted(text: str) -> str:
    """A faulty text as a message repeats it, cut at `SHOWN` characters; a URL's user and password are left out."""
    text = _USER_INFO.sub("://***@", plain(text))
    return json.dumps(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…", ensure_ascii=False)


_SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=://)[^/\s@]+(?=@)"  # user:password of a URL
    r"|(?<=[Bb]earer )\S+",
    re.DOTALL,
)


def rfc3339(seconds: float) -> str:
    """A time since the epoch as RFC 3339 in UTC with milliseconds: 2026-08-01T12:00:00.000Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def escaped(text: str, limit: int) -> str:
    r"""`text` with everything unprintable (control and format characters, line separators, lone surrogates) written as \xNN or \uNNNN.

    Takes up at most `limit` bytes within a JSON string in UTF-8; what was cut ends in an ellipsis. Made for reading: a backslash of the
    text itself stays one.
    """
    if len(text) <= limit and text.isascii() and text.isprintable() and "\\" not in text and '"' not in text:
        return text
    pieces, room = [], limit - len("…".encode())
    for character in text:
        piece = character if character.isprintable() else _escape(ord(character))
        room -= len(piece.encode()) + piece.count("\\") + piece.count('"')
        if room < 0:
            pieces.append("…")
            break
        pieces.append(piece)
    return "".join(pieces)


def redacted(text: str) -> str:
    """`text` without private keys, passwords in URLs and bearer tokens."""
    return _SECRET.sub("[redacted]", text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
