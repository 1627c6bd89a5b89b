"""`relay upstreams --watch` without a screen: tables and JSON, again and again, also while the relay restarts or ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from relay.cli import main
from relay.commands.asking import WITHOUT_RICH
from tests.commands.test_upstreams import ask
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.terminal import Terminal
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]


@contextmanager
def watching(relay: RelayProcess, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    command = [sys.executable, "-m", "relay", "upstreams", "-c", str(relay.config_file), "--watch", "--interval", "0.1", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env, cwd="/") as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout
        finally:
            process.kill()


def next_that(lines: IO[str], wanted: Callable[[str], bool]) -> str:
    """Blocks until such a line; the test's timeout ends it."""
    return next(line for line in lines if wanted(line))


def test_plain_tables_without_a_terminal(relay: RelayProcess) -> None:
    with watching(relay) as (process, lines):
        for _ in range(3):
            assert next_that(lines, lambda line: line != "\n").split()[:2] == ["UPSTREAM", "STATE"]
            assert next_that(lines, lambda line: line != "\n").split()[0] == "main"
            next(lines)  # its address
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_one_json_object_for_each_look_and_a_switch_is_seen(relay: RelayProcess) -> None:
    with watching(relay, "--json") as (_, lines):
        look = json.loads(next(lines))
        assert look["silent"] == 0 and [one["upstream"] for one in look["upstreams"]] == ["main"]
        assert ask(relay, "pause", "main").returncode == 0
        try:
            next_that(lines, lambda line: json.loads(line)["upstreams"][0]["states"] == ["paused"])
        finally:
            ask(relay, "resume", "main")
        next_that(lines, lambda line: json.loads(line)["upstreams"][0]["states"] == ["up"])


def test_it_goes_on_when_the_relay_restarts(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd)
    with watching(relay, "--json") as (process, lines):
        assert json.loads(next(lines))["upstreams"]
        relay.stop()
        assert process.stderr is not None
        next_that(process.stderr, lambda line: "no relay listens here" in line)
        relay.start()
        wait_until(lambda: json.loads(next(lines)) is not None)
        assert process.poll() is None


def test_without_a_relay_it_does_not_begin(relay: RelayProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "relay.toml"
    config.write_text(relay.config_file.read_text())
    assert main(["upstreams", "-c", str(config), "--watch"]) == 1
    assert "no relay listens here" in capsys.readouterr().err


def test_without_rich_it_is_a_table_and_one_line_says_why(relay: RelayProcess) -> None:
    without = "import sys; sys.modules.update({'rich': None, 'rich.console': None})"
    program = f"{without}; from relay.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = [sys.executable, "-c", program, "upstreams", "-c", str(relay.config_file), "--watch", "--interval", "0.5"]
    with Terminal(arguments, columns=160, env={"PYTHONPATH": str(ROOT)}) as terminal:
        terminal.wait_for("UPSTREAM +STATE")
        assert terminal.text().count(WITHOUT_RICH.format(interval=0.5)) == 1
        terminal.send("\x03")
        assert terminal.wait() == 130
