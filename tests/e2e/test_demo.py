"""`relay demo` as a newcomer uses it: the round trip of --once, and the printed `git clone` line that the newcomer pastes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from tests.support.wait import wait_until

START_SECONDS = 60.0
STOP_SECONDS = 30.0


def environment(folder: Path) -> dict[str, str]:
    """Temporary files are in a folder where the test sees leftovers; git and ssh read no settings of this machine."""
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}


def test_once_does_the_round_trip_and_says_what_it_saw(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "relay", "demo", "--once"],
            cwd=Path(__file__).parents[2],
            env=environment(Path(folder)),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        for step in ("clone", "commit", "push", "fetch"):
            assert re.search(rf"^{step}: ok in \d+ ms$", done.stdout, re.MULTILINE), done.stdout
        assert "1 x git-receive-pack ok" in done.stdout
        assert "3 x git-upload-pack ok" in done.stdout
        assert done.stderr == ""
        assert list(Path(folder).iterdir()) == []


def test_the_printed_line_clones_and_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with (tmp_path / "out").open("wb") as out:
            demo = subprocess.Popen(
                [sys.executable, "-m", "relay", "demo"],
                cwd=Path(__file__).parents[2],
                env=environment(folder),
                stdout=out,
                stderr=subprocess.STDOUT,
            )

        def said() -> str:
            return (tmp_path / "out").read_text()

        try:
            wait_until(lambda: demo.poll() is not None or "Ctrl-C" in said(), START_SECONDS, "the demo tells how to clone")
            line = next(line.strip() for line in said().splitlines() if "git clone" in line)
            work = tmp_path / "work"
            work.mkdir()
            home = {"PATH": os.environ["PATH"], "HOME": str(work)}
            cloned = subprocess.run(["sh", "-c", line], cwd=work, env=home, capture_output=True, text=True, timeout=60)
            assert cloned.returncode == 0, cloned.stderr
            log = subprocess.run(["git", "-C", "app", "log", "--format=%s"], cwd=work, capture_output=True, text=True, check=True)
            assert log.stdout.splitlines() == ["Commit 3", "Commit 2", "Commit 1"]
            children = psutil.Process(demo.pid).children(recursive=True)
            demo.send_signal(signal.SIGINT)
            assert demo.wait(STOP_SECONDS) == 0, said()
            assert re.search(r"carried 1 sessions, \d+ bytes", said())
            assert [child for child in children if child.is_running()] == []
            assert list(folder.iterdir()) == []
        finally:
            if demo.poll() is None:
                demo.kill()
                demo.wait()
