"""A small run with the git host alone: every scenario gives measurements, failures are reported, nothing is left behind."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from rich.console import Console

from benchmarks import report
from benchmarks.__main__ import verdicts
from benchmarks.contenders import Contender, Peer
from benchmarks.figures import Sample
from benchmarks.processes import MeasureError, tree
from benchmarks.results import Results
from benchmarks.scenarios import SCENARIOS, bulk, mixed
from benchmarks.scenarios.sessions import RATE
from benchmarks.sizes import TINY, Sizes
from benchmarks.sshd import free_port
from benchmarks.suite import Bench, Plan, run, world
from benchmarks.workspace import Workspace

SMALLEST = msgspec.structs.replace(
    TINY, latency_samples=1, session_warm=1, stream_bytes=300_000, streams_bytes=200_000, repository_bytes=400_000
)


# who takes part in some scenarios only
PARTLY = {("relay", "mixed"), ("relay, packs", "mixed"), ("relay, packs", "storm"), ("floor", "bulk"), ("floor", "sessions")}


def quiet() -> Console:
    return Console(file=io.StringIO(), width=140)


def plan(work: Path, *scenarios: str, sizes: Sizes = SMALLEST, floor: bool = False) -> Plan:
    return Plan(sizes, scenarios, contenders=("direct",), plain_user=False, work=work, floor=floor)


def test_a_run_measures_every_scenario_and_cleans_up(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    console = quiet()
    results = run(plan(work, *SCENARIOS, floor=True), SCENARIOS, console)
    assert results.failures == []
    assert list(work.iterdir()) == []
    for name in SCENARIOS:
        assert results.methods[name]
        assert results.cases(name) or name == "scale"  # scale measures only the Go relay and the relay
    assert results.cases("mixed") == [mixed.CASE, mixed.WHERE]
    for series in results.series:
        assert series.contender == "direct" or (series.contender, series.scenario) in PARTLY
        assert all(value >= 0 for values in series.rounds for value in values), series
        assert all(len(values) > 0 for values in series.rounds)
    assert {len(series.rounds) for series in results.series if series.scenario == "latency"} == {SMALLEST.rounds}
    report.write(results, tmp_path / "report")
    assert "## idle" in (tmp_path / "report" / "report.md").read_text()
    assert "stock, one at a time" in console.file.getvalue()  # type: ignore[attr-defined]
    assert verdicts(results).row_count == 36


def test_contenders_take_turns_and_the_first_turn_is_not_counted(tmp_path: Path) -> None:
    port = free_port()
    with world(plan(tmp_path), Results("", SMALLEST, {}), quiet()) as bench:
        peer = bench.fleet.peer(Peer("other", "me", "127.0.0.1", port), bench.fleet.keys.client.private)
        turns: list[str] = []

        def measure(contender: Contender) -> dict[str, Sample]:
            turns.append(contender.name)
            return {"turns": Sample("1", "lower", [len(turns)])}

        def warm(contender: Contender) -> dict[str, Sample]:
            turns.append(f"warm {contender.name}")
            return {}

        bench.case("made", "up", measure, rounds=2, warm=warm, among=[bench.contenders[0], peer])
        assert turns == ["warm direct", "warm other", "direct", "other", "other", "direct"], "A B, B A"
        assert [(one.contender, one.rounds) for one in bench.results.series] == [("direct", ((3,), (6,))), ("other", ((4,), (5,)))]


def test_the_floor_takes_its_turn_beside_the_contenders_and_has_none_to_warm_up(tmp_path: Path) -> None:
    with world(plan(tmp_path), Results("", SMALLEST, {}), quiet()) as bench:
        turns: list[str] = []

        def measure(contender: Contender) -> dict[str, Sample]:
            turns.append(contender.name)
            return {"turns": Sample("1", "lower", [len(turns)])}

        def least() -> dict[str, Sample]:
            turns.append("floor")
            return {"turns": Sample("1", "lower", [len(turns)])}

        bench.case("made", "up", measure, rounds=2, warm=measure, least=least)
        assert turns == ["direct", "direct", "floor", "floor", "direct"]
        assert [(one.contender, one.rounds) for one in bench.results.series] == [("direct", ((2,), (5,))), ("floor", ((3,), (4,)))]


def test_a_contender_that_fails_has_no_figures_and_the_others_go_on(tmp_path: Path) -> None:
    with world(plan(tmp_path), Results("", SMALLEST, {}), quiet()) as bench:
        direct = bench.contenders[0]
        calls = 0

        def measure(contender: Contender) -> dict[str, Sample]:
            nonlocal calls
            calls += 1
            if contender.name == "weak" and calls > 2:
                raise MeasureError("a byte [was] lost")
            return {"speed": Sample("1/s", "higher", [1.0])}

        bench.case("made", "up", measure, rounds=3, among=[direct, direct._replace(name="weak")])
        assert [(one.contender, len(one.rounds)) for one in bench.results.series] == [("direct", 3)]
        assert [(one.contender, one.message) for one in bench.results.failures] == [("weak", "a byte [was] lost")]


def test_a_scenario_that_raises_is_a_failure_and_the_others_go_on(tmp_path: Path) -> None:
    def broken(bench: Bench) -> None:
        raise TypeError("no such thing")

    def whole(bench: Bench) -> None:
        bench.case("whole", "up", lambda contender: {"speed": Sample("1/s", "higher", [1.0])}, rounds=1)

    modules: dict[str, Any] = {name: SimpleNamespace(run=of, __doc__=name) for name, of in (("broken", broken), ("whole", whole))}
    results = run(plan(tmp_path, *modules), modules, quiet())
    assert [(one.scenario, one.message) for one in results.failures] == [("broken", "TypeError: no such thing")]
    assert results.cases("whole") == ["up"]
    assert list(results.scenario_seconds) == ["broken", "whole"]


def test_scale_measures_the_relay(tmp_path: Path) -> None:
    """It has no turn of direct's, so the run above does not see it."""
    results = run(msgspec.structs.replace(plan(tmp_path, "scale"), contenders=("relay",)), SCENARIOS, quiet())
    assert results.failures == []
    assert {(series.contender, series.quantity) for series in results.series if series.better == "higher"} == {
        (f"relay, {workers}", quantity) for workers in ("1 worker", "2 workers") for quantity in (RATE, bulk.RATE)
    }


