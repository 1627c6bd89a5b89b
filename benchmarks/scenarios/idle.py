"""Resident memory per connection that has logged in and asks for nothing. Each turn has a fresh server, so that no heap which an
earlier load left behind hides the growth: some clients come, run a session and go, then the process tree's memory is read, then the
connections are opened (16 logins at a time) and held, and it is read again when nothing computes any more; the difference is
divided by their number. RSS counts a page shared by two processes twice, PSS divides it among them; both are told (they matter for
sshd, which keeps two processes a connection, and is therefore asked for no more than 1,000). At the end every connection must still
answer. The kernel's own memory for sockets is in neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import sshd
from benchmarks.contenders import Contender
from benchmarks.figures import Sample
from benchmarks.processes import MeasureError, memory, settle

if TYPE_CHECKING:
    from benchmarks.suite import Bench

NAME = "idle"
RSS, PSS = "RSS per connection", "PSS per connection"
WARM_SESSIONS = 32


def case(connections: int) -> str:
    return f"{connections:,} connections"


def growth(bench: Bench, contender: Contender, connections: int) -> dict[str, Sample]:
    """Growth in kB (1,000 bytes) per connection."""
    settle((*contender.pids, bench.fleet.upstream.pid))
    before = [memory(pid) for pid in contender.pids]
    with bench.clients.holding(contender, connections):
        settle(contender.pids)
        after = [memory(pid) for pid in contender.pids]
    rss = sum(one.rss for one in after) - sum(one.rss for one in before)
    pss = sum(one.pss for one in after) - sum(one.pss for one in before)
    return {
        RSS: Sample("kB", "lower", [rss / connections / 1e3]),
        PSS: Sample("kB", "lower", [pss / connections / 1e3]),
    }


def start(bench: Bench, stack: ExitStack, name: str) -> Contender:
    """Starts a contender that has served no client; raises MeasureError if it cannot start."""
    fleet = bench.fleet
    if name == "direct":
        host = sshd.git_host(bench.space, "idle_host", fleet.keys.host_upstream, [fleet.keys.client.public])
        stack.callback(host.stop)
        return fleet.direct(host)
    contender = stack.enter_context(fleet.starting(name))
    if contender is None:
        raise MeasureError(fleet.missing[name])
    return contender


def turn(bench: Bench, connections: int, taking: Contender) -> Mapping[str, Sample]:
    with ExitStack() as stack:
        contender = start(bench, stack, taking.name)
        bench.clients.sessions(contender, min(16, connections), count=min(WARM_SESSIONS, connections))
        return growth(bench, contender, connections)


def run(bench: Bench) -> None:
    sizes = bench.sizes
    own = [one for one in bench.contenders if one.pids or one.name == "direct"]
    for connections in sizes.idle_connections:
        among = [one for one in own if not one.forks or connections <= sizes.idle_forking_max]
        for one in own:
            if one not in among:
                bench.results.left_out[f"{one.name}, {case(connections)} idle"] = "it forks two processes for each connection"
        bench.case(NAME, case(connections), partial(turn, bench, connections), rounds=sizes.idle_rounds, among=among)
