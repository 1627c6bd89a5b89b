"""Markdown tables, and text escaped for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"[\\*<]|(?<!\w)_|_(?!\w)")


def cell(text: str) -> str:
    """`text` escaped, on one line; parts between backquotes stay code."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [_SPECIAL.sub(r"\\\g<0>", part) for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|")


def code(text: str) -> str:
    """`text` between backquotes, or "" if it is empty; escaped for a table, in which only a pipe is special."""
    return f"`{text}`".replace("|", "\\|") if text else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the cells are Markdown already."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
