"""Counters and histograms that cost one addition each: plain numbers, of which an exposition is made when one is asked for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate, product

Labels = tuple[str, ...]


class Counts:
    """How often, by label values. The series of all known values exist from the start, so that a rate sees its first event."""

    def __init__(self, name: str, text: str, **labels: Iterable[str]) -> None:
        self.name = name
        self.text = text
        self.labels: Labels = tuple(labels)
        self.series: dict[Labels, int] = dict.fromkeys(product(*labels.values()), 0)

    def known(self, *values: str) -> None:
        """One more series that exists from the start."""
        self.series.setdefault(values, 0)

    def add(self, *values: str) -> None:
        self.series[values] = self.series.get(values, 0) + 1


class Timings:
    """How long, by label values, in buckets whose upper bounds (in seconds, rising) belong to them."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], **labels: Iterable[str]) -> None:
        self.name = name
        self.text = text
        self.labels: Labels = tuple(labels)
        self.bounds = bounds
        self._counts: dict[Labels, list[int]] = {values: self._none() for values in product(*labels.values())}
        self._sums: dict[Labels, float] = dict.fromkeys(self._counts, 0.0)

    def known(self, *values: str) -> list[int]:
        """One more series that exists from the start."""
        self._sums.setdefault(values, 0.0)
        return self._counts.setdefault(values, self._none())

    def add(self, seconds: float, *values: str) -> None:
        counts = self._counts.get(values)
        if counts is None:
            counts = self.known(*values)
        counts[bisect_left(self.bounds, seconds)] += 1
        self._sums[values] += seconds

    def _none(self) -> list[int]:
        return [0] * (len(self.bounds) + 1)

    def series(self) -> Iterator[tuple[Labels, list[int], float]]:
        """Label values, how many took at most each bound (and any time at all, last), and the sum of all seconds."""
        for values, counts in self._counts.items():
            yield values, list(accumulate(counts)), self._sums[values]
