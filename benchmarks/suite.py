"""One run: sets up the files and servers, gives every contender its turn in every case, and keeps the measurements."""

from __future__ import annotations

import inspect
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import floor, machine, sshd, user, workspace
from benchmarks.clients import Clients
from benchmarks.contenders import Contender, Fleet, Peer, Profile, make_keys
from benchmarks.figures import Sample, Series
from benchmarks.processes import MeasureError, Runner, cpu_seconds, settle
from benchmarks.render import figure
from benchmarks.results import Failure, Results
from benchmarks.sizes import Sizes

OWN = ("direct", "forced", "go", "relay")
Measure = Callable[[Contender], Mapping[str, Sample]]
Turn = Callable[[], Mapping[str, Sample]]


class Plan(msgspec.Struct, frozen=True):
    """The options of a run. `upstream_port` and `client_key` are set if peers must know them in advance."""

    sizes: Sizes
    scenarios: tuple[str, ...]
    contenders: tuple[str, ...] = OWN
    peers: tuple[Peer, ...] = ()
    client_key: Path | None = None
    authorized: tuple[str, ...] = ()
    upstream_port: int = 0
    plain_user: bool = True
    work: Path | None = None
    floor: bool = False  # measure it beside the contenders


class Bench:
    """The tools of a scenario."""

    def __init__(
        self,
        plan: Plan,
        space: workspace.Workspace,
        fleet: Fleet,
        clients: Clients,
        contenders: list[Contender],
        results: Results,
        console: Console,
        least: floor.Floor | None = None,
    ) -> None:
        self.sizes, self.plan, self.console, self.floor = plan.sizes, plan, console, least
        self.space, self.fleet, self.clients, self.contenders, self.results = space, fleet, clients, contenders, results
        self._progress: Progress | None = None

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """Key exchanges to measure: a stock client's choice, and the same one for all."""
        return (Profile.STOCK, Profile.PINNED)

    def case(
        self,
        scenario: str,
        case: str,
        measure: Measure,
        *,
        rounds: int,
        warm: Measure | None = None,
        among: Sequence[Contender] | None = None,
        least: Turn | None = None,
    ) -> None:
        """Let all contenders take turns, `rounds` times, after one untimed turn of `warm` each; `least` is the floor's turn, if it has one.

        A contender that fails has no measurements in this case; the report has its error.
        """
        taking = self.contenders if among is None else among
        turns: dict[str, Turn] = {contender.name: partial(measure, contender) for contender in taking}
        first: dict[str, Turn] = {contender.name: partial(warm, contender) for contender in taking} if warm is not None else {}
        if least is not None:
            turns[floor.NAME] = least
        kept: dict[str, dict[str, list[Sample]]] = {name: {} for name in turns}
        with self._bar(f"{scenario}: {case}", len(turns) * (rounds + 1)) as step:
            for turn in range(rounds + 1):
                order = list(turns)
                for name in order if turn == 0 or turn % 2 else reversed(order):  # A B, B A: what changes all the time touches both alike
                    step(name)
                    try:
                        if turn == 0:
                            first.get(name, dict)()
                            continue
                        for quantity, sample in turns[name]().items():
                            kept[name].setdefault(quantity, []).append(sample)
                    except MeasureError as error:
                        del turns[name], kept[name]
                        self.fail(scenario, case, name, str(error))
        for name, quantities in kept.items():
            for quantity, samples in quantities.items():
                one = samples[0]
                values = tuple(tuple(sample.values) for sample in samples)
                self.results.series.append(Series(scenario, case, quantity, name, one.unit, one.better, one.statistics, values))
        self.show(scenario, case)

    def fail(self, scenario: str, case: str, contender: str, message: str) -> None:
        self.results.failures.append(Failure(scenario, case, contender, message))
        self.console.print(f"[red]{scenario}, {case}: {contender} failed: {message}", markup=True, highlight=False)

    def show(self, scenario: str, case: str) -> None:
        """The table of one case: a row for each quantity and statistic, a column for each contender."""
        series = [one for one in self.results.series if (one.scenario, one.case) == (scenario, case)]
        if not series:
            return
        names = list(dict.fromkeys(one.contender for one in series))
        table = Table("", *names, title=f"{scenario}: {case}", title_justify="left")
        for quantity in dict.fromkeys(one.quantity for one in series):
            rows = {one.contender: one for one in series if one.quantity == quantity}
            one = next(iter(rows.values()))
            for statistic in one.statistics:
                label = quantity if statistic == "median" else f"{quantity} {statistic}"
                cells = [figure(rows[name].spread(statistic)) if name in rows else "-" for name in names]
                table.add_row(f"{label} [{one.unit}]".replace("[", r"\["), *cells)
        self.console.print(table)

    def cost(self, contender: Contender) -> Cost:
        """Begin to count the CPU time of a contender and of the git host."""
        return Cost(contender.pids, self.fleet.upstream.pid)

    @contextmanager
    def _bar(self, title: str, total: int) -> Iterator[Callable[[str], None]]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(title, total=total)
            done = -1

            def step(name: str) -> None:
                nonlocal done
                done += 1
                progress.update(task, completed=done, description=f"{title} ({name})")

            yield step


