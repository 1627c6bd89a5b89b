"""Process trees: their CPU time, orphans included, and their end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.processes import MeasureError, Runner, Server, cpu_seconds, end, memory, read_stat, settle, tree

BURN = "import time\nwhile time.process_time() < 0.2: pass"
# a child that uses CPU time, and whose parent ends without waiting for it, as sshd's monitor does
ORPHAN = f"""
import os, sys, time
print("serving", flush=True)
if os.fork() == 0:
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-c", {BURN!r}])
    os._exit(0)
os.wait()
time.sleep(600)
"""


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(code: str) -> Server:
        started.append(Server([sys.executable, "-c", code], tmp_path / f"log{len(started)}"))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def test_this_process_is_seen() -> None:
    stat = read_stat(os.getpid())
    assert stat is not None
    assert stat.parent == os.getppid()
    assert stat.rss_bytes > 1_000_000
    used = memory(os.getpid())
    assert used.pss > 0
    assert stat.rss_bytes / 2 < used.rss


def test_a_process_that_is_gone_has_no_tree() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert read_stat(child.pid) is None
    assert tree(child.pid) == []
    assert cpu_seconds(child.pid) == 0


def test_the_time_of_an_orphan_that_nobody_waited_for_counts(serve: Callable[..., Server]) -> None:
    server = serve(ORPHAN)
    server.wait_for("serving", 60)
    until(lambda: cpu_seconds(server.pid) >= 0.2 and len(tree(server.pid)) == 2)
    settle([server.pid])
    assert cpu_seconds(server.pid) >= 0.2


def test_wait_for_returns_the_match_and_tells_an_early_end_with_the_log(serve: Callable[..., Server]) -> None:
    assert serve("print('port 17', flush=True); import time; time.sleep(600)").wait_for(r"port (\d+)", 60)[1] == "17"
    broken = serve("raise SystemExit('no such key')")
    with pytest.raises(MeasureError, match="ended with 1: no such key"):
        broken.wait_for("never", 60)
    assert not broken.alive


def test_wait_for_gives_up(serve: Callable[..., Server]) -> None:
    with pytest.raises(MeasureError, match="said nothing like"):
        serve("import time; time.sleep(600)").wait_for("never", 0.1)


def test_stop_ends_the_whole_tree_also_one_that_ignores_sigterm(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.processes.STOP_SECONDS", 0.2)
    stubborn = (
        "import signal, subprocess, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\nprint('serving', flush=True)\ntime.sleep(600)"
    )
    server = serve(stubborn)
    server.wait_for("serving", 60)
    family = tree(server.pid)
    assert len(family) == 3  # reaper, server, its child
    server.stop()
    until(lambda: all((now := read_stat(one.pid)) is None or now.started != one.started for one in family))


def test_a_pid_that_belongs_to_another_process_now_is_left_alone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        stat = read_stat(child.pid)
        assert stat is not None
        end([stat._replace(started=stat.started - 1)])
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_runner_times_and_returns_what_a_client_said() -> None:
    took, said = Runner(os.environ).run([sys.executable, "-c", "import os; print(os.environ['WHO'])"], seconds=60, env={"WHO": "me"})
    assert said == b"me\n"
    assert took > 0


def test_runner_tells_a_failure_with_what_the_client_said() -> None:
    with pytest.raises(MeasureError, match="ended with 3: it went wrong"):
        Runner(os.environ).run([sys.executable, "-c", "import sys; sys.stderr.write('it went wrong'); sys.exit(3)"], seconds=60)


def test_runner_ends_a_client_that_hangs_with_all_that_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    shell = f"sleep 600 & echo $! > {note}; wait"
    with pytest.raises(MeasureError, match="took over"):
        Runner(os.environ).run(["sh", "-c", shell], seconds=1)
    until(lambda: read_stat(int(note.read_text())) is None or _zombie(int(note.read_text())))


def _zombie(pid: int) -> bool:
    """Whether the killed process is a zombie, which init has not reaped yet."""
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()


def test_a_failure_of_one_client_ends_those_beside_it() -> None:
    runner = Runner(os.environ)

    def fails() -> None:
        runner.run([sys.executable, "-c", "raise SystemExit(9)"], seconds=60)

    def hangs() -> None:
        runner.run(["sleep", "600"], seconds=600)

    with pytest.raises(MeasureError, match="ended with 9"):
        runner.together([fails, hangs])


def test_a_closed_runner_starts_nothing() -> None:
    runner = Runner(os.environ)
    runner.close()
    with pytest.raises(MeasureError, match="ending"):
        runner.run(["true"], seconds=5)
