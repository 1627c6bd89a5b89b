"""Amounts as people read them: sizes in powers of 1000, times in their two greatest units."""

from __future__ import annotations

import re


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
