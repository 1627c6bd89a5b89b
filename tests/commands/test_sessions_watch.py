"""`relay sessions --watch` without a screen: lists and JSON, again and again, also while the relay restarts or ends."""

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
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.terminal import Terminal
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]


@contextmanager
def watching(relay: RelayProcess, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    command = [sys.executable, "-m", "relay", "sessions", "-c", str(relay.config_file), "--watch", "--interval", "0.1", *arguments]
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


@pytest.fixture
def quiet(relay: RelayProcess) -> Iterator[subprocess.Popen[bytes]]:
    """A session that has carried 100,000 bytes out and now waits."""
    with relay.ssh().popen("git-receive-pack 'stub/half/100000'") as client:
        assert client.stdout is not None
        assert len(client.stdout.read(100_000)) == 100_000
        yield client
        client.kill()
        client.communicate()


def test_plain_lists_without_a_terminal(relay: RelayProcess, quiet: subprocess.Popen[bytes]) -> None:
    with watching(relay) as (process, lines):
        for _ in range(3):
            assert next_that(lines, lambda line: line != "\n").split()[:3] == ["ID", "WHO", "FROM"]
            assert next_that(lines, lambda line: line != "\n").split()[1] == "alice"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_one_json_object_for_each_list(relay: RelayProcess, quiet: subprocess.Popen[bytes]) -> None:
    with watching(relay, "--json") as (_, lines):
        for _ in range(2):
            look = json.loads(next_that(lines, lambda line: '"alice"' in line))
        (session,) = look["sessions"]
        assert (session["identity"], session["service"], session["bytes_out"]) == ("alice", "git-receive-pack", 100_000)
        assert {"rate_in", "rate_out", "quiet_seconds", "worker"} <= set(session)
        assert look["silent"] == 0 and look["rate_out"] >= 0


def test_it_goes_on_when_the_relay_restarts(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd)
    with watching(relay, "--json") as (process, lines):
        assert json.loads(next(lines))["sessions"] == []
        relay.stop()
        assert process.stderr is not None
        next_that(process.stderr, lambda line: "no relay listens here" in line)
        relay.start()
        wait_until(lambda: json.loads(next(lines)) is not None)
        assert process.poll() is None


def test_without_a_relay_it_does_not_begin(relay: RelayProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "relay.toml"
    config.write_text(relay.config_file.read_text())
    assert main(["sessions", "-c", str(config), "--watch"]) == 1
    assert "no relay listens here" in capsys.readouterr().err


def test_without_rich_it_is_a_list_and_one_line_says_why(relay: RelayProcess) -> None:
    without = "import sys; sys.modules.update({'rich': None, 'rich.console': None})"
    program = f"{without}; from relay.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = [sys.executable, "-c", program, "sessions", "-c", str(relay.config_file), "--watch", "--interval", "0.5"]
    with Terminal(arguments, columns=160, env={"PYTHONPATH": str(ROOT)}) as terminal:
        terminal.wait_for("ID +WHO +FROM +SERVICE")
        assert terminal.text().count(WITHOUT_RICH.format(interval=0.5)) == 1
        assert "1049h" not in terminal.raw.decode()
        terminal.send("\x03")
        assert terminal.wait() == 130


@pytest.mark.parametrize("given", ["0", "x", "-1", "3601", "nan"])
def test_an_interval_that_is_none(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sessions", "--watch", f"--interval={given}"])
    assert ended.value.code == 2
    assert f"is '{given}', must be a number of seconds from 0.1 to 3600" in capsys.readouterr().err
