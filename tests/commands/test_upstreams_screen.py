"""The live view of the upstreams on a real terminal, and its text at every size."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from relay.commands.upstreams_screen import Screen
from relay.process.messages import Upstreams
from tests.commands.test_upstreams import ask, made
from tests.support.relay_process import RelayProcess
from tests.support.terminal import Terminal
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]


def shown(relay: RelayProcess, **options: Any) -> Terminal:
    command = [sys.executable, "-m", "relay", "upstreams", "-c", str(relay.config_file), "--watch", "--interval", "0.2"]
    return Terminal(command, **{"columns": 120, "env": {"PYTHONPATH": str(ROOT)}, **options})


def test_shows_a_pause_as_it_happens_and_restores_the_terminal(relay: RelayProcess) -> None:
    with shown(relay) as terminal:
        terminal.wait_for(r"UPSTREAM +STATE .*\n *main +up (.*\n)+ 1 upstream, 0 connections leased, 0 sessions wait\n.*q quit")
        assert ask(relay, "pause", "main").returncode == 0
        try:
            terminal.wait_for(r"main +paused +[\d.]+s +\S+ +0 +0 +0")
        finally:
            ask(relay, "resume", "main")
        terminal.wait_for(r"main +up +\d")
        terminal.send("q")
        assert terminal.wait() == 0
        wait_until(terminal.as_it_was)


# -- the text of the screen --------------------------------------------------------------------------------------------------


def picture(width: int, height: int, looks: list[Upstreams | str], keys: bytes = b"", colours: bool = False) -> list[str]:
    """The lines of the last screen."""
    colour: Any = "standard" if colours else None
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, highlight=False, color_system=colour)
    screen = Screen(Path("relay.toml"), 1.0, console)
    for look in looks:
        screen._take(look)
    for key in keys:
        screen._key(bytes((key,)))
    rows = console.render_lines(screen.picture(), pad=False)
    return ["".join(f"<{segment.style}>{segment.text}" if colours else segment.text for segment in row) for row in rows]


MANY = [Upstreams([made(True, False, name=f"host-{number}", frozen_since=1.0, frozen="moving") for number in range(20)], 0)]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 250])
@pytest.mark.parametrize("height", [8, 24])
@pytest.mark.parametrize(
    "looks", [[], MANY, [*MANY, "relay.sock: no relay listens here"], [Upstreams([], 2)]], ids=["none", "many", "gone", "silent"]
)
def test_it_is_as_large_as_the_terminal(width: int, height: int, looks: list[Upstreams | str]) -> None:
    rows = picture(width, height, looks)
    assert len(rows) == height
    assert max(map(len, rows)) <= width


def test_rows_are_coloured_by_their_state() -> None:
    lines = [made(True), made(False), made(True, paused_since=1.0), made(True, frozen_since=1.0, frozen="moving")]
    text = picture(120, 20, [Upstreams(lines, 0)], colours=True)
    styles = [re.search(r"<(\S*)[^>]*> *(main|  10)", line) for line in text]
    assert [found[1] for found in styles if found is not None and found[2] == "main"] == ["None", "red", "yellow", "cyan"]


def test_totals_and_what_is_missing() -> None:
    rows = picture(120, 10, [Upstreams([made(True), made(True)], 1)])
    assert "1 worker did not answer, its connections are missing here" in rows[0]
    assert rows[-2].startswith(" 2 upstreams, 2 connections leased, 10 sessions wait")


def test_more_than_fit_are_scrolled() -> None:
    assert "rows 1 to 5" in picture(120, 10, list(MANY))[-2]
    assert "rows 4 to 8" in picture(120, 10, list(MANY), b"jjj")[-2]
    assert "rows 76 to 80" in picture(120, 10, list(MANY), b"j" * 200)[-2]


def test_held_rows_stay() -> None:
    console = Console(file=io.StringIO(), width=100, height=10, color_system=None)
    screen = Screen(Path("relay.toml"), 1.0, console)
    screen._take(Upstreams([made(True)], 0))
    screen._key(b" ")
    screen._take(Upstreams([made(False)], 0))
    assert screen._lines == [made(True)]


def test_control_characters_are_not_sent_to_the_terminal() -> None:
    text = "\n".join(picture(200, 10, [Upstreams([made(True, name="a\x1b[2Jb", frozen_since=1.0, frozen="[bold]x\u202e")], 0)]))
    assert "[bold]x" in text
    assert "\x1b" not in text and "\u202e" not in text
