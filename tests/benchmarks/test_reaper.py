"""The reaper: passes on the server's status, SIGTERM, and the death of its own parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from benchmarks.processes import REAPER, read_stat

SERVER = "import time; print('up', flush=True); time.sleep(600)"


def test_the_servers_status_is_the_reapers() -> None:
    assert subprocess.run([sys.executable, REAPER, "sh", "-c", "exit 7"], check=False).returncode == 7
    assert subprocess.run([sys.executable, REAPER, "sh", "-c", "kill -9 $$"], check=False).returncode == 128 + 9


def test_sigterm_reaches_the_server() -> None:
    catching = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(5)); print('up', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, REAPER, sys.executable, "-c", catching], stdout=subprocess.PIPE) as reaper:
        assert reaper.stdout is not None
        reaper.stdout.readline()
        reaper.send_signal(signal.SIGTERM)
        assert reaper.wait(20) == 5


def test_a_suite_that_was_killed_leaves_no_server() -> None:
    start = f"import subprocess, sys; subprocess.Popen({[sys.executable, REAPER, sys.executable, '-c', SERVER]!r}); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as suite:
        assert suite.stdout is not None
        suite.stdout.readline()  # the server runs, and has inherited this pipe
        suite.send_signal(signal.SIGKILL)
        suite.wait()
        deadline = time.monotonic() + 20
        os.set_blocking(suite.stdout.fileno(), False)
        while suite.stdout.read() != b"":  # None while any process has the other end open
            assert time.monotonic() < deadline, "the server still runs"
            time.sleep(0.02)
    assert read_stat(suite.pid) is None
