"""The soak itself: two halves of load and faults, measurements of the relay's resources before, between and after, and a report.

In the first half workers are also killed, and replaced by reloads; in the second they live, so that leaks add up.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.faults import Chaos
from tests.soak.load import PUSHED_TO, Load, Tally
from tests.soak.site import WORKERS, Site, open_site
from tests.support.gitrepo import make_repo
from tests.support.wait import WaitTimeoutError, wait_until, wait_until_async

MIB = 1 << 20
WARM_SECONDS = 3.0  # without faults, before the first measurement: one-time allocations are made
QUIET_TIMEOUT = 150.0  # seconds until the relay is idle: a drain, the longest pause before a worker and the longest before a dial
SUPERVISOR_GROWTH_BYTES = 16 * MIB  # from the first measurement to the last
WORKERS_GROWTH_BYTES = WORKERS * 32 * MIB  # from the second measurement, when the last worker was replaced, to the last
DEFAULT_IDLE = 4  # warm connections a worker


@dataclass(frozen=True)
class Look:
    """The resources of the idle relay; descriptors without those of idle upstream connections."""

    descriptors: int
    supervisor_rss: int
    workers_rss: int
    sessions: int  # from the metrics
    audited: int  # from the audit


@dataclass
class Report:
    """The result; `problems` is empty if the relay passed."""

    seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)
    faults: Counter[str] = field(default_factory=Counter)
    results: Counter[str] = field(default_factory=Counter)  # of the sessions in the audit
    bytes: int = 0
    looks: list[Look] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        tally = self.tally
        lines = [
            f"soak of {self.seconds:.0f} s: {self.results.total()} sessions, {self.bytes / 1e9:.2f} GB, {self.faults.total()} faults",
            f"  operations   {tally.operations}, of which no fault touched {tally.untouched}",
            f"  right        {_counts(tally.right)}",
            f"  failed       {_counts(tally.failed)}",
            f"  faults       {_counts(self.faults)}",
            f"  audit        {_counts(self.results)}",
            f"  wrong        {len(tally.wrong)}",
        ]
        for name, value in (
            ("descriptors", lambda look: f"{look.descriptors}"),
            ("supervisor", lambda look: f"{look.supervisor_rss / MIB:.0f} MiB"),
            ("workers", lambda look: f"{look.workers_rss / MIB:.0f} MiB"),
        ):
            lines.append(f"  {name:<12} {' -> '.join(map(value, self.looks))}")
        lines += [f"  PROBLEM      {problem}" for problem in self.problems]
        return "\n".join([*lines, "FAILED" if self.problems else "passed"])


def _counts(counts: Counter[str]) -> str:
    return f"{counts.total()}: " + ", ".join(f"{kind} {count}" for kind, count in counts.most_common()) if counts else "none"


async def soak(seconds: float, folder: Path, seed: int, reports: Path, say: Callable[[str], None] = print) -> Report:
    """Runs for about `seconds`, then until the relay is idle. Raises only errors of the soak itself.

    `reports`: the folder for reports about operations that hang.
    """
    report = Report()
    async with open_site(folder) as site:
        make_repo(site.upstream(PUSHED_TO))
        load, chaos = Load(site, seed, say, reports), Chaos(site, seed + 1)
        report.tally, report.faults = load.tally, site.faults.counts
        began = time.monotonic()
        for name, duration, faults in (
            ("warm-up", WARM_SECONDS, False),
            ("first half", seconds / 2, True),
            ("second half", seconds / 2, True),
        ):
            load.start()
            if faults:
                chaos.start(workers=name == "first half")
            await asyncio.sleep(duration)
            if faults:
                await chaos.stop()
            await load.stop()
            await _rest(site, report)
            report.looks.append(await asyncio.to_thread(_look, site))
            say(f"{name}: {load.tally.operations} operations, {site.faults.counts.total()} faults, {len(load.tally.wrong)} wrong")
        report.seconds = time.monotonic() - began
        await load.check_pushed()
        _judge(report, await asyncio.to_thread(site.relay.audit_lines))
    return report


async def _rest(site: Site, report: Report) -> None:
    """Waits until the relay is idle and only its current workers run; a timeout is a problem of the report."""

    def resting() -> bool:
        samples = site.relay.metrics()
        states = {sample.labels["state"]: int(sample.value) for sample in samples["relay_upstream_connections"]}
        waiting = sum(sample.value for sample in samples["relay_upstream_waiting"])
        assert len(site.relay.processes()) == 1 + WORKERS, f"{site.relay.processes()}"
        assert states.pop("idle") >= WORKERS * DEFAULT_IDLE and not any(states.values()) and not waiting, f"{states}, {waiting} wait"
        assert sum(sample.value for sample in samples["relay_sessions_open"]) == 0, "sessions are open"
        assert sum(sample.value for sample in samples["relay_connections_open"]) == 0, "connections are open"
        return True

    try:
        await wait_until_async(lambda: asyncio.to_thread(resting), QUIET_TIMEOUT, "the relay comes to rest")
    except WaitTimeoutError as error:
        report.problems.append(str(error))


def _connections(site: Site) -> dict[str, int]:
    """Connections to git hosts by state."""
    return {sample.labels["state"]: int(sample.value) for sample in site.relay.metrics()["relay_upstream_connections"]}


def _look(site: Site) -> Look:
    relay = site.relay
    supervisor, *workers = relay.processes()
    counted: list[int] = []

    def nothing_was_replaced() -> bool:
        """A pool replaces idle connections that its host would close soon, several a second after faults."""
        before = _connections(site)
        descriptors = relay.fds()
        after = _connections(site)
        assert before == after and not any(count for state, count in before.items() if state != "idle"), f"{before}, then {after}"
        counted.append(descriptors - before["idle"])
        return True

    wait_until(nothing_was_replaced, QUIET_TIMEOUT, "descriptors are counted while no connection is replaced")
    return Look(
        descriptors=counted[-1],
        supervisor_rss=supervisor.memory_info().rss,
        workers_rss=sum(worker.memory_info().rss for worker in workers),
        sessions=int(relay.metric("relay_sessions_total")),
        audited=sum(line["event"] == "session" for line in relay.audit_lines()),
    )


def _judge(report: Report, audit: list[dict[str, Any]]) -> None:
    sessions = [line for line in audit if line["event"] == "session"]
    report.results.update(line["result"] for line in sessions)
    report.bytes = sum(line["bytes_in"] + line["bytes_out"] for line in sessions)
    problems = report.problems
    problems += report.tally.wrong
    twice = [session for session, count in Counter(line["session"] for line in sessions).items() if count > 1]
    if twice:
        problems.append(f"{len(twice)} sessions have more than one audit line: {twice[:5]}")
    first, second, last = report.looks
    if last.sessions - second.sessions != last.audited - second.audited:
        problems.append(
            f"the second half had {last.sessions - second.sessions} sessions by metrics, {last.audited - second.audited} by audit"
        )
    if last.descriptors != first.descriptors:
        problems.append(f"{last.descriptors} descriptors, and {first.descriptors} before")
    if last.supervisor_rss - first.supervisor_rss > SUPERVISOR_GROWTH_BYTES:
        problems.append(f"the supervisor grew by {(last.supervisor_rss - first.supervisor_rss) / MIB:.0f} MiB")
    if last.workers_rss - second.workers_rss > WORKERS_GROWTH_BYTES:
        problems.append(f"the workers grew by {(last.workers_rss - second.workers_rss) / MIB:.0f} MiB")
    if not report.tally.untouched or not report.faults:
        problems.append("there was no operation without a fault, or no fault")
