"""What a session costs in system calls, counted by strace: a ceiling, so that a change that adds some to each session is seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.cost import counted
from relay.ssh.gcm import ACCELERATED
from relay.upstream.libssh2 import loaded_library
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

SESSIONS = 20
WAITS = ("epoll_pwait", "epoll_wait", "futex", "restart_syscall")  # how often the loop waits depends on the machine
CEILING = 72  # of all others, a session with its login


def test_a_session_costs_no_more_system_calls_than_it_did(make_relay: Callable[..., RelayProcess], sshd: Sshd, tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    if sys.flags.dev_mode or os.environ.get("PYTHONASYNCIODEBUG"):
        pytest.skip("asyncio's debug mode looks at source files for each callback")
    if not loaded_library().build or not ACCELERATED:
        pytest.skip("the ceiling is that of the hardened libssh2 and relay_gcm")
    relay = make_relay(sshd, config={"workers": 1})
    client = relay.ssh()
    (worker,) = relay.processes()[1:]

    def sessions() -> None:
        for _ in range(SESSIONS):
            ended = client.run("git-upload-pack 'stub/emit/100/0'")
            assert (ended.returncode, len(ended.stdout)) == (0, 100), ended

    sessions()  # the pool is filled, and what is remembered of the client is remembered
    output, said = tmp_path / "counts", tmp_path / "said"
    argv = [strace, "-f", "-c", "-U", "calls,name", "-o", str(output), f"--attach={worker.pid}"]
    with said.open("wb") as file, subprocess.Popen(argv, stderr=file) as tracer:
        try:
            wait_until(lambda: b"attached" in said.read_bytes() or tracer.poll() is not None, message="strace is attached")
            if tracer.poll() is not None:
                pytest.skip(f"strace may not attach here: {said.read_text()}")
            sessions()
        finally:
            tracer.terminate()
    calls = {name: count / 10 for name, count in counted(output.read_text(), SESSIONS).items() if name not in WAITS}
    assert 20 < sum(calls.values()) <= CEILING, (sum(calls.values()), calls)
