"""What a second worker brings: the relay with one and with two workers, and for comparison the Go relay on one and on two threads, all
running at the same time and measured in turn. Sessions per second by the closed loop of `sessions` with 16 clients, and four
streams down at once as in `bulk` with AES-GCM forced. On a machine of two cores the clients and the git host need the same cores,
so twice one worker is out of reach by arithmetic.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.contenders import PINNED_KEX, Contender, Profile
from benchmarks.figures import Sample
from benchmarks.processes import MeasureError
from benchmarks.scenarios import bulk, sessions

if TYPE_CHECKING:
    from benchmarks.suite import Bench

NAME = "scale"
SESSIONS, STREAMS = "sessions", "streams down"
WORKERS = (1, 2)


def label(name: str, workers: int) -> str:
    return f"{name}, {workers} worker{'s' if workers > 1 else ''}"


def start(bench: Bench, stack: ExitStack) -> list[Contender]:
    """Starts each as a separate contender, named with its number of workers."""
    taking = {one.name for one in bench.contenders}
    found: list[Contender] = []
    for name, begin in (("go", bench.fleet.go), ("relay", bench.fleet.relay)):
        if name not in taking:
            continue
        for workers in WORKERS:
            named = label(name, workers)
            try:
                contender = stack.enter_context(begin(workers))
            except MeasureError as error:
                bench.fail(NAME, "start", named, str(error))
                continue
            if contender is not None:
                found.append(contender._replace(name=named))
    return found


def run(bench: Bench) -> None:
    sizes = bench.sizes

    visit = partial(sessions.visits, bench, sizes.scale_clients, sizes.scale_seconds, PINNED_KEX)
    carry = partial(bulk.streams, bench, Profile.GCM, bulk.DOWN, sizes.scale_bytes, sizes.streams_at_once)

    def warm(contender: Contender) -> dict[str, Sample]:
        bench.clients.sessions(contender, sizes.scale_clients, count=sizes.session_warm)
        return {}

    with ExitStack() as stack:
        among = start(bench, stack)
        for what, measure in ((SESSIONS, visit), (STREAMS, carry)):
            bench.case(NAME, what, measure, warm=warm, rounds=sizes.scale_rounds, among=among)
