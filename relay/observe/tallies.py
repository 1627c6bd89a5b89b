"""Counters and histograms as plain numbers: an event costs one addition, a scrape makes the exposition from them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate, product

LabelValues = tuple[str, ...]


class Counts:
    """A counter. Series of known label values exist from the start with 0, so that Prometheus's rate() sees the first event."""

    def __init__(self, name: str, text: str, **labels: Iterable[str]) -> None:
        self.name = name
        self.text = text
        self.labels: tuple[str, ...] = tuple(labels)
        self.series: dict[LabelValues, int] = dict.fromkeys(product(*labels.values()), 0)

    def known(self, *values: str) -> None:
        """Declares a series that exists from the start."""
        self.series.setdefault(values, 0)

    def add(self, *values: str, by: int = 1) -> None:
        self.series[values] = self.series.get(values, 0) + by


class Timings:
    """A histogram of seconds; `bounds` are the upper bounds of its buckets, rising."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], **labels: Iterable[str]) -> None:
        self.name = name
        self.text = text
        self.labels: tuple[str, ...] = tuple(labels)
        self.bounds = bounds
        self._counts: dict[LabelValues, list[int]] = {values: self._empty() for values in product(*labels.values())}
        self._sums: dict[LabelValues, float] = dict.fromkeys(self._counts, 0.0)

    def known(self, *values: str) -> list[int]:
        """Declares a series that exists from the start."""
        self._sums.setdefault(values, 0.0)
        return self._counts.setdefault(values, self._empty())

    def add(self, seconds: float, *values: str) -> None:
        counts = self._counts.get(values)
        if counts is None:
            counts = self.known(*values)
        counts[bisect_left(self.bounds, seconds)] += 1
        self._sums[values] += seconds

    def _empty(self) -> list[int]:
        return [0] * (len(self.bounds) + 1)

    def series(self) -> Iterator[tuple[LabelValues, list[int], float]]:
        """For each series: label values, cumulative counts by bound (the last without bound), and the sum of seconds."""
        for values, counts in self._counts.items():
            yield values, list(accumulate(counts)), self._sums[values]
