"""Whole visits by a closed loop of 1, 16 and 64 clients: TCP connect, key exchange (curve25519-sha256 for all), login by an ed25519
key, one service at the git host that exits at once, its exit status checked, disconnect, and again. The clients are goroutines of
one process (peers/go_load; asyncssh where there is no Go), because the ssh binary's start-up costs more than the server. Counted
are sessions per second, the time of one session, and CPU time from /proc/PID/stat of the relay's whole process tree and of the git
host's, children included that came and went, read before and after each turn when both trees are at rest. The load generator's own
CPU time is told beside it, as it shares the machine. Before the first round each contender serves some sessions uncounted, so that
a pool, where there is one, is warm.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.contenders import Contender
from benchmarks.figures import Sample

if TYPE_CHECKING:
    from benchmarks.suite import Bench

NAME = "sessions"
RATE, TIME = "sessions per second", "session"
RELAY_CPU, UPSTREAM_CPU, CLIENT_CPU = "relay CPU per session", "upstream CPU per session", "load generator CPU per session"


def case(clients: int) -> str:
    return f"{clients} client{'s' if clients > 1 else ''}"


def visits(bench: Bench, clients: int, seconds: float, contender: Contender) -> dict[str, Sample]:
    cost = bench.cost(contender)
    load = bench.clients.sessions(contender, clients, seconds=seconds)
    relay, upstream = cost.seconds()
    done = len(load.latencies)
    samples = {
        RATE: Sample("1/s", "higher", [done / load.elapsed]),
        TIME: Sample("ms", "lower", [took * 1e3 for took in load.latencies], ("p50", "p99")),
        UPSTREAM_CPU: Sample("ms", "lower", [upstream / done * 1e3]),
        CLIENT_CPU: Sample("ms", "lower", [load.cpu_seconds / done * 1e3]),
    }
    if contender.pids:
        samples[RELAY_CPU] = Sample("ms", "lower", [relay / done * 1e3])
    return samples


def run(bench: Bench) -> None:
    sizes = bench.sizes

    def warm(contender: Contender) -> Mapping[str, Sample]:
        bench.clients.sessions(contender, min(16, sizes.session_warm), count=sizes.session_warm)
        return {}

    for clients in sizes.session_clients:
        bench.case(NAME, case(clients), partial(visits, bench, clients, sizes.session_seconds), warm=warm, rounds=sizes.rounds)
