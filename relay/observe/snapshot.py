"""Snapshot: the metrics of one worker as plain values, and how those of several workers become one answer to a scrape.

A worker takes a snapshot, the supervisor merges them. Whoever merges keeps the last snapshot it saw of each worker: one that does
not answer in time counts with that one, one that ended goes into `Retired`; so no total ever goes backwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Labels = tuple[tuple[str, str], ...]  # (name, value), in the order of declaration
MetricKind = Literal["counter", "gauge", "histogram"]
MergeRule = Literal["sum", "max"]


class Family(msgspec.Struct, frozen=True, array_like=True):
    """All samples of one metric.

    `name` is without the `_total` of counters; `suffix` of a sample is what follows it: "", _total, _bucket, _count or _sum.
    """

    name: str
    kind: MetricKind
    help: str
    rule: MergeRule  # how values with equal labels of several workers become one
    samples: list[tuple[str, Labels, float]]


class Untaken(msgspec.Struct, frozen=True, array_like=True):
    """A change that is not in force."""

    what: str  # relay.events.Changing
    since: float  # seconds since the epoch
    problem: str  # the first of them


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """Everything that one worker counts, at one moment, and what is not in force there; msgspec encodes and decodes it."""

    families: list[Family]
    untaken: list[Untaken] = []


class Retired:
    """Counters and histograms of workers that ended; their gauges are forgotten, for what they measured is gone."""

    def __init__(self) -> None:
        self.snapshot = Snapshot([])

    def add(self, last: Snapshot) -> None:
        """`last`: the last snapshot seen of a worker that ended, whether it drained or was killed. Once a worker."""
        kept = [family for family in last.families if family.kind != "gauge"]
        self.snapshot = _sum([self.snapshot, Snapshot(kept)])


def merge(snapshots: Iterable[Snapshot], retired: Retired | None = None) -> Snapshot:
    """One snapshot for all: counters, histograms and gauges are added, or the greatest counts where the family says so."""
    return _sum([*snapshots, retired.snapshot] if retired is not None else list(snapshots))


def supervision(workers: int, restarts: int, reloads: int, refused: int = 0, refused_since: float = 0.0) -> list[Family]:
    """What the supervisor itself knows: workers that live, workers started because one ended unasked, reloads that took effect or did not;
    and since when a changed configuration is not in force, in seconds since the epoch, 0 when it is."""
    ended: list[tuple[str, Labels, float]] = [
        ("_total", (("result", "refused"),), refused),
        ("_total", (("result", "ok"),), reloads),
    ]
    since: list[tuple[str, Labels, float]] = [("", (("what", "configuration"),), refused_since)]
    return [
        Family("relay_workers", "gauge", "Worker processes that live.", "sum", [("", (), workers)]),
        Family(
            "relay_worker_restarts", "counter", "Workers started in place of one that ended unasked.", "sum", [("_total", (), restarts)]
        ),
        Family("relay_reloads", "counter", "Reloads of the configuration, by whether they took effect.", "sum", ended),
        Family("relay_change_not_taken_since_seconds", "gauge", "Since when a change is not in force.", "max", since),
    ]


def _sum(snapshots: list[Snapshot]) -> Snapshot:
    first: dict[str, Family] = {}
    values: dict[str, dict[tuple[str, Labels], float]] = {}
    for snapshot in snapshots:
        for family in snapshot.families:
            known = first.setdefault(family.name, family)
            into = values.setdefault(family.name, {})
            if known.rule == "max":
                for suffix, labels, value in family.samples:
                    key = (suffix, labels)
                    into[key] = max(into.get(key, value), value)
            else:
                for suffix, labels, value in family.samples:
                    key = (suffix, labels)
                    into[key] = into.get(key, 0.0) + value
    return Snapshot(
        [
            Family(one.name, one.kind, one.help, one.rule, [(suffix, labels, value) for (suffix, labels), value in values[name].items()])
            for name, one in first.items()
        ]
    )
