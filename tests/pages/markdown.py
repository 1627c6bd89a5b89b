"""Tables of Markdown, and text that is to be read in them as it stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"[\\*<]|(?<!\w)_|_(?!\w)")


def cell(text: str) -> str:
    """`text` as it stands, on one line; what is between backquotes stays code."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [_SPECIAL.sub(r"\\\g<0>", part) for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|")


def code(text: str) -> str:
    """`text` between backquotes, or nothing for nothing; fit for a table, in which only a pipe is special."""
    return f"`{text}`".replace("|", "\\|") if text else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are Markdown already."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
