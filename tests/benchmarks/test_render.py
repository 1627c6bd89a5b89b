"""Figures as text."""

from __future__ import annotations

import pytest

from benchmarks.figures import Spread
from benchmarks.render import figure, number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234567, "1,234,567"),
        (123.4, "123"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.3456, "0.346"),
        (0.0123, "0.0123"),
        (-5.5, "-5.50"),
    ],
)
def test_numbers_have_about_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_figure_shows_its_spread_when_there_is_one() -> None:
    assert figure(Spread(2, 1, 3)) == "2.00 (1.00 to 3.00)"
    assert figure(Spread(2, 2, 2)) == "2.00"
