"""Each target for a few seconds, and proof that the fuzzer finds an error in a wrong target."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import run, targets

SECONDS = 3
PLANTED_SECONDS = 60  # ends as soon as the error is found, long before
MUTATIONS = 3_000
EDGES = 50  # without instrumentation libFuzzer covers only a handful


def test_the_runner_knows_every_target() -> None:
    assert set(run.TARGETS) == set(targets.TARGETS) == set(targets.SEEDS)


@pytest.mark.parametrize("target", run.TARGETS)
def test_a_target_holds_over_mutated_seeds(target: str) -> None:
    for data in targets.mutations(target, MUTATIONS):
        targets.TARGETS[target](data)


@pytest.mark.skipif(not run.available(), reason="atheris has no wheel for this Python; mutated seeds are tried all the same")
@pytest.mark.parametrize("target", run.TARGETS)
def test_a_target_holds_under_coverage_guidance(target: str, tmp_path: Path) -> None:
    result = run.supervise(target, SECONDS, tmp_path)
    assert result.wrong == ""
    assert result.executions > len(targets.SEEDS[target])
    assert result.edges > EDGES, "the parser was not instrumented"


@pytest.mark.skipif(not run.available(), reason="atheris has no wheel for this Python; mutated seeds are tried all the same")
def test_a_target_that_is_wrong_is_found_wrong(tmp_path: Path) -> None:
    result = run.supervise("planted", PLANTED_SECONDS, tmp_path, "tests.fuzz.planted")
    assert "AssertionError: planted" in result.wrong
    assert "planted-crash-" in result.wrong, "the input that did it is named"
