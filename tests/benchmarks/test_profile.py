"""Output of profilers, parsed into shares of functions."""

from __future__ import annotations

import os

import pytest

from benchmarks import profile
from benchmarks.contenders import Contender
from benchmarks.processes import MeasureError
from benchmarks.results import Line

FOLDED = """\
process 1:"relay";main (cli.py:1);read (reading.py:40) 30
process 1:"relay";main (cli.py:1) 10
process 2:"relay";other (x.py:2);read (reading.py:40) 20
process 2:"relay";_bootstrap (threading.py:1);_worker (concurrent/futures/thread.py:69) 400
"""
REPORT = "    62.50%\t5\tlibcrypto.so.3\t[.] aes_gcm\n    37.50%\t3\t[kernel.kallsyms]\t[k] copy_user\n\n# a remark\n"


def test_a_functions_own_samples_count_whoever_called_it_and_waiting_is_no_work() -> None:
    assert profile.folded(FOLDED) == (60, [Line(83.33, "read (reading.py:40)"), Line(16.67, "main (cli.py:1)")])


def test_perfs_rows_name_object_and_symbol() -> None:
    assert profile.symbols(REPORT) == (8, [Line(62.5, "libcrypto.so.3 [.] aes_gcm"), Line(37.5, "[kernel.kallsyms] [k] copy_user")])


@pytest.mark.parametrize("read", [profile.folded, profile.symbols])
def test_a_profiler_that_saw_nothing_is_left_out(read: object) -> None:
    with pytest.raises(MeasureError, match="no sample"):
        read("")  # type: ignore[operator]


def test_a_load_that_fails_fails_the_profile() -> None:
    def load() -> None:
        raise MeasureError("it broke")

    with pytest.raises(MeasureError, match="it broke"):
        profile.under(load, lambda: (1, []))


def test_a_relay_that_has_ended_has_no_root() -> None:
    childless = Contender("relay", "", "", {}, "", "", os.devnull, None, (2**22 + 1,), forks=False)  # type: ignore[arg-type]
    with pytest.raises(MeasureError, match="has ended"):
        profile.root(childless)


@pytest.mark.parametrize("label", ["", "a b", "../x", "x" * 41])
def test_a_label_is_a_file_name(label: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        profile.main(["--label", label])
    assert "a label is" in capsys.readouterr().err
