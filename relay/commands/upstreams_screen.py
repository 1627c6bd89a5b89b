"""The live view of `relay upstreams --watch` on a terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from relay.commands.asking import missing
from relay.commands.screen import LiveScreen
from relay.commands.upstreams import HEAD, RIGHT, rows
from relay.process import messages
from relay.text import counted

HEAD_LINES: Final = 2  # title, and an empty line; the table's own head follows
FOOT_LINES: Final = 2  # totals, keys

_STYLES: Final = {"down": "red", "paused": "yellow", "draining": "yellow", "frozen": "cyan", "text": "cyan", "unknown": "dim", "up": ""}
_WANTED: Final = {"BY": 80, "SINCE": 70, "IDLE": 55}  # the minimal width of the terminal for these columns


class Screen(LiveScreen[messages.Upstreams]):
    """The table of `relay upstreams`, coloured by state."""

    name = "relay upstreams"

    def __init__(self, config: Path, interval: float, console: Console | None = None) -> None:
        super().__init__(config, interval, console)
        self._lines: list[messages.UpstreamState] = []

    def trouble_in(self, answer: messages.Upstreams) -> str:
        return missing(answer.silent, "connections") if answer.silent else ""

    def look(self, answer: messages.Upstreams, held: bool) -> None:
        if not held:
            self._lines = answer.lines

    def picture(self) -> RenderableType:
        width, height = self._console.size
        table = Table(box=None, expand=True, pad_edge=False, padding=(0, 1), header_style="bold", style="dim" if self._lost else "")
        columns = [column for column, head in enumerate(HEAD) if _WANTED.get(head, 0) <= width]
        for column in columns:
            head = HEAD[column]
            table.add_column(
                head,
                justify="right" if head in RIGHT else "left",
                no_wrap=True,
                overflow="ellipsis" if self._utf8 else "crop",
                ratio=1 if head == "UPSTREAM" else None,
            )
        lines = list(rows(self._lines, time.time()))
        room = max(1, height - HEAD_LINES - 1 - FOOT_LINES)
        shown = lines[self.scrolled(len(lines), room)]
        for row in shown:
            cells = [row.cells[column] if column < len(row.cells) else "" for column in columns]
            table.add_row(*map(Text, cells), style="dim" if self._lost else _STYLES[row.state])
        foot = [self._totals(len(lines), room), self._help()]
        return self.stacked([self.title(), Text("")], table, len(shown), foot)

    def _totals(self, count: int, room: int) -> Text:
        leased, waiting = sum(line.leased for line in self._lines), sum(line.waiting for line in self._lines)
        line = Text(f" {counted(len(self._lines), 'upstream')}, {counted(leased, 'connection')} leased", style="bold")
        line += Text(f", {counted(waiting, 'session', 'wait')}", style="bold yellow" if waiting else "bold")
        if count > room:
            line += Text(f"; rows {self._top + 1} to {min(count, self._top + room)}", style="dim")
        return line

    def _help(self) -> Text:
        line = Text(" space", style="bold") + Text(" hold  ", style="dim") + Text("q", style="bold") + Text(" quit", style="dim")
        return line + Text("   relay upstreams pause|resume|drain|ready|freeze|thaw NAME switches", style="dim")
