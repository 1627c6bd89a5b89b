"""Percentiles, spread and ratios."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.figures import Series, Spread, percentile, ratio, statistic_of

samples = st.lists(st.floats(min_value=0.001, max_value=1e6), min_size=1, max_size=60)


def series(*rounds: tuple[float, ...], contender: str = "relay") -> Series:
    return Series("latency", "a case", "time", contender, "ms", "lower", ("p50",), rounds)


def test_percentile_interpolates_between_neighbours() -> None:
    assert percentile([4, 1, 3, 2], 0) == 1
    assert percentile([4, 1, 3, 2], 100) == 4
    assert percentile([4, 1, 3, 2], 50) == 2.5
    assert percentile([10, 20], 95) == pytest.approx(19.5)
    assert percentile([7], 99) == 7


@given(samples)
def test_percentile_agrees_with_the_median_and_never_leaves_the_samples(values: list[float]) -> None:
    assert percentile(values, 50) == pytest.approx(statistics.median(values))
    p95, p99 = percentile(values, 95), percentile(values, 99)
    assert min(values) <= p95 <= p99 * (1 + 1e-12)
    assert p99 <= max(values) * (1 + 1e-12)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentile_refuses_what_has_none(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match=r"samples|percent"):
        percentile(values, percent)


def test_an_unknown_statistic_is_refused() -> None:
    with pytest.raises(ValueError, match="mean"):
        statistic_of([1.0], "mean")


def test_spread_pools_the_samples_and_ranges_over_rounds() -> None:
    assert series((1, 2, 3), (4, 5, 6)).spread("p50") == Spread(3.5, 2, 5)
    assert series((10,), (30,), (20,)).spread() == Spread(20, 10, 30)


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # the machine was slower in the second round, for both, so the ratio is the same
    relay, direct = series((2,), (20,), (3,)), series((4,), (40,), (4,), contender="direct")
    assert ratio(relay, direct) == Spread(0.5, 0.5, 0.75)


def test_a_tails_ratio_is_over_all_samples() -> None:
    relay, direct = series((1, 1), (1, 9)), series((1, 1), (1, 3), contender="direct")
    assert ratio(relay, direct, "p99").value == pytest.approx(percentile([1, 1, 1, 9], 99) / percentile([1, 1, 1, 3], 99))


@given(st.lists(st.tuples(st.floats(0.1, 1e3), st.floats(0.1, 1e3)), min_size=1, max_size=9))
def test_a_ratio_lies_within_its_spread_and_turns_over(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = (series(*[(pair[i],) for pair in pairs]) for i in (0, 1))
    there, back = ratio(ours, theirs), ratio(theirs, ours)
    assert there.low <= there.value <= there.high
    assert there.low == pytest.approx(1 / back.high)


def test_a_ratio_to_zero_or_of_unequal_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="zero"):
        ratio(series((1,)), series((0,)))
    with pytest.raises(ValueError, match="rounds"):
        ratio(series((1,), (2,)), series((1,)))
