"""Equal clones at once, as a CI pipeline begins them: 64 fetches of one commit by protocol version 2, 16 at a time, of a repository of
200 MB in full and by depth 1. The clients are goroutines of one process that count the pack and throw it away, because git's index-pack
would take both cores; real git is a row of its own, with fewer clones. The relay takes part twice, as it is and with [packs], whose
folder is emptied before each turn: the first of the equal fetches is served by the git host, the second one fills the entry, the others
read it. A last case asks for something else each time, so that no fetch is a hit. Timed are the whole turn, and each fetch from the
client's dial to the first byte of its pack and to its exit; CPU time is that of the git host's and of the contender's process trees.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from benchmarks.contenders import REPOSITORY_ROOT, Contender, Profile
from benchmarks.figures import Sample
from benchmarks.processes import MeasureError

if TYPE_CHECKING:
    from benchmarks.suite import Bench

NAME = "storm"
REPOSITORY = "storm"
FULL, SHALLOW, GIT, UNEQUAL = "full clones", "clones of depth 1", "full clones by real git", "unequal clones of a small repository"
WALL, FIRST, END = "wall time", "to the first byte of the pack", "to the end"
HOST_CPU, RELAY_CPU, CLIENT_CPU = "git host's CPU", "relay's CPU", "clients' CPU"
STATISTICS = ("p50", "p95")
CLEAR_SECONDS = 30.0


def fetches(bench: Bench, repository: str, number: int, depth: int, step: int, contender: Contender) -> Mapping[str, Sample]:
    clear(contender)
    cost = bench.cost(contender)
    load = bench.clients.fetches(contender, repository, bench.sizes.storm_together, number, depth=depth, step=step)
    samples = {
        WALL: Sample("s", "lower", [load.elapsed]),
        FIRST: Sample("ms", "lower", [took * 1e3 for took in load.first], STATISTICS),
        END: Sample("ms", "lower", [took * 1e3 for took in load.latencies], STATISTICS),
        CLIENT_CPU: Sample("s", "lower", [load.cpu_seconds]),
    }
    return samples | _spent(cost.seconds(), contender)


def clones(bench: Bench, contender: Contender) -> Mapping[str, Sample]:
    """Real git's, each of which checks what it has."""
    clear(contender)
    sizes, took = bench.sizes, list[float]()

    def one() -> None:
        took.append(bench.clients.clone(contender, Profile.PINNED, REPOSITORY))

    cost = bench.cost(contender)
    begin = time.perf_counter()
    for _ in range(sizes.storm_git_clones // sizes.storm_git_together):
        bench.clients.runner.together([one] * sizes.storm_git_together)
    wall = time.perf_counter() - begin
    samples = {
        WALL: Sample("s", "lower", [wall]),
        END: Sample("ms", "lower", [one * 1e3 for one in took], STATISTICS),
    }
    return samples | _spent(cost.seconds(), contender)


def _spent(seconds: tuple[float, float], contender: Contender) -> dict[str, Sample]:
    relay, host = seconds
    samples = {HOST_CPU: Sample("s", "lower", [host])}
    return samples | ({RELAY_CPU: Sample("s", "lower", [relay])} if contender.pids else {})


def clear(contender: Contender) -> None:
    """Empties the folder of [packs], so that each turn begins with none."""
    if contender.packs is None:
        return
    argv = [sys.executable, "-m", "relay", "packs", "-c", str(contender.packs), "--clear"]
    done = subprocess.run(argv, cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=CLEAR_SECONDS, check=False)
    if done.returncode:
        raise MeasureError(f"relay packs --clear ended with {done.returncode}: {done.stderr.strip()}")


def run(bench: Bench) -> None:
    sizes = bench.sizes
    bench.space.repository(REPOSITORY, sizes.storm_repository_bytes)

    def warm(contender: Contender) -> Mapping[str, Sample]:
        """A storm of a small repository, so that a pool is warm."""
        bench.clients.fetches(contender, "small", sizes.storm_together, 2 * sizes.storm_together)
        return {}

    depths = count(1, sizes.storm_unequal)  # a fetch that came in an earlier turn would be the second of its kind

    def unequal(contender: Contender) -> Mapping[str, Sample]:
        return fetches(bench, "small", sizes.storm_unequal, next(depths), 1, contender)

    with bench.fleet.relay(packs=True) as with_packs:
        among = [*(one for one in bench.contenders if one.name != "forced"), with_packs]
        bench.results.contenders[with_packs.name] = with_packs.about
        cases: dict[str, tuple[int, Callable[[Contender], Mapping[str, Sample]]]] = {
            FULL: (sizes.storm_rounds, partial(fetches, bench, REPOSITORY, sizes.storm_fetches, 0, 0)),
            SHALLOW: (sizes.storm_rounds, partial(fetches, bench, REPOSITORY, sizes.storm_fetches, 1, 0)),
            GIT: (1, partial(clones, bench)),
            UNEQUAL: (sizes.rounds, unequal),
        }
        for case, (rounds, measure) in cases.items():
            bench.case(NAME, case, measure, warm=warm, rounds=rounds, among=among)
