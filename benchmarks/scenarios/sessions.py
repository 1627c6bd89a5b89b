"""Whole visits by a closed loop of 1, 16 and 64 clients: TCP connect, key exchange (curve25519-sha256 for all), login by an ed25519
key, one service at the git host that exits at once, its exit status checked, disconnect, and again. The clients are goroutines of
one process (peers/go_load; asyncssh where there is no Go), because the ssh binary's start-up costs more than the server. Counted
are sessions per second, the time of one session, and CPU time from /proc/PID/stat of the relay's whole process tree and of the git
host's, children included that came and went, read before and after each turn when both trees are at rest. The load generator's own
CPU time is told beside it, as it shares the machine. Before the first round each contender serves some sessions uncounted, so that
a pool, where there is one, is warm.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from benchmarks.contenders import PINNED_KEX, Contender
from benchmarks.figures import Sample

if TYPE_CHECKING:
    from benchmarks.suite import Bench

NAME = "sessions"
RATE, TIME = "sessions per second", "session"
RELAY_CPU, UPSTREAM_CPU, CLIENT_CPU = "relay CPU per session", "upstream CPU per session", "load generator CPU per session"


MLKEM_KEX = "mlkem768x25519-sha256"
MLKEM_CLIENTS = 16
ENCAPSULATIONS = 2_000  # of a turn


def case(clients: int, kex: str = PINNED_KEX) -> str:
    return f"{clients} client{'s' if clients > 1 else ''}{'' if kex == PINNED_KEX else f', {kex}'}"


def visits(bench: Bench, clients: int, seconds: float, kex: str, contender: Contender) -> dict[str, Sample]:
    cost = bench.cost(contender)
    load = bench.clients.sessions(contender, clients, seconds=seconds, kex=kex)
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


def least(bench: Bench, count: int, mlkem: bool) -> dict[str, Sample]:
    """The floor's turn."""
    assert bench.floor is not None
    figures = bench.floor.sessions(count, mlkem=mlkem and bench.floor.mlkem)
    seconds = figures.cpu_seconds / count
    if mlkem and not bench.floor.mlkem:
        seconds += encapsulation_seconds()
    return {RELAY_CPU: Sample("ms", "lower", [seconds * 1e3])}


def encapsulation_seconds() -> float:
    """CPU time of one ML-KEM-768 encapsulation, in the OpenSSL that is part of cryptography."""
    public = MLKEM768PrivateKey.generate().public_key()
    start = time.process_time()
    for _ in range(ENCAPSULATIONS):
        public.encapsulate()
    return (time.process_time() - start) / ENCAPSULATIONS


def run(bench: Bench) -> None:
    sizes = bench.sizes

    def warm(kex: str, contender: Contender) -> Mapping[str, Sample]:
        bench.clients.sessions(contender, min(16, sizes.session_warm), count=sizes.session_warm, kex=kex)
        return {}

    def together(clients: int, kex: str, among: Sequence[Contender]) -> None:
        bench.case(
            NAME,
            case(clients, kex),
            partial(visits, bench, clients, sizes.session_seconds, kex),
            warm=partial(warm, kex),
            rounds=sizes.rounds,
            among=among,
            least=partial(least, bench, sizes.floor_sessions, kex == MLKEM_KEX) if bench.floor else None,
        )

    for clients in sizes.session_clients:
        together(clients, PINNED_KEX, bench.contenders)
    relays = [one for one in bench.contenders if one.pids and not one.forks]
    if relays:
        together(min(MLKEM_CLIENTS, max(sizes.session_clients)), MLKEM_KEX, relays)
