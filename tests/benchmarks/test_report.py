"""The report: targets, methods, tables, failures and profiles are in it, and nothing breaks a table."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks import report
from benchmarks.contenders import Profile
from benchmarks.results import Line, Profiled
from benchmarks.scenarios import bulk
from tests.benchmarks.made import made


def text(**changes: object) -> str:
    results = made()
    for name, value in changes.items():
        setattr(results, name, value)
    profiled = [
        Profiled(label, "bulk down", "perf", 1234, (Line(41.5, f"libcrypto {label}"),), f"2026-01-0{day}")
        for day, label in ((1, "before"), (2, "after"))
    ]
    return report.markdown(results, profiled, {"latency": "latency.png"})


def test_targets_come_first_and_misses_are_not_hidden() -> None:
    said = text()
    assert said.index("## Targets") < said.index("## latency")
    assert "| ls-remote p99 during 4 bulk clones | 0.300 x direct | <= 0.25 x direct | **missed** |" in said
    assert "| RSS per idle connection, 5,000 held | - | <= 40 kB | not measured |" in said


def test_every_scenario_has_its_method_plot_and_tables() -> None:
    said = text()
    assert "How latency is measured." in said
    assert "![latency](latency.png)" in said
    assert "### latency: stock, one at a time" in said
    assert "| ls-remote, p50 [unit] | relay | 3.75 (3.00 to 4.50) | 0.300 x direct |" in said


@pytest.mark.parametrize(("moved", "told"), [(1.1, False), (1.2, True)])
def test_a_floor_that_moves_between_rounds_is_told_beside_its_figures(moved: float, told: bool) -> None:
    results = made()
    case = bulk.case(Profile.GCM, bulk.UP)
    before = results.find(bulk.NAME, case, bulk.RELAY_CPU, "floor")
    assert before is not None
    results.series = [one for one in results.series if one.contender != "floor"]
    results.series.append(msgspec.structs.replace(before, rounds=((1.0,), (moved,))))
    said = report.markdown(results, [], {})
    words = f"**Unsteady machine:** the floor's {bulk.RELAY_CPU} moved by 20 %"
    assert (words in said[said.index(f"### bulk: {case}") :]) == told


def test_a_failure_is_told_on_one_line() -> None:
    assert "- **forced failed** in GCM, clone: it said no \\| twice" in text()


def test_what_was_left_out_is_told_with_its_reason() -> None:
    assert "- go is left out: no Go toolchain was found" in text(left_out={"go": "no Go toolchain was found"})


def test_cells_cannot_break_a_table() -> None:
    assert "| processor | 2 x a \\| strange name |" in text()


def test_profiles_stand_side_by_side_by_load() -> None:
    said = text()
    assert said.index("### before: bulk down, perf (1,234 samples, 2026-01-01)") < said.index("### after: bulk down, perf")
    assert "| 41.5 % | `libcrypto after` |" in said


def test_write_leaves_json_plots_and_markdown(tmp_path: Path) -> None:
    report.write(made(), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"results.json", "report.md", "latency.png", "sessions.png", "bulk.png", "mixed.png", "idle.png"} <= names
    for path in tmp_path.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"]({path.name})" in (tmp_path / "report.md").read_text() or path.stem not in made().methods
