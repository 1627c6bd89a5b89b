"""The command line: its options and exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks import results as store
from benchmarks.__main__ import FULL_REPORT, main, parse
from benchmarks.contenders import REPOSITORY_ROOT, Peer
from tests.benchmarks.made import made
from tests.support.processes import alive
from tests.support.wait import WaitTimeoutError, wait_until


def test_the_makefiles_two_targets() -> None:
    assert parse([]).sizes == "full"
    assert parse(["--quick"]).sizes == "quick"
    assert FULL_REPORT.relative_to(REPOSITORY_ROOT) == Path("benchmarks/report")


def test_a_choice_keeps_the_order_of_measuring() -> None:
    assert parse(["--only", "sessions, latency"]).only == ("latency", "sessions")
    assert parse(["--contenders", "relay,direct"]).contenders == ("direct", "relay")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--only", "latency,speed"], "unknown: speed; there are latency, sessions"),
        (["--contenders", "sshd"], "unknown: sshd"),
        (["--peer", "nowhere"], "NAME=[USER@]HOST:PORT"),
        (["--sizes", "huge"], "invalid choice"),
    ],
)
def test_anything_else_is_refused_in_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(argv)
    assert said in capsys.readouterr().err


def test_peers_add_up() -> None:
    assert parse(["--peer", "a=h:1", "--peer", "b=u@h:2"]).peer == [Peer("a", "git", "h", 1), Peer("b", "u", "h", 2)]


def test_targets_are_told_by_the_report_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check-targets", "--out", str(tmp_path)]) == 1
    assert "holds no report" in capsys.readouterr().out
    store.write(made(), tmp_path)
    assert main(["--check-targets", "--out", str(tmp_path)]) == 1  # one target is missed, one not measured
    said = capsys.readouterr().out
    assert "missed" in said
    assert "not measured" in said


def test_a_tiny_run_ends_with_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    argv = ["--sizes", "tiny", "--only", "sessions", "--contenders", "direct", "--current-user", "--work", str(work), "--out", str(out)]
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(argv) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (out / "report.md").exists()
    assert store.read(out).cases("sessions") == ["2 clients"]
    assert "sessions: 2 clients" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_stop_ends_everything(tmp_path: Path, number: signal.Signals) -> None:
    argv = [sys.executable, "-m", "benchmarks", "--only", "sessions", "--contenders", "direct", "--current-user", "--work", str(tmp_path)]
    with subprocess.Popen(argv, cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ) as suite:
        try:
            wait_until(lambda: list(tmp_path.glob("*/git/small.git/HEAD")) or suite.poll() is not None, 60, "the suite made a repository")
            suite.send_signal(number)
            said = suite.communicate(timeout=60)[0].decode()
        except (WaitTimeoutError, subprocess.TimeoutExpired) as error:
            running = [process.cmdline() for process in psutil.Process(suite.pid).children(recursive=True) if alive(process)]
            suite.kill()
            raise AssertionError(f"{error}; its processes: {running}") from None
        assert suite.returncode == 130, said
    assert "everything that was started is gone" in said
    assert list(tmp_path.iterdir()) == []
