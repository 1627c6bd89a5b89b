"""A supervisor and a worker start without the programs that asyncssh runs to look for libraries."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys

import pytest

from relay.ssh import asyncssh_import

WATCHED = """
import sys
started = []
sys.addaudithook(lambda event, arguments: started.append(arguments) if event in ("subprocess.Popen", "os.posix_spawn", "os.fork") else None)
import {module}
assert "asyncssh" in sys.modules
print(len(started))
"""


def started_by(module: str) -> int:
    """How many programs an interpreter starts that imports this module."""
    done = subprocess.run([sys.executable, "-c", WATCHED.format(module=module)], capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("module", ["relay.process.supervisor", "relay.process.worker"])
def test_no_program_is_run_to_import_a_process_of_the_relay(module: str) -> None:
    assert started_by(module) == 0


def test_asyncssh_alone_does_run_some() -> None:
    """Else the module is not needed any more."""
    assert started_by("asyncssh") > 0


def test_other_libraries_are_found_as_before() -> None:
    assert asyncssh_import._find_wanted("c") == ctypes.util.find_library("c") is not None
    assert ctypes.util.find_library is asyncssh_import._find
    assert all(asyncssh_import._find_wanted(name) is None for name in asyncssh_import.NOT_WANTED)
