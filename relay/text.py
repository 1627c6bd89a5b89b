"""Text that others wrote, made safe to show in a log, a terminal or a message; and times and amounts as people read them.

`is_shown` is the one rule that decides which characters are shown as they are. Everything else is built on it:

| function | use it for | what it does |
|---|---|---|
| `plain` | a whole line, such as a problem of a configuration file | a character that is not shown becomes `?`; nothing is cut |
| `printable` | a piece of foreign text within a log line or a message | `plain`, cut to a limit |
| `quoted` | a faulty value that an error message repeats | `plain` in quotes, cut, without a URL's user and password |
| `escaped` | log fields and audit lines, where one must be able to tell what was there | `\\xNN` or `\\uNNNN`, limited in bytes of JSON |
| `client_text` | a text by an operator or an authority that clients read | `escaped`, cut to one limit for all |
| `redacted` | text that may hold a secret, before any of the others | private keys, URL passwords and bearer tokens are taken out |
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime

SHOWN_CHARACTERS = 60  # of a faulty value that a message repeats
CLIENT_TEXT_BYTES = 400  # of a text by an operator or an authority that clients read

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_USER_INFO = re.compile(r"://.*@")  # greedy: a password may have slashes and @ in it
_SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=://)[^/\s@]+(?=@)"  # user:password of a URL
    r"|(?<=[Bb]earer )\S+",
    re.DOTALL,
)


def size(count: float) -> str:
    """Bytes for people: 340 B, 12.3 MB; at most 8 characters up to a petabyte."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.95 or (unit == "B" and count < 1000):
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def age(seconds: float) -> str:
    """Seconds for people: 7.3s, 2m05s, 1h07m, 3d04h."""
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


def error_text(error: BaseException) -> str:
    """The message of an error on one line; for an error without a message its class in words: ReadTimeout is `read timeout`."""
    if text := " ".join(str(error).split()):
        return text
    kind = type(error).__name__.removesuffix("Error").removesuffix("Exception")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", kind).lower() or "failed"


# Whether every character of a text is shown as it is: the one rule behind all functions here that replace or escape.
# False for control and format characters (bidirectional overrides among them), line and paragraph separators, spaces other than U+0020,
# lone surrogates, private and unassigned characters.
is_shown: Callable[[str], bool] = str.isprintable


def has_control(text: str) -> bool:
    """Whether `text` has control characters or line separators in it; for values that are refused because of them, not for showing."""
    return _CONTROL.search(text) is not None


def client_text_fault(text: str) -> str | None:
    """Why `text`, of an operator, is not one that clients could read; None when it is."""
    if not text.strip():
        return "is empty, must say why"
    if has_control(text):
        return "has control characters, must have none"
    if (size_bytes := len(text.encode("utf-8", "replace"))) > CLIENT_TEXT_BYTES:
        return f"has {size_bytes} bytes, at most {CLIENT_TEXT_BYTES} are allowed"
    return None


def client_text(text: str) -> str:
    """`text`, of an operator or an authority, as a client reads it: one line, `escaped` and cut to CLIENT_TEXT_BYTES."""
    text = text.strip()
    if is_shown(text) and len(text.encode()) <= CLIENT_TEXT_BYTES:
        return text
    return escaped(text, CLIENT_TEXT_BYTES)


def plain(text: str) -> str:
    """`text` on one line, with a question mark for each character that is not shown (`is_shown`)."""
    return text if is_shown(text) else "".join(letter if is_shown(letter) else "?" for letter in text)


def printable(text: str, limit: int = 200) -> str:
    """`plain`, cut to `limit` characters; a text that was cut ends in an ellipsis."""
    return _cut(plain(text[: limit + 1]), limit)


def quoted(text: str) -> str:
    """`plain` in double quotes, cut to `SHOWN_CHARACTERS`; user and password of a URL become ***."""
    return json.dumps(_cut(_USER_INFO.sub("://***@", plain(text)), SHOWN_CHARACTERS), ensure_ascii=False)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def rfc3339(seconds: float) -> str:
    """A time since the epoch as RFC 3339 in UTC with milliseconds: 2026-08-01T12:00:00.000Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def escaped(text: str, limit: int) -> str:
    r"""`text` with each character that is not shown (`is_shown`) written as \xNN, \uNNNN or \UNNNNNNNN.

    Takes at most `limit` bytes within a JSON string in UTF-8; a text that was cut ends in an ellipsis. For people to read, not to be
    undone: a backslash of the text itself is not doubled.
    """
    if len(text) <= limit and text.isascii() and is_shown(text) and "\\" not in text and '"' not in text:
        return text
    pieces, room = [], limit - len("…".encode())
    for character in text:
        piece = character if is_shown(character) else _escape(ord(character))
        room -= len(piece.encode()) + piece.count("\\") + piece.count('"')
        if room < 0:
            pieces.append("…")
            break
        pieces.append(piece)
    return "".join(pieces)


def redacted(text: str) -> str:
    """`text` with [redacted] for each private key, each URL's user and password, and each bearer token."""
    return _SECRET.sub("[redacted]", text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
