"""The common part of the live views: title, keys, and the terminal's height. Each view has tests of its own."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from relay.commands.screen import LiveScreen, apart


class Numbers(LiveScreen[int]):
    """A view that lists the numbers up to the answer."""

    name = "relay numbers"

    def __init__(self, width: int, height: int) -> None:
        super().__init__(Path("relay.toml"), 1.0, Console(file=io.StringIO(), width=width, height=height, color_system=None))
        self.number = 0
        self.keys = b""

    def trouble_in(self, answer: int) -> str:
        return "" if answer >= 0 else "less than nothing"

    def look(self, answer: int, held: bool) -> None:
        if not held:
            self.number = answer

    def pressed(self, key: bytes) -> None:
        self.keys += key

    def picture(self) -> RenderableType:
        room = self._console.size.height - 3
        shown = list(range(self.number))[self.scrolled(self.number, room)]
        table = Table(box=None)
        table.add_column("N")
        for number in shown:
            table.add_row(str(number))
        return self.stacked([self.title()], table, len(shown), [Text("x" * 500)])

    def lines(self) -> list[str]:
        return ["".join(segment.text for segment in row) for row in self._console.render_lines(self.picture(), pad=False)]

    def numbers(self) -> list[int]:
        return [int(line) for line in self.lines()[2:-1] if line.strip()]


@pytest.mark.parametrize("count", [0, 3, 100])
@pytest.mark.parametrize(("width", "height"), [(20, 5), (80, 24)])
def test_it_is_as_large_as_the_terminal(count: int, width: int, height: int) -> None:
    screen = Numbers(width, height)
    screen._take(count)
    lines = screen.lines()
    assert len(lines) == height and max(map(len, lines)) <= width


def test_the_title_tells_the_configuration_or_the_trouble() -> None:
    screen = Numbers(80, 8)
    assert screen.lines()[0].startswith(" relay numbers   relay.toml, every 1 s ")
    screen._take("no relay listens here")
    assert "no relay listens here (0.0s)" in screen.lines()[0] and screen._lost
    screen._take(-1)
    assert "less than nothing (0.0s)" in screen.lines()[0] and not screen._lost
    screen._take(2)
    assert "every 1 s" in screen.lines()[0]


def test_keys_scroll_and_hold_and_end_it_and_others_are_the_views_own() -> None:
    screen = Numbers(80, 8)  # rows for five numbers
    screen._take(12)
    assert screen.numbers() == [0, 1, 2, 3, 4]
    for key in (b"j", b"\x1b[B"):
        screen._key(key)
    assert screen.numbers() == [2, 3, 4, 5, 6]
    screen._key(b"\x1b[6~")
    assert screen.numbers() == [7, 8, 9, 10, 11]
    screen._key(b"\x1b[H")
    assert screen.numbers() == [0, 1, 2, 3, 4]
    screen._key(b" ")
    screen._take(1)
    assert screen.numbers() == [0, 1, 2, 3, 4] and "held" in screen.lines()[0]
    screen._key(b" ")
    screen._take(1)
    assert screen.numbers() == [0]
    screen._key(b"z")
    assert screen.keys == b"z" and not screen._over.is_set()
    screen._key(b"q")
    assert screen._over.is_set()


@pytest.mark.parametrize("width", [10, 20, 80])
def test_two_texts_are_kept_apart_on_one_line(width: int) -> None:
    line = apart(Text("left " * 10), Text("12:00"), width)
    assert line.plain.endswith("12:00")
    assert len(line) == width
