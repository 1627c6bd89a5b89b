"""Signals that this process ignores are not ignored by the programs that tests start; which processes are alive."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

from tests.support.processes import USUALLY_INHERITED, alive
from tests.support.wait import wait_until

CHILD = "import signal, sys; print([int(number) for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN])"
PARENT = f"""
import subprocess, sys
from tests.support.processes import let_children_hear_signals
if sys.argv[1] == "let":
    let_children_hear_signals()
subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
import os, signal
os.kill(os.getpid(), int(sys.argv[2]))
print("lives on")
"""


@pytest.mark.parametrize("number", USUALLY_INHERITED, ids=lambda number: number.name)
@pytest.mark.parametrize("how", ["let", "inherit"])
def test_a_child_hears_a_signal_that_its_parent_was_started_to_ignore(number: signal.Signals, how: str) -> None:
    shell = ["/bin/sh", "-c", f"trap '' {number.name.removeprefix('SIG')}; exec \"$@\"", "sh"]
    arguments = [*shell, sys.executable, "-c", PARENT, how, str(int(number))]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    ignored, _, after = done.stdout.partition("\n")
    assert (str(int(number)) in ignored.strip("[]").split(", ")) == (how == "inherit")
    assert after == "lives on\n", "the parent goes on ignoring it"


HALF_DEAD = """
import ctypes, platform, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)  # exit(2): of this thread only
"""


def test_a_process_is_alive_until_its_last_thread_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", HALF_DEAD]) as half:
        process = psutil.Process(half.pid)
        try:
            wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE)
            assert alive(process)
        finally:
            half.kill()
        wait_until(lambda: not alive(process))
    assert not alive(process)
