"""The report as Markdown: targets first, then each scenario with its method, its tables and its plot, then the profiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks import floor, plots
from benchmarks import results as store
from benchmarks.figures import Series
from benchmarks.render import figure, number
from benchmarks.results import Profiled, Results
from benchmarks.targets import targets

FILE = "report.md"
LINES_KEPT = 15
STEADY_SHARE = 0.15  # by how much the floor may move between rounds without a word
KEPT_PROFILES = Path(__file__).with_name("profiles")


def write(results: Results, folder: Path) -> None:
    """results.json, one plot a scenario and report.md, with the suite's profiles and those in the report's folder."""
    store.write(results, folder)
    pictures = plots.write(results, folder)
    (folder / FILE).write_text(markdown(results, store.profiles(KEPT_PROFILES, folder / "profiles"), pictures))


def markdown(results: Results, profiled: Sequence[Profiled], pictures: dict[str, str]) -> str:
    """`pictures` maps a scenario to the file of its plot, relative to the report."""
    parts = [*_head(results), *_targets(results)]
    for scenario, method in results.methods.items():
        took = results.scenario_seconds.get(scenario, 0.0)
        parts += [f"## {scenario}", f"{method} (Took {took:.0f} s.)"]
        if scenario in pictures:
            parts.append(f"![{scenario}]({pictures[scenario]})")
        for case in results.cases(scenario):
            parts += [f"### {scenario}: {case}", _case(results, scenario, case), *_unsteady(results, scenario, case)]
        parts += [
            f"- **{one.contender} failed** in {one.case}: {_inline(one.message)}" for one in results.failures if one.scenario == scenario
        ]
    parts += _profiles(profiled)
    return "\n\n".join(parts) + "\n"


def _head(results: Results) -> Iterator[str]:
    yield "# Benchmark report"
    yield (
        f"A `{results.sizes.name}` run of {results.seconds / 60:.1f} minutes, begun {results.started}. All contenders took turns within "
        "this one run, on this one machine, over loopback. A figure is the median over rounds, or a percentile over the samples of all "
        "rounds; in brackets the least and greatest of single rounds. Ratios are computed round by round, and the median is told; those of "
        "tails over the samples of all rounds. Raw samples are in `results.json`."
    )
    yield _table(("machine", ""), sorted(results.machine.items()))
    yield _table(("contender", "what it is"), results.contenders.items())
    notes = [*results.notes, *(f"{what} is left out: {why}" for what, why in results.left_out.items())]
    yield "\n".join(f"- {_inline(note)}" for note in notes)


def _targets(results: Results) -> Iterator[str]:
    yield "## Targets"
    rows = [
        (one.what, one.measured_text, one.limit_text, f"**{one.verdict}**" if one.verdict == "missed" else one.verdict)
        for one in targets(results)
    ]
    verdicts = [row[3].strip("*") for row in rows]
    yield f"{verdicts.count('met')} met, {verdicts.count('missed')} missed, {verdicts.count('not measured')} not measured in this run."
    yield _table(("the relay's", "measured", "target", ""), rows)


def _case(results: Results, scenario: str, case: str) -> str:
    """A row for each quantity and contender, with its value as a multiple of the first contender's."""
    rows = []
    for quantity, statistic, series in _grouped(results, scenario, case):
        first = series[0]
        for one in series:
            times = "" if one is first else _times(results, one, first, statistic)
            label = quantity if statistic == "median" else f"{quantity}, {statistic}"
            rows.append((f"{label} [{one.unit}]", one.contender, figure(one.spread(statistic)), times))
    return _table(("", "contender", "figure (rounds)", "as a multiple"), rows)


def _unsteady(results: Results, scenario: str, case: str) -> Iterator[str]:
    """The floor does the same in every round: when its CPU time moves, so does the machine's speed, and the figures above with it."""
    for one in results.series:
        if (one.scenario, one.case, one.contender) == (scenario, case, floor.NAME) and one.better == "lower":
            spread = one.spread()
            if spread.high > spread.low * (1 + STEADY_SHARE):
                percent = 100 * (spread.high / spread.low - 1)
                yield f"**Unsteady machine:** the floor's {one.quantity} moved by {percent:.0f} % between rounds: trust ratios only."


def _grouped(results: Results, scenario: str, case: str) -> Iterator[tuple[str, str, list[Series]]]:
    here = [one for one in results.series if (one.scenario, one.case) == (scenario, case)]
    for quantity in dict.fromkeys(one.quantity for one in here):
        series = [one for one in here if one.quantity == quantity]
        for statistic in series[0].statistics:
            yield quantity, statistic, series


def _times(results: Results, one: Series, first: Series, statistic: str) -> str:
    times = results.ratio(one.scenario, one.case, one.quantity, (one.contender, first.contender), statistic)
    return "" if times is None else f"{number(times.value)} x {first.contender}"


def _profiles(profiled: Sequence[Profiled]) -> Iterator[str]:
    if not profiled:
        return
    yield "## Profiles of the relay"
    yield "Each function's own share of the samples, all processes of the relay together, by label in the order they were taken."
    for load in dict.fromkeys((one.load, one.profiler) for one in profiled):
        for one in profiled:
            if (one.load, one.profiler) == load:
                commit = f", commit {one.commit}" if one.commit else ""
                yield f"### {one.label}: {one.load}, {one.profiler} ({one.samples:,} samples, {one.taken}{commit})"
                rows = [(f"{line.percent:.1f} %", f"`{line.where}`") for line in one.lines[:LINES_KEPT]]
                yield _table(("own time", "function"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_inline(cell) for cell in line) + " |" for line in lines)


def _inline(text: str) -> str:
    """The text on one line, escaped for a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")
