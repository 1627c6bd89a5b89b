"""The live view of `relay sessions --watch` on a terminal: sessions with their rates, in an order that a key chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from relay.commands.asking import missing
from relay.commands.screen import LiveScreen
from relay.commands.sessions import untaken
from relay.commands.sessions_rates import Live, Pace, Row, ordered
from relay.observe.audit_text import WHAT
from relay.process import messages
from relay.text import age, escaped, size

HEAD_LINES: Final = 3  # title, rates, and a change that is not in force or an empty line; the table's own head follows
FOOT_LINES: Final = 2  # totals, keys
NAME_BYTES: Final = 200

_STYLES: Final[dict[Pace, str]] = {"new": "", "moving": "", "slow": "yellow", "quiet": "dim", "stalled": "red"}
_BLOCKS: Final = (" ▁▂▃▄▅▆▇█", " .:-=+*%#")  # for terminals with UTF-8, and without
_ARROWS: Final = ("▼▲", "v^")
_KEYS: Final = {
    "r": ("rate", "ate"),
    "a": ("age", "ge"),
    "i": ("in", "n"),
    "o": ("out", "ut"),
    "w": ("who", "ho"),
    "f": ("from", "rom"),
    "n": ("repository", "ame"),
    "u": ("upstream", "pstream"),
}


class Column(NamedTuple):
    """`wanted` is the minimal width of the terminal for this column."""

    head: str
    order: str
    cell: Callable[[Row], str]
    right: bool = False
    wanted: int = 0
    width: int = 0  # minimal width: a column of changing numbers must not jump
    most: int = 0  # maximal width; 0: that of the content


COLUMNS: Final = (
    Column("ID", "age", lambda row: row.line.id, width=15),  # `relay sessions --kill` needs it
    Column("WHO", "who", lambda row: escaped(row.line.identity, NAME_BYTES), most=16),
    Column("FROM", "from", lambda row: row.line.address, wanted=135, most=22),
    Column("WHAT", "", lambda row: WHAT.get(row.line.service, row.line.service), width=8),
    Column("REPOSITORY", "repository", lambda row: escaped(row.line.repository, NAME_BYTES) or "-"),
    Column("UPSTREAM", "upstream", lambda row: escaped(row.line.upstream, NAME_BYTES) or "-", wanted=150, most=12),
    Column("HOST", "upstream", lambda row: row.line.host or "-", wanted=190, most=22),
    Column("AGE", "age", lambda row: age(row.line.seconds), right=True, width=6),
    Column(
        "QUIET", "quiet", lambda row: age(row.quiet_seconds) if row.pace in ("quiet", "stalled") else "", right=True, wanted=90, width=6
    ),
    Column("IN", "in", lambda row: size(row.line.bytes_in), right=True, wanted=115, width=8),
    Column("OUT", "out", lambda row: size(row.line.bytes_out), right=True, wanted=115, width=8),
    Column("IN/s", "rate", lambda row: _rate(row.rate_in), right=True, width=10),
    Column("OUT/s", "rate", lambda row: _rate(row.rate_out), right=True, width=10),
)


class Screen(LiveScreen[messages.Sessions]):
    """The sessions, and below the title the first change that is not in force."""

    name = "relay sessions"

    def __init__(self, config: Path, interval: float, sort: str, console: Console | None = None) -> None:
        super().__init__(config, interval, console)
        self._live = Live()
        self._sort = sort
        self._backwards = False
        self._untaken: list[str] = []  # a line for each change that is not in force

    def trouble_in(self, answer: messages.Sessions) -> str:
        return missing(answer.silent, "sessions") if answer.silent else ""

    def look(self, answer: messages.Sessions, held: bool) -> None:
        self._untaken = [untaken(one) for one in answer.untaken]
        if not held:
            self._live.look(answer.lines)

    def pressed(self, key: bytes) -> None:
        if known := _KEYS.get(key.decode("latin-1").lower()):
            self._backwards = known[0] == self._sort and not self._backwards
            self._sort, self._top = known[0], 0

    # -- what is shown ---------------------------------------------------------------------------------------------------

    def picture(self) -> RenderableType:
        width, height = self._console.size
        room = max(1, height - HEAD_LINES - 1 - FOOT_LINES)
        rows = ordered(self._live.rows, self._sort, self._backwards)
        shown = rows[self.scrolled(len(rows), room)]
        head, foot = [self.title(), self._rates(width), self._changes()], [self._totals(len(rows), room), self._help()]
        return self.stacked(head, self._table(shown, width), len(shown), foot)

    def _rates(self, width: int) -> Text:
        total = self._live.totals
        line = Text("")
        each = max(4, min(40, (width - 40) // 2))
        for word, rate, column in (("out", total.rate_out, 1), ("in", total.rate_in, 0)):
            line += Text(f" {word} ", style="dim") + Text(f"{'?' if self._lost else _rate(rate):>11} ", style="bold")
            line += Text(self._spark([both[column] for both in self._live.history][-each:]).rjust(each), style="green") + Text("  ")
        return line

    def _changes(self) -> Text:
        """The first change that is not in force, else an empty line."""
        more = f" (and {len(self._untaken) - 1} more)" if len(self._untaken) > 1 else ""
        return Text(f" {self._untaken[0]}{more}", style="bold red") if self._untaken else Text("")

    def _spark(self, rates: Sequence[float]) -> str:
        blocks, most = _BLOCKS[not self._utf8], max(rates, default=0.0)
        return "".join(blocks[0] if rate <= 0 else blocks[1 + int((len(blocks) - 2) * rate / most)] for rate in rates)

    def _table(self, rows: Sequence[Row], width: int) -> Table:
        table = Table(box=None, expand=True, pad_edge=False, padding=(0, 1), header_style="bold", style="dim" if self._lost else "")
        columns = [column for column in COLUMNS if column.wanted <= width]
        for column in columns:
            arrow = _ARROWS[not self._utf8][self._backwards] if column.order == self._sort and self._marks(column) else ""
            table.add_column(
                column.head + arrow,
                justify="right" if column.right else "left",
                no_wrap=True,
                min_width=column.width or None,
                max_width=column.most or None,
                overflow="ellipsis" if self._utf8 else "crop",
                ratio=1 if column.head == "REPOSITORY" else None,
            )
        for row in rows:
            table.add_row(*(Text(column.cell(row)) for column in columns), style="dim" if self._lost else _STYLES[row.pace])
        return table

    def _marks(self, column: Column) -> bool:
        """Whether the column shows the arrow; columns that share an order have one arrow."""
        return column.head not in ("ID", "IN/s")

    def _totals(self, count: int, room: int) -> Text:
        total = self._live.totals
        people = f"{total.people} {'person' if total.people == 1 else 'people'}"
        line = Text(f" {total.sessions} session{'' if total.sessions == 1 else 's'} of {people}", style="bold")
        line += Text(f", {size(total.bytes_in)} in, {size(total.bytes_out)} out so far", style="")
        if count > room:
            line += Text(f"; rows {self._top + 1} to {min(count, self._top + room)}", style="dim")
        return line

    def _help(self) -> Text:
        line = Text(" order: ", style="dim")
        for key, (_, rest) in _KEYS.items():
            line += Text(key, style="bold underline") + Text(f"{rest} ", style="dim")
        line += Text("again: backwards  ", style="dim") + Text("space", style="bold") + Text(" hold  ", style="dim")
        line += Text("q", style="bold") + Text(" quit", style="dim")
        return line


def _rate(rate: float | None) -> str:
    return "" if rate is None else "-" if rate < 1 else f"{size(rate)}/s"
