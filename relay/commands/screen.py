"""A live view on a terminal, full-screen: the display, its keys and its title; restores the terminal at the end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import termios
import time
import tty
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live as LiveDisplay
from rich.text import Text

from relay.tasks import Tasks
from relay.text import age

_TOGETHER: Final = ("\x1b[?2026h", "\x1b[?2026l")  # synchronized output: the terminal shows all of it at once, or ignores the sequences
_PRESSED: Final = re.compile(rb"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)
_SCROLL: Final = {b"\x1b[A": -1, b"k": -1, b"\x1b[B": 1, b"j": 1, b"\x1b[5~": -10, b"\x1b[6~": 10, b"\x1b[H": -(10**6), b"\x1b[F": 10**6}

L = TypeVar("L")  # what the relay answers


class LiveScreen(ABC, Generic[L]):
    """Draws each answer of the relay as it arrives, and again after a key, a resize, or each second while there is trouble.

    A subclass takes an answer (`look`), names the trouble in it (`trouble_in`), and draws (`picture`).
    """

    name: str  # the command

    def __init__(self, config: Path, interval: float, console: Console | None = None) -> None:
        # set by the command line
        self._config = config
        self._interval = interval
        # without COLUMNS and LINES, which rich would prefer to the terminal's size
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self._console = console or Console(highlight=False, _environ=environment)
        self._utf8 = self._console.encoding.lower().startswith("utf")
        # managed here
        self._held = False
        self._top = 0  # index of the first row shown
        self._lost = False  # the relay does not answer: what is shown is out of date
        self._trouble = ""
        self._trouble_since: float | None = None
        self._over = asyncio.Event()
        self._display: LiveDisplay | None = None

    @abstractmethod
    def look(self, answer: L, held: bool) -> None:
        """Takes an answer; while the view is held its rows stay as they were."""

    @abstractmethod
    def trouble_in(self, answer: L) -> str:
        """What is wrong with an answer, in one line; empty when nothing is."""

    @abstractmethod
    def picture(self) -> RenderableType:
        """The whole display, exactly as high as the terminal; no line wraps."""

    def pressed(self, key: bytes) -> None:
        """A key that is not one of every live view."""

    async def run(self, looks: AsyncGenerator[L | str, None]) -> int:
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

    async def _show(self, looks: AsyncGenerator[L | str, None]) -> None:
        async with aclosing(looks) as all_looks:
            async for look in all_looks:
                self._take(look)

    async def _tick(self) -> None:
        """Redraws each second while there is trouble, for its duration."""
        while True:
            await asyncio.sleep(1)
            if self._trouble:
                self._draw()

    def _take(self, answer: L | str) -> None:
        """`answer`: of the relay, or the reason why there is none."""
        trouble = answer if isinstance(answer, str) else self.trouble_in(answer)
        if trouble and not self._trouble:
            self._trouble_since = time.monotonic()
        self._trouble, self._lost = trouble, isinstance(answer, str)
        if not isinstance(answer, str):
            self.look(answer, self._held)
        self._draw()

    def _key(self, key: bytes) -> None:
        if key in (b"q", b"Q", b"\x04"):
            self._over.set()
        elif key == b" ":
            self._held = not self._held
        elif key in _SCROLL:
            self._top = max(0, self._top + _SCROLL[key])
        else:
            self.pressed(key)
        self._draw()

    def _draw(self) -> None:
        if self._display is not None:
            self._console.file.write(_TOGETHER[0])
            self._display.update(self.picture(), refresh=True)
            self._console.file.write(_TOGETHER[1])
            self._console.file.flush()

    def scrolled(self, count: int, room: int) -> slice:
        """Which of `count` rows are shown when there is room for `room`."""
        self._top = max(0, min(self._top, count - room))
        return slice(self._top, self._top + room)

    def stacked(self, head: Sequence[Text], table: RenderableType, rows: int, foot: Sequence[Text]) -> RenderableType:
        """Head, a table with one line for its own head and `rows` more, and foot, as high as the terminal."""
        width, height = self._console.size
        filler = [Text("")] * max(0, height - len(head) - 1 - rows - len(foot))
        for text in (*head, *foot):
            text.truncate(width)
        return Group(*head, table, *filler, *foot)

    def title(self) -> Text:
        left = Text(f" {self.name} ", style="reverse bold") + Text("  ")
        if self._trouble:
            since = time.monotonic() - (self._trouble_since or 0.0)
            left += Text(f"{self._trouble} ({age(since)})", style="bold red")
        else:
            left += Text(f"{self._config}, every {self._interval:g} s", style="dim")
        if self._held:
            left += Text("  held", style="bold yellow")
        return apart(left, Text(time.strftime("%H:%M:%S"), style="dim"), self._console.size.width)


def apart(left: Text, right: Text, width: int) -> Text:
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
