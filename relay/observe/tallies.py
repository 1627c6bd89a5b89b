"""Counters and histograms as plain numbers: an event costs one addition, a scrape makes the exposition from them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import accumulate, product

LabelValues = tuple[str, ...]

OTHER = "other"  # counted in place of a label value that was not declared, so that no value can create a series of its own


class _Labelled:
    """A metric's name, text and labels, each of which has a closed set of values: the declared ones and OTHER."""

    def __init__(self, name: str, text: str, labels: Mapping[str, Iterable[str]]) -> None:
        self.name = name
        self.text = text
        self.labels: tuple[str, ...] = tuple(labels)
        self._declared = [set(values) for values in labels.values()]

    def _declare(self, values: LabelValues) -> None:
        for value, declared in zip(values, self._declared, strict=True):
            declared.add(value)

    def _closed(self, values: LabelValues) -> LabelValues:
        return tuple(value if value in declared else OTHER for value, declared in zip(values, self._declared, strict=True))


class Counts(_Labelled):
    """A counter. Series of declared label values exist from the start with 0, so that Prometheus's rate() sees the first event."""

    def __init__(self, name: str, text: str, **labels: Collection[str]) -> None:
        super().__init__(name, text, labels)
        self.series: dict[LabelValues, int] = dict.fromkeys(product(*labels.values()), 0)

    def known(self, *values: str) -> None:
        """Declares a series that exists from the start."""
        self._declare(values)
        self.series.setdefault(values, 0)

    def add(self, *values: str, by: int = 1) -> None:
        if values not in self.series:
            values = self._closed(values)
        self.series[values] = self.series.get(values, 0) + by


class Timings(_Labelled):
    """A histogram of seconds; `bounds` are the upper bounds of its buckets, rising."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], **labels: Collection[str]) -> None:
        super().__init__(name, text, labels)
        self.bounds = bounds
        self._counts: dict[LabelValues, list[int]] = {values: self._empty() for values in product(*labels.values())}
        self._sums: dict[LabelValues, float] = dict.fromkeys(self._counts, 0.0)

    def known(self, *values: str) -> None:
        """Declares a series that exists from the start."""
        self._declare(values)
        self._series(values)

    def _series(self, values: LabelValues) -> list[int]:
        self._sums.setdefault(values, 0.0)
        return self._counts.setdefault(values, self._empty())

    def add(self, seconds: float, *values: str) -> None:
        counts = self._counts.get(values)
        if counts is None:
            values = self._closed(values)
            counts = self._series(values)
        counts[bisect_left(self.bounds, seconds)] += 1
        self._sums[values] += seconds

    def _empty(self) -> list[int]:
        return [0] * (len(self.bounds) + 1)

    def series(self) -> Iterator[tuple[LabelValues, list[int], float]]:
        """For each series: label values, cumulative counts by bound (the last without bound), and the sum of seconds."""
        for values, counts in self._counts.items():
            yield values, list(accumulate(counts)), self._sums[values]
