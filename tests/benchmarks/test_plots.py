"""Plots: one for each scenario with measurements, also if a contender has none in some case."""

from __future__ import annotations

from pathlib import Path

from benchmarks import plots
from benchmarks.scenarios import SCENARIOS
from tests.benchmarks.made import made


def test_scenarios_without_figures_have_no_plot(tmp_path: Path) -> None:
    results = made()
    assert "scale" not in plots.write(results, tmp_path)
    results.series.clear()
    assert plots.write(results, tmp_path) == {}


def test_a_contender_that_failed_in_some_cases_is_drawn_in_the_others(tmp_path: Path) -> None:
    results = made()
    results.series = [one for one in results.series if not (one.contender == "go" and one.case == "16 clients")]
    assert plots.write(results, tmp_path)["sessions"] == "sessions.png"
    assert (tmp_path / "sessions.png").stat().st_size > 1000


def test_every_scenario_says_what_is_drawn() -> None:
    assert list(plots.PANELS) == list(SCENARIOS)