def test_a_scenario_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    seen: list[int] = []

    class Interrupted:
        """In place of a scenario's module."""

        @staticmethod
        def run(bench: Bench) -> None:
            seen.append(bench.fleet.upstream.pid)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan(tmp_path, "made"), {"made": Interrupted}, quiet())  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []
    assert tree(seen[0]) == []


def test_a_contender_that_cannot_start_is_left_out_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.contenders.Fleet._relay_config", lambda *_: "nonsense = true\n")
    asked = msgspec.structs.replace(plan(tmp_path), contenders=("direct", "relay"))
    results = Results("", SMALLEST, {})
    with world(asked, results, quiet()) as bench:
        assert [one.name for one in bench.contenders] == ["direct"]
    assert "nonsense" in results.left_out["relay"]


def test_the_relay_takes_part_with_its_own_cost(tmp_path: Path) -> None:
    asked = msgspec.structs.replace(plan(tmp_path, "sessions"), contenders=("relay",))
    results = run(asked, SCENARIOS, quiet())
    assert results.failures == []
    assert results.left_out == {}
    measured = {one.quantity for one in results.series if one.contender == "relay"}
    assert {"relay CPU per session", "upstream CPU per session", "sessions per second", "session"} <= measured


def test_nothing_of_a_workspace_survives_a_failing_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise MeasureError("no space left")

    monkeypatch.setattr(Workspace, "repository", fails)
    with pytest.raises(MeasureError, match="no space left"), world(plan(tmp_path), Results("", SMALLEST, {}), quiet()):
        pass
    assert list(tmp_path.iterdir()) == []
