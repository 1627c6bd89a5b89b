"""Servers and clients as process trees: started in sessions of their own, measured from /proc, ended completely."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
REAPER = str(Path(__file__).with_name("reaper.py"))
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
STOP_SECONDS = 5.0
SETTLE_SECONDS = 3.0
STILL_SECONDS = 0.09
LOG_TAIL_BYTES = 2_000

T = TypeVar("T")


class MeasureError(Exception):
    """A contender failed at its task; the message is for the report."""


class Stat(NamedTuple):
    """One line of /proc/PID/stat (proc(5)); CPU seconds include children that were waited for."""

    pid: int
    parent: int
    started: int
    cpu_seconds: float
    children_seconds: float  # the part of children
    rss_bytes: int


class Memory(NamedTuple):
    """Bytes of a process tree: resident, and resident with shared pages divided among their users."""

    rss: int
    pss: int


def read_stat(pid: int) -> Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name may contain blanks and parentheses
    own, children = (sum(int(fields[i]) for i in pair) / TICKS_A_SECOND for pair in ((11, 12), (13, 14)))  # utime, stime; cutime, cstime
    return Stat(pid, int(fields[1]), int(fields[19]), own + children, children, int(fields[21]) * PAGE_BYTES)


def tree(pid: int) -> list[Stat]:
    """The process and all its descendants; empty when it is gone."""
    stats = {stat.pid: stat for entry in Path("/proc").glob("[0-9]*") if (stat := read_stat(int(entry.name)))}
    children: dict[int, list[int]] = {}
    for stat in stats.values():
        children.setdefault(stat.parent, []).append(stat.pid)
    found, queue = [], [pid] if pid in stats else []
    while queue:
        one = queue.pop()
        found.append(stats[one])
        queue.extend(children.get(one, []))
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of the tree so far, with threads that have ended, and with children, whose time the kernel tells by the clock tick only."""
    return sum(_clock_seconds(stat) for stat in tree(pid))


def _clock_seconds(stat: Stat) -> float:
    clock = (~stat.pid << 3) | 2  # clock_getcpuclockid(3): the process's own clock, in nanoseconds
    try:
        return time.clock_gettime(clock) + stat.children_seconds
    except OSError:
        return stat.cpu_seconds  # ended meanwhile


def memory(pid: int) -> Memory:
    rss = pss = 0
    for stat in tree(pid):
        rss += stat.rss_bytes
        try:
            rollup = Path(f"/proc/{stat.pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
        if found := re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE):
            pss += int(found[1]) * 1024
    return Memory(rss, pss)


def settle(pids: Iterable[int]) -> None:
    """Wait until the trees have neither forked, reaped nor computed for `STILL_SECONDS`, at most `SETTLE_SECONDS`."""
    roots = list(pids)
    changed = time.monotonic()
    deadline = changed + SETTLE_SECONDS
    before: list[tuple[int, float]] = []
    while (clock := time.monotonic()) < deadline and clock - changed < STILL_SECONDS:
        now = [(stat.pid, stat.cpu_seconds) for pid in roots for stat in tree(pid)]
        if now != before:
            before, changed = now, time.monotonic()
        time.sleep(0.03)


def end(stats: Iterable[Stat]) -> None:
    """End these processes: SIGTERM, then SIGKILL. A pid that the kernel has reused for another process is left alone."""

    def living(wanted: Iterable[Stat]) -> list[Stat]:
        return [stat for stat in wanted if (now := read_stat(stat.pid)) is not None and now.started == stat.started]

    left = living(stats)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for stat in left:
            try:
                os.kill(stat.pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + STOP_SECONDS
        while (left := living(left)) and time.monotonic() < deadline:
            reap(left)
            time.sleep(0.02)
        if not left:
            return


def reap(stats: Iterable[Stat]) -> None:
    """Wait for those that are children of this process, so that none stays a zombie; init waits for sshd's orphans."""
    for stat in stats:
        try:
            os.waitpid(stat.pid, os.WNOHANG)
        except ChildProcessError:
            continue


class Server:
    """A process that serves until `stop`; both of its outputs go to one log file. `pid` is that of the reaper, its parent."""

    def __init__(self, argv: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        self.argv, self.log = list(argv), log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-E", REAPER, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def wait_for(self, pattern: str, seconds: float) -> re.Match[str]:
        """Wait until the log matches; raises MeasureError with the log's end when the process ends or time is up."""
        deadline = time.monotonic() + seconds
        while True:
            ended = self._process.poll() is not None
            if found := re.search(pattern, self.log.read_text(errors="replace")):
                return found
            if ended or time.monotonic() > deadline:
                why = f"ended with {self._process.returncode}" if ended else f"said nothing like {pattern!r} in {seconds:.0f} s"
                raise MeasureError(f"{Path(self.argv[0]).name} {why}: {self.tail()}")
            time.sleep(0.02)

    def wait_for_port(self, port: int, seconds: float) -> None:
        """Wait until a process listens on the loopback port (from /proc, because the server would log a connection as a scanner's)."""
        deadline = time.monotonic() + seconds
        while f"0100007F:{port:04X} 00000000:0000 0A" not in Path("/proc/net/tcp").read_text():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise MeasureError(f"{Path(self.argv[0]).name} does not listen on {port}: {self.tail()}")
            time.sleep(0.02)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-LOG_TAIL_BYTES:].strip() or "(no output)"

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """End the process and all its descendants."""
        family = tree(self.pid)
        end([stat for stat in family if stat.pid == self.pid])
        end(family)
        self._process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """End all at once, the one that listens first: nobody has time for a last word, as when a machine loses power."""
        family = tree(self.pid)
        for stat in family:
            if stat.pid != self.pid:  # the reaper ends by itself
                with contextlib.suppress(ProcessLookupError):
                    os.kill(stat.pid, signal.SIGKILL)
        end(family)
        self._process.wait(STOP_SECONDS)


class Runner:
    """Client commands, each timed and in a session of its own, so that all of them can be ended at once."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = dict(env)
        self._live: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise MeasureError("the run is ending")
            process = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**self.env, **(env or {})},
                start_new_session=True,
            )
            self._live.add(process)
        return process

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        """Reap the command; if it still runs, end it and its descendants first."""
        self._kill(process)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        with self._lock:
            self._live.discard(process)

    def run(self, argv: Sequence[str], *, seconds: float, env: Mapping[str, str] | None = None) -> tuple[float, bytes]:
        """Wall seconds and standard output; raises MeasureError on a failure or after `seconds`."""
        start = time.perf_counter()
        process = self.start(argv, env=env)
        try:
            stdout, stderr = process.communicate(timeout=seconds)
            took = time.perf_counter() - start
        except subprocess.TimeoutExpired:
            raise MeasureError(f"{Path(argv[0]).name} {argv[-1]} took over {seconds:.0f} s") from None
        finally:
            self.finish(process)
        if process.returncode != 0:
            said = stderr.decode(errors="replace")[-LOG_TAIL_BYTES:].strip()
            raise MeasureError(f"{Path(argv[0]).name} ended with {process.returncode}: {said}")
        return took, stdout

    def kill_all(self) -> None:
        with self._lock:
            live = list(self._live)
        for process in live:
            self._kill(process)

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self.kill_all()

    def together(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """Run the jobs at once, one thread each. The first failure, or Ctrl-C, ends the clients of all of them."""
        with ThreadPoolExecutor(len(jobs)) as threads:
            futures = [threads.submit(job) for job in jobs]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self.kill_all()
                raise

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:  # not reaped, so the kernel has not reused the group's id
            os.killpg(process.pid, signal.SIGKILL)
