"""Every scenario says how it measures, in one paragraph, and can be run by name."""

from __future__ import annotations

import inspect

import pytest

from benchmarks.scenarios import SCENARIOS
from benchmarks.suite import paragraph


def test_the_scenarios_are_there_in_order() -> None:
    assert list(SCENARIOS) == ["latency", "sessions", "bulk", "mixed", "idle", "scale", "shield", "storm"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_tells_its_method_in_one_paragraph(name: str) -> None:
    module = SCENARIOS[name]
    assert name == module.NAME
    doc = inspect.getdoc(module)
    assert doc is not None
    assert "\n\n" not in doc
    assert len(paragraph(module).split()) > 50
    assert callable(module.run)
