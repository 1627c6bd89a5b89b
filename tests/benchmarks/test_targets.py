"""The targets: every row of the issue, judged by the measurements; "not measured" without them."""

from __future__ import annotations

import pytest

from benchmarks.figures import Spread
from benchmarks.results import Results
from benchmarks.sizes import TINY
from benchmarks.targets import Target, targets
from tests.benchmarks.made import made


@pytest.mark.parametrize(
    ("sign", "limit", "value", "verdict"),
    [("<=", 0.5, 0.5, "met"), ("<=", 0.5, 0.51, "missed"), (">=", 3, 3, "met"), (">=", 3, 2.99, "missed")],
)
def test_a_target_is_judged_by_its_figure_not_by_its_best_round(sign: str, limit: float, value: float, verdict: str) -> None:
    target = Target("speed", sign, limit, "x", Spread(value, 0, 1000))  # type: ignore[arg-type]
    assert target.verdict == verdict


def test_a_run_without_figures_claims_nothing() -> None:
    found = targets(Results("", TINY, {}))
    assert {one.verdict for one in found} == {"not measured"}
    assert {one.measured_text for one in found} == {"-"}


def test_the_issues_table_is_complete() -> None:
    """Limits and divisors, in the order of the issues that set them."""
    rows = [(one.sign, one.limit, one.unit) for one in targets(made())]
    assert rows == [
        ("<=", 0.35, "x direct"),
        ("<=", 0.5, "x direct"),
        ("<=", 0.48, "x go"),
        ("<=", 0.48, "x go"),
        ("<=", 0.12, "x direct"),
        ("<=", 0.12, "x go"),
        (">=", 5.0, "x direct"),
        (">=", 6.0, "x go"),
        ("<=", 0.65, "x go"),
        *[(">=", limit, unit) for _ in range(2) for limit, unit in ((0.8, "x direct"), (1.3, "x go"))],
        *[(">=", limit, unit) for down_or_up in (0.85, 0.75) for limit, unit in ((down_or_up, "x direct"), (1.5, "x go"))],
        *[("<=", 0.7, "x go")] * 4,
        *[("<=", 1.35, "x floor")] * 2,
        *[("<=", 0.25, "x direct")] * 2,
        ("<=", 40.0, "kB"),
        ("<=", 40.0, "kB"),
        ("<=", 0.0, "%"),
        *[("<=", limit, "x direct") for _ in range(2) for limit in (0.06, 0.2, 0.5)],
        *[("<=", 1.03, "x relay without packs")] * 2,
    ]


def test_measured_values_come_from_the_right_series() -> None:
    found = targets(made())
    values = {(one.what, one.unit): None if one.measured is None else round(one.measured.value, 3) for one in found}
    assert values["ls-remote p50, warm pool, as a stock client negotiates", "x direct"] == 0.3
    assert values["ls-remote p50, warm pool, same key exchange pinned", "x go"] == 0.375
    assert values["a whole session by a library client, p50", "x direct"] == 0.3
    assert values["sessions per second, 16 clients", "x direct"] == 3.333
    assert values["sessions per second, 16 clients", "x go"] == 2.667
    assert values["relay CPU per session, warm pool, 16 clients", "x go"] == 0.375
    assert values["bulk, one stream up, GCM ciphers", "x direct"] == 3.333
    assert values["relay CPU per GB, one stream down, stock ciphers", "x go"] == 0.375
    assert values["relay CPU per GB, one stream up, GCM ciphers", "x floor"] == 1.5
    assert values["ls-remote p99 during 4 bulk clones", "x direct"] == 0.3
    assert values["ls-remote p99 during 4 bulk clones, packs", "x direct"] == 0.2
    assert values["RSS per idle connection, 1,000 held", "kB"] == 37.5
    assert values["RSS per idle connection, 5,000 held", "kB"] is None
    verdicts = {one.what: one.verdict for one in found}
    assert verdicts["ls-remote p99 during 4 bulk clones"] == "missed"
    assert verdicts["RSS per idle connection, 1,000 held"] == "met"
    assert verdicts["RSS per idle connection, 5,000 held"] == "not measured"
