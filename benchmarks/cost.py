"""`python -m benchmarks.cost [--against TREE]`: what a session costs the relay in CPU time or in system calls, two trees in turn.

For decisions on a machine that others use too: wall time tells little there, while the CPU time that the kernel's scheduler counts
(in nanoseconds) of the workers over hundreds of sessions a turn repeats within a few per cent. The trees take
turns (A B, B A, A B, ...); the least and the median of all turns are told, and the difference of each pair. `--syscalls` counts with strace
instead, which slows everything down: its figures are counts only.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.contenders import Contender
from benchmarks.processes import MeasureError, cpu_seconds, tree
from benchmarks.results import Results
from benchmarks.sizes import SIZES
from benchmarks.suite import Bench, Plan, world

REST_SECONDS = 0.3  # after a turn, in which the relay fills its pools and closes connections
STRACE_SECONDS = 20.0
CALLS_SHOWN = 25
FETCHED = "fetched"  # a repository

Load = Callable[[Contender, int], int]  # some sessions, and how many there were


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--against", type=Path, help="another checkout of the relay, run by this environment's python")
    parser.add_argument("--sessions", type=int, default=400, help="a turn")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each tree")
    parser.add_argument("--clients", type=int, default=4, help="at once")
    parser.add_argument("--workers", type=int, default=1, help="of each tree, and threads of the Go relay; 0 is one for each core")
    parser.add_argument("--go", action="store_true", help="the Go relay takes turns too")
    parser.add_argument("--fetches", type=int, metavar="BYTES", help="sessions are fetches by protocol version 2 of so much")
    parser.add_argument("--syscalls", action="store_true", help="count system calls by strace instead of CPU time")
    options = parser.parse_args(argv)
    console = Console()
    sizes = msgspec.structs.replace(SIZES["quick"], repository_bytes=0, pool_idle=max(8, options.clients))
    results = Results("", sizes, machine.describe())
    try:
        with world(Plan(sizes, (), contenders=()), results, console) as bench, ExitStack() as stack:
            contenders = {"this": stack.enter_context(bench.fleet.relay(workers=options.workers))}
            if options.against is not None:
                contenders["that"] = stack.enter_context(bench.fleet.relay(workers=options.workers, tree=options.against))
            if options.go and (go := stack.enter_context(bench.fleet.go(processors=options.workers or None))) is not None:
                contenders["go"] = go
            if options.fetches is not None:
                bench.space.repository(FETCHED, options.fetches)
            load = partial(_load, bench, options.clients, options.fetches is not None)
            for contender in contenders.values():
                load(contender, options.sessions)
            if options.syscalls:
                _show_calls({name: calls(load, one) for name, one in contenders.items()}, console)
            else:
                _show_seconds(turns(load, contenders, options.rounds, options.sessions), console)
    except MeasureError as error:
        console.print(f"cannot measure: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _load(bench: Bench, clients: int, fetches: bool, contender: Contender, sessions: int) -> int:
    """Returns how many sessions there were."""
    if fetches:
        return len(bench.clients.fetches(contender, FETCHED, clients, sessions).latencies)
    return len(bench.clients.sessions(contender, clients, count=sessions).latencies)


def turns(load: Load, contenders: dict[str, Contender], rounds: int, sessions: int) -> dict[str, list[float]]:
    """CPU seconds per session, for each turn."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        for name in order:
            time.sleep(REST_SECONDS)
            before = on_cpu(contenders[name])
            load(contenders[name], sessions)
            time.sleep(REST_SECONDS)
            taken[name].append((on_cpu(contenders[name]) - before) / sessions)
        order.reverse()
    return taken


def on_cpu(contender: Contender) -> float:
    """CPU seconds of all its processes so far."""
    return sum(cpu_seconds(root) for root in contender.pids)


def calls(load: Load, contender: Contender) -> Counter[str]:
    """System calls per session, by name, in tenths."""
    program = shutil.which("strace")
    if program is None:
        raise MeasureError("strace is not installed")
    pids = [str(stat.pid) for root in contender.pids for stat in tree(root)]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "strace"
        argv = [program, "-f", "-c", "-U", "calls,name", "-o", str(output), *(f"--attach={pid}" for pid in pids)]
        process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        try:
            time.sleep(1.0)
            done = load(contender, 200)
            time.sleep(REST_SECONDS)
        finally:
            process.terminate()
            process.wait(STRACE_SECONDS)
        return counted(output.read_text(), done)


def counted(text: str, sessions: int) -> Counter[str]:
    """Tenths of calls per session, from the two columns of `strace -c -U calls,name`."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        if (row := re.fullmatch(r"\s*(\d+)\s+(\w+)\s*", line)) and row[2] != "total":
            found[row[2]] = round(10 * int(row[1]) / sessions)
    if not found:
        raise MeasureError("strace saw nothing")
    return found


def _show_seconds(taken: dict[str, list[float]], console: Console) -> None:
    table = Table("relay CPU per session [ms]", "least", "median", "most", title_justify="left")
    for name, seconds in taken.items():
        table.add_row(name, *(f"{1e3 * value:.3f}" for value in (min(seconds), statistics.median(seconds), max(seconds))))
    console.print(table)
    for name in list(taken)[1:]:
        pairs = sorted(one / other for one, other in zip(taken["this"], taken[name], strict=True))
        console.print(
            f"this / {name}: {statistics.median(pairs):.3f} ({pairs[0]:.3f} to {pairs[-1]:.3f}) by pairs, "
            f"{min(taken['this']) / min(taken[name]):.3f} by the least",
            highlight=False,
        )


def _show_calls(counts: dict[str, Counter[str]], console: Console) -> None:
    table = Table("system calls per session", *counts, title_justify="left")
    names = Counter[str]()
    for one in counts.values():
        names |= one
    table.add_row("all", *(f"{sum(one.values()) / 10:.1f}" for one in counts.values()))
    for name, _ in names.most_common(CALLS_SHOWN):
        table.add_row(name, *(f"{one[name] / 10:.1f}" for one in counts.values()))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
