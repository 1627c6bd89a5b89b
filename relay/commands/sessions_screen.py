"""The live view of `relay sessions --watch` on a terminal: the display and its keys; restores the terminal at the end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import termios
import time
import tty
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live as LiveDisplay
from rich.table import Table
from rich.text import Text

from relay.commands.sessions import missing, untaken
from relay.commands.sessions_rates import Live, Pace, Row, ordered
from relay.observe.audit_text import WHAT
from relay.process import messages
from relay.tasks import Tasks
from relay.text import age, escaped, size

HEAD_LINES: Final = 3  # title, rates, and a change that is not in force or an empty line; the table's own head follows
FOOT_LINES: Final = 2  # totals, keys
NAME_BYTES: Final = 200

_STYLES: Final[dict[Pace, str]] = {"new": "", "moving": "", "slow": "yellow", "quiet": "dim", "stalled": "red"}
_BLOCKS: Final = (" ▁▂▃▄▅▆▇█", " .:-=+*%#")  # for terminals with UTF-8, and without
_TOGETHER: Final = ("\x1b[?2026h", "\x1b[?2026l")  # synchronized output: the terminal shows all of it at once, or ignores the sequences
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
_PRESSED: Final = re.compile(rb"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)
_SCROLL: Final = {b"\x1b[A": -1, b"k": -1, b"\x1b[B": 1, b"j": 1, b"\x1b[5~": -10, b"\x1b[6~": 10, b"\x1b[H": -(10**6), b"\x1b[F": 10**6}


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
    Column("ID", "age", lambda row: row.line.id, wanted=165),
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


class Screen:
    """Draws each list of sessions as it arrives, and again after a key, a resize, or each second while there is trouble."""

    def __init__(self, config: Path, interval: float, sort: str, console: Console | None = None) -> None:
        # set by the command line
        self._config = config
        self._interval = interval
        # without COLUMNS and LINES, which rich would prefer to the terminal's size
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self._console = console or Console(highlight=False, _environ=environment)
        self._utf8 = self._console.encoding.lower().startswith("utf")
        # managed here
        self._live = Live()
        self._sort = sort
        self._backwards = False
        self._held = False
        self._top = 0  # index of the first row shown
        self._lost = False  # the relay does not answer: the rows are out of date
        self._trouble = ""
        self._untaken: list[str] = []  # a line for each change that is not in force
        self._trouble_since: float | None = None
        self._over = asyncio.Event()
        self._display: LiveDisplay | None = None

    async def run(self, looks: AsyncGenerator[messages.Sessions | str, None]) -> int:
        loop = asyncio.get_running_loop()
        with Keyboard(self._key) as keyboard, LiveDisplay(console=self._console, screen=True, auto_refresh=False) as self._display:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self._over.set)
            loop.add_signal_handler(signal.SIGWINCH, self._draw)
            loop.add_signal_handler(signal.SIGTSTP, self._step_aside, keyboard)
            self._draw()
            tasks = Tasks()
            showing = tasks.start(self._show(looks), "looks")
            tasks.start(self._tick(), "clock")
            await asyncio.wait((showing, tasks.start(self._over.wait(), "end")), return_when=asyncio.FIRST_COMPLETED)
            await tasks.cancel()
            if not showing.cancelled():
                showing.result()
        return 0

    def _step_aside(self, keyboard: Keyboard) -> None:
        """Ctrl-Z: restores the terminal and stops; `fg` continues the display."""
        assert self._display is not None
        self._display.stop()
        keyboard.__exit__()
        os.kill(os.getpid(), signal.SIGSTOP)
        keyboard.__enter__()
        self._display.start()
        self._draw()

    async def _show(self, looks: AsyncGenerator[messages.Sessions | str, None]) -> None:
        async with aclosing(looks) as all_looks:
            async for look in all_looks:
                self._take(look)

    async def _tick(self) -> None:
        """Redraws each second while there is trouble, for its duration."""
        while True:
            await asyncio.sleep(1)
            if self._trouble:
                self._draw()

    def _take(self, look: messages.Sessions | str) -> None:
        trouble = look if isinstance(look, str) else missing(look.silent) if look.silent else ""
        if trouble and not self._trouble:
            self._trouble_since = time.monotonic()
        self._trouble, self._lost = trouble, isinstance(look, str)
        if not isinstance(look, str):
            self._untaken = [untaken(one) for one in look.untaken]
        if not isinstance(look, str) and not self._held:
            self._live.look(look.lines)
        self._draw()

    # -- keys ------------------------------------------------------------------------------------------------------------

    def _key(self, key: bytes) -> None:
        if key in (b"q", b"Q", b"\x04"):
            self._over.set()
        elif key == b" ":
            self._held = not self._held
        elif key in _SCROLL:
            self._top = max(0, self._top + _SCROLL[key])
        elif known := _KEYS.get(key.decode("latin-1").lower()):
            self._backwards = known[0] == self._sort and not self._backwards
            self._sort, self._top = known[0], 0
        self._draw()

    # -- what is shown ---------------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        if self._display is not None:
            self._console.file.write(_TOGETHER[0])
            self._display.update(self.picture(), refresh=True)
            self._console.file.write(_TOGETHER[1])
            self._console.file.flush()

    def picture(self) -> RenderableType:
        """The whole display, exactly as high as the terminal; no line wraps."""
        width, height = self._console.size
        room = max(1, height - HEAD_LINES - 1 - FOOT_LINES)
        rows = ordered(self._live.rows, self._sort, self._backwards)
        self._top = max(0, min(self._top, len(rows) - room))
        shown = rows[self._top : self._top + room]
        filler = [Text("")] * (room - len(shown))
        head, foot = [self._title(width), self._rates(width), self._changes()], [self._totals(len(rows), room), self._help()]
        for text in (*head, *foot):
            text.truncate(width)
        return Group(*head, self._table(shown, width), *filler, *foot)

    def _title(self, width: int) -> Text:
        left = Text(" relay sessions ", style="reverse bold") + Text("  ")
        if self._trouble:
            since = time.monotonic() - (self._trouble_since or 0.0)
            left += Text(f"{self._trouble} ({age(since)})", style="bold red")
        else:
            left += Text(f"{self._config}, every {self._interval:g} s", style="dim")
        if self._held:
            left += Text("  held", style="bold yellow")
        return _apart(left, Text(time.strftime("%H:%M:%S"), style="dim"), width)

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


def _apart(left: Text, right: Text, width: int) -> Text:
    left.truncate(max(0, width - len(right) - 1), overflow="ellipsis")
    return left + Text(" " * max(1, width - left.cell_len - right.cell_len)) + right


class Keyboard:
    """Reads single keys from a terminal, without echo; Ctrl-C stays a signal."""

    def __init__(self, pressed: Callable[[bytes], None]) -> None:
        self._pressed = pressed
        self._fd = sys.stdin.fileno()
        self._before: list[Any] | None = None  # attributes of the terminal to restore; None when unchanged

    def __enter__(self) -> Self:
        if os.isatty(self._fd):
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
            asyncio.get_running_loop().add_reader(self._fd, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
            self._before = None

    def _read(self) -> None:
        data = os.read(self._fd, 64)
        if not data:
            asyncio.get_running_loop().remove_reader(self._fd)
        for key in _PRESSED.findall(data):  # several keys may arrive in one read
            self._pressed(key)
