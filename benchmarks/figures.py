"""Samples of one quantity by round, and their statistics: percentiles, spread and ratios."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

Better = Literal["lower", "higher"]
MIDDLE = ("median", "p50")


class Spread(NamedTuple):
    """A value, with the least and the greatest of single rounds."""

    value: float
    low: float
    high: float


class Sample(NamedTuple):
    """The measurements of one quantity in one turn of one contender."""

    unit: str
    better: Better
    values: Sequence[float]
    statistics: tuple[str, ...] = ("median",)


class Series(msgspec.Struct, frozen=True):
    """All samples of one quantity of one contender in one case, kept by round, so that statistics can be computed again."""

    scenario: str
    case: str
    quantity: str
    contender: str
    unit: str
    better: Better
    statistics: tuple[str, ...]
    rounds: tuple[tuple[float, ...], ...]

    def spread(self, statistic: str = "median") -> Spread:
        """The statistic over the samples of all rounds together; the spread is that statistic of each round by itself."""
        each = [statistic_of(values, statistic) for values in self.rounds]
        pooled = statistic_of([value for values in self.rounds for value in values], statistic)
        return Spread(pooled, min(each), max(each))


def percentile(samples: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the samples lie, interpolated between neighbours; raises ValueError without samples."""
    if not samples:
        raise ValueError("no samples")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent is 0 to 100, not {percent}")
    ordered = sorted(samples)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def statistic_of(samples: Sequence[float], statistic: str) -> float:
    """`median`, or `pNN` for a percentile."""
    if statistic == "median":
        return statistics.median(samples)
    if statistic.startswith("p") and statistic[1:].isdigit():
        return percentile(samples, int(statistic[1:]))
    raise ValueError(f"unknown statistic {statistic!r}")


def ratio(of: Series, to: Series, statistic: str = "median") -> Spread:
    """One series as a multiple of another; the spread is that of the rounds' ratios, as both share the machine's state in a round.

    The figure is the median of the rounds' ratios. A tail (p95, p99) is the ratio over all samples, as one round has too few for it.
    Raises ValueError if the divisor is zero (CPU time too short to be measured) or the rounds do not match.
    """
    if len(of.rounds) != len(to.rounds):
        raise ValueError(f"{of.contender} has {len(of.rounds)} rounds, {to.contender} {len(to.rounds)}")
    divisors = [statistic_of(values, statistic) for values in to.rounds]
    pooled = to.spread(statistic).value
    if pooled == 0 or 0 in divisors:
        raise ValueError(f"{to.contender}'s {to.quantity} is zero")
    each = [statistic_of(values, statistic) / divisor for values, divisor in zip(of.rounds, divisors, strict=True)]
    value = statistics.median(each) if statistic in MIDDLE else of.spread(statistic).value / pooled
    return Spread(value, min(each), max(each))
