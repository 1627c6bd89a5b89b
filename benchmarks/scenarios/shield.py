"""The git host's sshd is killed with all its sessions while clients work, and started again on the same port some time later, as by a
restart of the machine's sshd that takes long. `git ls-remote` and bare clones of a small repository begin at fixed times, whether or
not the ones before have ended, so every contender has the same attempts in each turn: before, during and after the restart. Real git
and ssh, everything as a stock client negotiates. Counted is the share of attempts that failed; timed are those that ended well, waiting
included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.contenders import Contender, Profile
from benchmarks.figures import Sample
from benchmarks.processes import MeasureError, settle

if TYPE_CHECKING:
    from benchmarks.suite import Bench

NAME = "shield"
CASE = "a restart of the git host"
LS_REMOTE, CLONE = "ls-remote", "clone"
LS_REMOTE_ERRORS, CLONE_ERRORS = "ls-remotes that failed", "clones that failed"
STATISTICS = ("p50", "p99")
STOPPED_AT = 0.25  # of the turn's time


def turn(bench: Bench, contender: Contender) -> dict[str, Sample]:
    sizes = bench.sizes
    host = bench.fleet.upstream
    settle((*contender.pids, host.pid))
    took: dict[str, list[float]] = {LS_REMOTE: [], CLONE: []}
    failed = {LS_REMOTE: 0, CLONE: 0}
    begin = time.monotonic()

    def attempt(what: str, measure: Callable[[Contender, Profile, str], float], at: float) -> None:
        time.sleep(max(0.0, begin + at - time.monotonic()))
        try:
            took[what].append(measure(contender, Profile.STOCK, "small") * 1e3)
        except MeasureError:
            failed[what] += 1

    def restart() -> None:
        time.sleep(sizes.shield_seconds * STOPPED_AT)
        host.kill()
        time.sleep(sizes.shield_down_seconds)
        host.start()

    starts = [number * sizes.shield_every_seconds for number in range(round(sizes.shield_seconds / sizes.shield_every_seconds))]
    kinds = ((LS_REMOTE, bench.clients.ls_remote), (CLONE, bench.clients.clone))
    attempts: list[Callable[[], None]] = [partial(attempt, what, measure, at) for at in starts for what, measure in kinds]
    with ThreadPoolExecutor(1) as beside:
        working = beside.submit(bench.clients.runner.together, attempts)
        restart()  # in this thread: the kernel ends a server with the thread that started it
        working.result()
    for what, measure in kinds:  # the last attempts: the host is there, however long it took
        attempt(what, measure, sizes.shield_seconds)
    if not all(took.values()):
        raise MeasureError(f"of {len(starts)} attempts none ended well: {failed}")
    return {
        LS_REMOTE_ERRORS: Sample("%", "lower", [100 * failed[LS_REMOTE] / (len(starts) + 1)]),
        CLONE_ERRORS: Sample("%", "lower", [100 * failed[CLONE] / (len(starts) + 1)]),
        LS_REMOTE: Sample("ms", "lower", took[LS_REMOTE], STATISTICS),
        CLONE: Sample("ms", "lower", took[CLONE], STATISTICS),
    }


def warm(bench: Bench, contender: Contender) -> dict[str, Sample]:
    """One untimed attempt of each kind."""
    for measure in (bench.clients.ls_remote, bench.clients.clone):
        measure(contender, Profile.STOCK, "small")
    return {}


def run(bench: Bench) -> None:
    bench.case(NAME, CASE, partial(turn, bench), warm=partial(warm, bench), rounds=bench.sizes.shield_rounds)
