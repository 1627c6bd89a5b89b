"""`relay demo` as a process: the whole round trip, or the line for the user to paste; and it leaves nothing behind."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from relay.preflight.files import SOCKET_PATH_BYTES
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]
SECONDS = 60


@contextmanager
def demo(folder: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The demo with `folder` as the place for temporary files; killed if the test has not ended it."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1", **environment}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-m", "relay", "demo", *arguments], env=env, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Longer than a socket's path may be, as a folder for temporary files is on some machines."""
    folder = tmp_path / ("t" * SOCKET_PATH_BYTES)
    folder.mkdir()
    return folder


def test_once_clones_commits_pushes_and_fetches_by_the_real_git(folder: Path) -> None:
    with demo(folder, "--once") as process:
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (0, "")
    steps = re.findall(r"^(clone|clone again|commit|push|fetch): ok in \d+ ms$", out, re.MULTILINE)
    assert steps == ["clone", "clone again", "commit", "push", "fetch"]
    assert "the relay carried 1 x git-receive-pack ok" in out
    assert "the relay carried 3 x git-upload-pack ok" in out
    assert re.search(r"commit [0-9a-f]{12} went in by one clone and came out by the other; \d+ bytes through libssh2 1\.", out)
    assert list(folder.iterdir()) == []


def test_the_printed_clone_line_works_and_ctrl_c_removes_all_files(folder: Path, tmp_path: Path) -> None:
    with demo(folder) as process:
        assert process.stdout is not None
        said = ""
        while "Ctrl-C" not in said:
            line = process.stdout.readline()
            assert line, f"it ended with {process.wait(5)}"
            said += line
        found = re.search(r"^  (git clone -c core\.sshCommand=.* \S+)$", said, re.MULTILINE)
        assert found is not None, said
        clone = subprocess.run(
            ["/bin/sh", "-c", f"{found[1]} {shlex.quote(str(tmp_path / 'work'))}"], capture_output=True, text=True, timeout=SECONDS
        )
        assert clone.returncode == 0, clone.stderr
        assert (tmp_path / "work/README").read_text() == "Hello.\nThis came fast.\n"
        again = f"cd {shlex.quote(str(tmp_path / 'work'))} && git push -q origin HEAD:refs/heads/topic && git fetch -q origin topic"
        pushed = subprocess.run(["/bin/sh", "-c", again], capture_output=True, text=True, timeout=SECONDS)
        assert pushed.returncode == 0, f"the clone knows how to come back: {pushed.stderr}"
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (0, "")
    assert re.search(r"Z ok       you +127\.0\.0\.1 +(clone|fetch) +team/app on demo", out), "whoever looks on sees it"
    assert re.search(r"stopping; carried 3 sessions, \d+ bytes", out)
    wait_until(lambda: not any(child.is_running() for child in children))
    assert list(folder.iterdir()) == []


def test_a_failed_step_is_printed_and_exits_with_1(folder: Path, tmp_path: Path) -> None:
    """Here git's own ssh fails: another program of that name comes first on PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ssh").write_text("#!/bin/sh\necho no ssh today >&2\nexit 255\n")
    (programs / "ssh").chmod(0o755)
    with demo(folder, "--once", PATH=f"{programs}:{os.environ['PATH']}") as process:
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (1, "")
    assert re.fullmatch(r"demo failed: git clone .* exited with 128: no ssh today\n(.*\n)*", out), out
    assert list(folder.iterdir()) == []


def test_a_taken_port_is_reported_in_one_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with demo(folder, "--port", str(port)) as process:
            out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (1, "")
    assert len(out.splitlines()) == 1
    assert out.startswith(f"demo failed: 127.0.0.1:{port} cannot be listened on: ")
    assert "in use" in out
    assert list(folder.iterdir()) == []


def test_a_missing_git_is_reported_in_one_line(folder: Path, tmp_path: Path) -> None:
    with demo(folder, "--once", PATH=str(tmp_path)) as process:
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, err) == (1, "demo failed: git is missing: install the package git\n", "")
    assert list(folder.iterdir()) == []
