"""Colours on a terminal unless switched off, priorities for the journal, plain lines elsewhere."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.observe.terminal import NOTICE, is_journal, painted, wants_colours, with_priority


@pytest.fixture
def terminal() -> Iterator[int]:
    master, slave = pty.openpty()
    yield slave
    os.close(slave)
    os.close(master)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, True),  # an empty variable counts as not set
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_colours_on_a_terminal(terminal: int, environment: dict[str, str], wanted: bool) -> None:
    assert wants_colours(terminal, environment) is wanted


def test_no_colours_in_a_file(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        assert not wants_colours(file.fileno(), {"TERM": "xterm"})


def test_painted() -> None:
    assert painted("ok", "green") == "\x1b[32mok\x1b[0m"
    assert painted("ok", None) == "ok"


def test_the_journal_is_recognized_by_journal_stream_only(tmp_path: Path) -> None:
    """A program that is redirected later inherits $JOURNAL_STREAM, which then names another file."""
    read, write = os.pipe()
    there = os.fstat(write)
    environment = {"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"}
    assert is_journal(write, environment)
    assert not is_journal(write, {})
    with (tmp_path / "file").open("w") as file:
        assert not is_journal(file.fileno(), environment)
    os.close(read)
    os.close(write)
    assert not is_journal(write, environment)


def test_every_line_has_its_priority() -> None:
    assert with_priority("one\n  two", NOTICE) == "<5>one\n<5>  two"
