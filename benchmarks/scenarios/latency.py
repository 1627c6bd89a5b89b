"""Time from starting `git ls-remote` on a repository with 20 branches to its exit, by the real git and the real ssh. Every contender
has its turn in every round: first one at a time, then 16 at once in a closed loop. Once with everything that a stock OpenSSH client
negotiates, once with curve25519-sha256 as the only key exchange, so that no contender wins by the cipher suite (OpenSSH against
OpenSSH spends 70 ms on sntrup761). Percentiles are over the samples of all rounds, the spread is that of single rounds. One
ls-remote of each contender before the first round is not counted.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.contenders import Contender, Profile
from benchmarks.figures import Sample

if TYPE_CHECKING:
    from benchmarks.suite import Bench

NAME = "latency"
TIME = "ls-remote"
STATISTICS = ("p50", "p95", "p99")


def case(profile: Profile, at_once: int) -> str:
    return f"{profile.value}, {'one at a time' if at_once == 1 else f'{at_once} at once'}"


def together(bench: Bench, profile: Profile, at_once: int, samples: int, contender: Contender) -> dict[str, Sample]:
    """`samples` ls-remotes by `at_once` clients, each of which starts the next when the last has ended."""
    taken: list[float] = []
    left = threading.Semaphore(samples)

    def client() -> None:
        while left.acquire(blocking=False):
            taken.append(bench.clients.ls_remote(contender, profile, "small") * 1e3)

    bench.clients.runner.together([client] * at_once)
    return {TIME: Sample("ms", "lower", taken, STATISTICS)}


def run(bench: Bench) -> None:
    sizes = bench.sizes
    for profile in bench.profiles:
        for at_once, samples in ((1, sizes.latency_samples), (sizes.latency_together, sizes.latency_together_samples)):
            bench.case(
                NAME,
                case(profile, at_once),
                partial(together, bench, profile, at_once, samples),
                warm=partial(together, bench, profile, 1, 1),
                rounds=sizes.rounds,
            )