class Cost:
    """CPU seconds of the contender's process trees and of the git host's since the object was made; `direct` has no process trees."""

    def __init__(self, pids: Iterable[int], upstream: int) -> None:
        self.pids, self._upstream = tuple(pids), upstream
        self._start = self._now()

    def _now(self) -> tuple[float, float]:
        settle((*self.pids, self._upstream))
        return sum(cpu_seconds(pid) for pid in self.pids), cpu_seconds(self._upstream)

    def seconds(self) -> tuple[float, float]:
        """CPU seconds of the contender and of the git host, once both are idle."""
        relay, upstream = self._now()
        return relay - self._start[0], upstream - self._start[1]


def paragraph(module: ModuleType) -> str:
    """The method of a scenario: its docstring."""
    return " ".join((inspect.getdoc(module) or "").split())


def run(plan: Plan, modules: Mapping[str, ModuleType], console: Console) -> Results:
    """Run the plan's scenarios. Every process, and the account, is gone when this returns or raises.

    A scenario that raises is a failure in the results: what the others measure in half an hour is kept.
    """
    begin = time.monotonic()
    results = Results(datetime.now(UTC).isoformat(timespec="seconds"), plan.sizes, machine.describe())
    _raise_file_limit(results)
    if (noise := machine.warning()) is not None:
        results.notes.append(noise)
    with world(plan, results, console) as bench:
        for name in plan.scenarios:
            results.methods[name] = paragraph(modules[name])
            start = time.monotonic()
            try:
                modules[name].run(bench)
            except Exception as error:  # noqa: BLE001 - a fault of the suite itself; it is told, and the exit status is not 0
                console.print_exception()
                bench.fail(name, "the whole scenario", "suite", f"{type(error).__name__}: {error}")
            results.scenario_seconds[name] = time.monotonic() - start
        results.left_out.update(bench.fleet.missing)
    results.seconds = time.monotonic() - begin
    return results


@contextmanager
def world(plan: Plan, results: Results, console: Console) -> Iterator[Bench]:
    """The account, the folder, the git host and the contenders, which exist until the block ends."""
    with ExitStack() as stack:
        console.print("laying out keys and repositories, building the Go programs, starting servers ...")
        account = stack.enter_context(user.account(plain=plan.plain_user))
        parent = plan.work or workspace.place(plan.sizes)
        space = stack.enter_context(workspace.workspace(parent, account))
        runner = Runner(space.env)
        stack.callback(runner.close)
        results.notes += [
            account.note,
            f"repositories and clones lie in {'memory' if parent == Path('/dev/shm') else 'the temporary folder'}",
        ]
        keys = make_keys(space, plan.client_key)
        allowed = [keys.client.public, keys.upstream.public, *plan.authorized]
        upstream = sshd.git_host(space, "git_host", keys.host_upstream, allowed, plan.upstream_port)
        stack.callback(upstream.stop)
        fleet = Fleet(space, keys, upstream, plan.sizes.pool_idle)
        clients = Clients(space, runner)
        results.notes.append(f"load generator: {clients.load_note}")
        contenders = [one for name in plan.contenders if (one := _start(name, fleet, stack, results, console)) is not None]
        contenders += [fleet.peer(peer, keys.client.private) for peer in plan.peers]
        results.contenders = {one.name: one.about for one in contenders}
        space.repository("small", 100)
        yield Bench(plan, space, fleet, clients, contenders, results, console, _floor(plan, results, console))


def _floor(plan: Plan, results: Results, console: Console) -> floor.Floor | None:
    """The yardstick, if this run measures what it is for and it can be built here."""
    if not plan.floor:
        return None
    built = floor.build()
    reason = built.note
    if built.path is not None:
        try:
            least = floor.opened(built.path)
            results.contenders[floor.NAME] = f"{floor.ABOUT} ({built.note})"
            return least
        except MeasureError as error:
            reason = str(error)
    results.left_out[floor.NAME] = reason
    console.print(f"{floor.NAME} is left out: {reason}", style="yellow", markup=False)
    return None


def _start(name: str, fleet: Fleet, stack: ExitStack, results: Results, console: Console) -> Contender | None:
    """Starts one of the suite's own contenders; None if it cannot start, which the report explains."""
    try:
        if name == "direct":
            return fleet.direct()
        contender = stack.enter_context(fleet.starting(name))
    except MeasureError as error:
        results.left_out[name] = str(error)
        contender = None
    if contender is None:
        reason = results.left_out.get(name) or fleet.missing[name]
        console.print(f"{name} is left out: {reason}", style="yellow", markup=False)
    return contender


def _raise_file_limit(results: Results) -> None:
    """Raises the limit of descriptors to the hard limit: thousands of idle connections need one each, at both ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    results.machine["open files"] = str(hard)
