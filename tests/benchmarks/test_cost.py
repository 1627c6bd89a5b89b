"""The cost of a session, from the kernel's counters."""

from __future__ import annotations

import os
import time
from collections import Counter

import pytest

from benchmarks import cost
from benchmarks.contenders import Contender
from benchmarks.processes import MeasureError

STRACE = """\
    calls syscall
--------- ----------------
      400 write
      110 read
        0 exit
--------- ----------------
      510 total
"""


def contender(*pids: int) -> Contender:
    return Contender("relay", "", "", {}, "", "", os.devnull, None, pids, forks=False)  # type: ignore[arg-type]


def test_system_calls_are_told_by_session() -> None:
    assert cost.counted(STRACE, 20) == Counter({"write": 200, "read": 55, "exit": 0})


def test_strace_that_saw_nothing_is_an_error() -> None:
    with pytest.raises(MeasureError, match="saw nothing"):
        cost.counted("", 1)


def test_the_time_on_a_cpu_grows_with_work_and_is_not_there_without_processes() -> None:
    assert cost.on_cpu(contender()) == 0
    before = cost.on_cpu(contender(os.getpid()))
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    assert cost.on_cpu(contender(os.getpid())) > before
