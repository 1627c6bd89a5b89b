"""`python -m benchmarks.profile --label NAME`: where the relay's time goes during bulk and sessions, seen by py-spy and by perf."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec
from rich.console import Console

from benchmarks import machine
from benchmarks.contenders import Contender, Profile
from benchmarks.processes import MeasureError, tree
from benchmarks.report import KEPT_PROFILES
from benchmarks.results import Line, Profiled, Results
from benchmarks.sizes import GIB, SIZES
from benchmarks.suite import Bench, Plan, world

LINES_KEPT = 20  # few, because the file is kept with the sources
RATE = 250  # samples a second
EXTRA_SECONDS = 60.0  # for a profiler to attach, and to write its output
CLIENTS = 16
WAITING = "_worker (concurrent/futures/thread.py"  # an idle thread of a pool, which py-spy takes for busy


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--label", required=True, type=_label, help="before, after, ...; replaces a profile of that label")
    parser.add_argument("--seconds", type=int, default=10, help="of each load, for each profiler")
    parser.add_argument("--stream-bytes", type=int, default=GIB)
    parser.add_argument("--current-user", action="store_true", help="create no account for the git host")
    parser.add_argument("--out", type=Path, default=KEPT_PROFILES, help="folder; every report includes what lies in the default one")
    options = parser.parse_args(argv)
    console = Console()
    sizes = msgspec.structs.replace(SIZES["full"], repository_bytes=0, stream_bytes=options.stream_bytes)
    results = Results("", sizes, machine.describe())
    plan = Plan(sizes, (), contenders=("relay",), plain_user=not options.current_user)
    try:
        with world(plan, results, console) as bench:
            if not bench.contenders:
                raise MeasureError(f"the relay did not start: {results.left_out}")
            found = take(bench, options.label, options.seconds, console)
    except MeasureError as error:
        console.print(f"cannot profile: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("stopped; no profile was written")
        return 130
    target = options.out / f"{options.label}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    console.print(f"{target}: {len(found)} profiles", highlight=False)
    return 0


def take(bench: Bench, label: str, seconds: int, console: Console) -> list[Profiled]:
    """Every load under every installed profiler; one that fails, for lack of a permission, is reported and left out."""
    relay = bench.contenders[0]
    size = bench.sizes.stream_bytes
    loads: dict[str, Callable[[], object]] = {
        "bulk down, GCM": lambda: bench.clients.down(relay, Profile.GCM, size),
        "bulk up, GCM": lambda: bench.clients.up(relay, Profile.GCM, size),
        "sessions, 16 clients": lambda: bench.clients.sessions(relay, CLIENTS, count=10 * CLIENTS),
    }
    found = []
    commit = machine.commit()
    with tempfile.TemporaryDirectory() as folder:
        for load, once in loads.items():
            once()  # fills the pools
            for name, look in (("py-spy", py_spy), ("perf", perf)):
                console.print(f"{load} under {name} ...")
                try:
                    samples, lines = under(once, partial(look, relay, seconds, Path(folder)))
                except MeasureError as error:
                    console.print(f"{name} is left out: {error}", style="yellow", markup=False)
                    continue
                taken = datetime.now(UTC).isoformat(timespec="seconds")
                found.append(Profiled(label, load, name, samples, tuple(lines[:LINES_KEPT]), taken, commit))
    return found


Seen = tuple[int, list[Line]]


def under(load: Callable[[], object], look: Callable[[], Seen]) -> Seen:
    """The result of `look` while the load is repeated; a failed load fails the profile."""
    stop = threading.Event()
    failures: list[MeasureError] = []

    def again() -> None:
        while not stop.is_set():
            try:
                load()
            except MeasureError as error:
                failures.append(error)
                return

    thread = threading.Thread(target=again, daemon=True)
    thread.start()
    try:
        seen = look()
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]
    return seen


def py_spy(relay: Contender, seconds: int, folder: Path) -> Seen:
    """Python functions by own time, native code counted to the Python function that called it."""
    program = shutil.which("py-spy", path=sysconfig.get_path("scripts")) or shutil.which("py-spy")
    if program is None:
        raise MeasureError("py-spy is not installed")
    output = folder / "py-spy.raw"
    options = ["--subprocesses", "--function", "--rate", str(RATE), "--duration", str(seconds), "--format", "raw"]
    _run([program, "record", "--pid", str(root(relay)), *options, "--output", str(output)], seconds)
    return folded(output.read_text())


def perf(relay: Contender, seconds: int, folder: Path) -> Seen:
    """Symbols of all code, also of the kernel and OpenSSL, by own time."""
    program = shutil.which("perf")
    if program is None:
        raise MeasureError("perf is not installed")
    output = folder / "perf.data"
    pids = ",".join(str(stat.pid) for stat in tree(root(relay)))
    _run([program, "record", "-q", "-F", str(RATE), "-p", pids, "-o", str(output), "--", "sleep", str(seconds)], seconds)
    shown = ["--stdio", "--no-children", "--show-nr-samples", "--sort", "dso,symbol", "--field-separator", "\t"]
    return symbols(_run([program, "report", "-q", "-i", str(output), *shown], seconds))


def root(relay: Contender) -> int:
    """The relay's supervisor: the child of the suite's reaper."""
    (reaper,) = relay.pids
    children = [stat.pid for stat in tree(reaper) if stat.parent == reaper]
    if not children:
        raise MeasureError("the relay has ended")
    return children[0]


def folded(text: str) -> Seen:
    """Own share by function, from py-spy's folded stacks: `frame;frame;leaf (file) count` a line."""
    own: Counter[str] = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        leaf = stack.rsplit(";", 1)[-1]
        if leaf and not leaf.startswith(WAITING):
            own[leaf] += int(count)
    total = sum(own.values())
    if not total:
        raise MeasureError("no sample was taken")
    return total, [Line(round(100 * count / total, 2), where) for where, count in own.most_common()]


def symbols(text: str) -> Seen:
    """Own share by symbol, from perf's report: percent, samples, object and symbol, separated by tabs."""
    rows = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) >= 4 and (share := re.fullmatch(r"([\d.]+)%?", fields[0])):
            rows.append((float(share[1]), int(fields[1]), f"{fields[2]} {fields[3]}"))
    total = sum(samples for _, samples, _ in rows)
    if not total:
        raise MeasureError("no sample was taken")
    return total, [Line(share, where) for share, _, where in rows]


def _label(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", text):
        raise argparse.ArgumentTypeError("a label is 1 to 40 letters, digits, dots, dashes and underscores")
    return text


def _run(argv: Sequence[str], seconds: int) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + EXTRA_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise MeasureError(f"{Path(argv[0]).name} did not end") from None
    if done.returncode != 0:
        raise MeasureError(f"{Path(argv[0]).name} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
