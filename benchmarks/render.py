"""Figures as text."""

from __future__ import annotations

from benchmarks.figures import Spread


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    digits = 3
    size = abs(value)
    while size >= 10 and digits > 0:
        size, digits = size / 10, digits - 1
    decimals = max(0, digits - 1) if abs(value) >= 1 else 3 if abs(value) >= 0.1 else 4
    return f"{value:,.{decimals}f}"


def figure(spread: Spread) -> str:
    """A value with its range over rounds, or alone if the rounds did not differ."""
    if spread.low == spread.high:
        return number(spread.value)
    return f"{number(spread.value)} ({number(spread.low)} to {number(spread.high)})"
