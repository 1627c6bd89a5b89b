"""One picture a scenario: bars for each contender, with the range over rounds as a whisker."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results import Results
from benchmarks.scenarios import bulk, idle, latency, mixed, scale, sessions, shield, storm

PANELS: dict[str, tuple[tuple[str, str], ...]] = {  # scenario -> the panels, as quantity and statistic
    latency.NAME: ((latency.TIME, "p50"), (latency.TIME, "p99")),
    sessions.NAME: ((sessions.RATE, "median"), (sessions.TIME, "p99"), (sessions.RELAY_CPU, "median"), (sessions.UPSTREAM_CPU, "median")),
    bulk.NAME: ((bulk.RATE, "median"), (bulk.RELAY_CPU, "median")),
    mixed.NAME: ((mixed.UNLOADED, "p99"), (mixed.LOADED, "p99")),
    idle.NAME: ((idle.RSS, "median"), (idle.PSS, "median")),
    scale.NAME: ((sessions.RATE, "median"), (bulk.RATE, "median")),
    shield.NAME: ((shield.LS_REMOTE_ERRORS, "median"), (shield.CLONE_ERRORS, "median"), (shield.LS_REMOTE, "p99"), (shield.CLONE, "p99")),
    storm.NAME: ((storm.WALL, "median"), (storm.FIRST, "p50"), (storm.HOST_CPU, "median"), (storm.RELAY_CPU, "median")),
}
COLOURS = {"direct": "#8c8c8c", "forced": "#c9a227", "go": "#2f9ec4", "relay": "#c0392b", "relay, packs": "#7b2418"}
OTHERS = ("#6a51a3", "#41ab5d", "#e6550d", "#393b79")
INCHES_A_CASE, INCHES_A_PANEL, DOTS = 1.35, 3.0, 110


def write(results: Results, folder: Path) -> dict[str, str]:
    """Draw every scenario that has measurements; returns the file name of each."""
    return {name: _draw(results, name, panels, folder) for name, panels in PANELS.items() if results.cases(name)}


def _draw(results: Results, scenario: str, panels: tuple[tuple[str, str], ...], folder: Path) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here, as it takes half a second that tests without a plot save
    from matplotlib.figure import Figure

    here = [one for one in results.series if one.scenario == scenario]
    shown = [panel for panel in panels if any(one.quantity == panel[0] for one in here)]
    names = list(dict.fromkeys(one.contender for one in here))
    widest = max(len(dict.fromkeys(one.case for one in here if one.quantity == quantity)) for quantity, _ in shown)
    picture = Figure(figsize=(max(6.0, 2.5 + INCHES_A_CASE * widest), INCHES_A_PANEL * len(shown)), dpi=DOTS, layout="constrained")
    FigureCanvasAgg(picture)
    for number, (quantity, statistic) in enumerate(shown, 1):
        axes = picture.add_subplot(len(shown), 1, number)
        drawn = [one for one in here if one.quantity == quantity]
        cases = list(dict.fromkeys(one.case for one in drawn))
        width = 0.8 / len(names)
        for position, name in enumerate(names):
            bars = [one for one in drawn if one.contender == name]
            places = [cases.index(one.case) + (position - (len(names) - 1) / 2) * width for one in bars]
            spreads = [one.spread(statistic) for one in bars]
            heights = [one.value for one in spreads]
            whiskers = [[max(0.0, one.value - one.low) for one in spreads], [max(0.0, one.high - one.value) for one in spreads]]
            axes.bar(
                places,
                heights,
                width * 0.92,
                yerr=whiskers,
                label=name,
                color=_colour(name, names),
                alpha=_alpha(name),
                error_kw={"lw": 0.8},
            )
        axes.set_xticks(range(len(cases)), [case.replace(", ", ",\n") for case in cases], fontsize=8)
        axes.set_ylabel(f"{quantity if statistic == 'median' else f'{quantity} {statistic}'} [{drawn[0].unit}]", fontsize=8)
        axes.set_title(f"{drawn[0].better} is better", fontsize=8, loc="right")
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        if number == 1:
            axes.legend(fontsize=8)
    picture.suptitle(f"{scenario} ({results.sizes.name} run)", fontsize=10)
    file = f"{scenario}.png"
    picture.savefig(folder / file)
    return file


def _colour(name: str, names: list[str]) -> str:
    return COLOURS.get(name) or COLOURS.get(name.split(",")[0]) or OTHERS[names.index(name) % len(OTHERS)]


def _alpha(name: str) -> float:
    """The opacity of a bar: one worker is drawn paler than two."""
    return 0.5 if name.endswith(", 1 worker") else 1.0
