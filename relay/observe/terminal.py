"""Whether a stream is a terminal that shows colours, or systemd's journal, which takes priorities."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

Colour = Literal["red", "green", "yellow", "cyan", "dim"]

_CODES: dict[Colour, int] = {"red": 31, "green": 32, "yellow": 33, "cyan": 36, "dim": 2}

# syslog(3)
ERROR, WARNING, NOTICE, INFO, DEBUG = 3, 4, 5, 6, 7


def wants_colours(fd: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `fd` is a terminal that shows colours, and NO_COLOR is not set (https://no-color.org)."""
    return not environment.get("NO_COLOR") and not is_dumb(environment) and os.isatty(fd)


def is_dumb(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the terminal cannot move its cursor."""
    return environment.get("TERM", "dumb") in ("dumb", "unknown", "")


def is_journal(fd: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `fd` is the journal's stream and not redirected: systemd.exec(5), $JOURNAL_STREAM."""
    try:
        there = os.fstat(fd)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


def painted(text: str, colour: Colour | None) -> str:
    return text if colour is None else f"\x1b[{_CODES[colour]}m{text}\x1b[0m"


def with_priority(text: str, priority: int) -> str:
    """Each line prefixed with `<N>`, which the journal removes and stores as PRIORITY: sd-daemon(3)."""
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))
