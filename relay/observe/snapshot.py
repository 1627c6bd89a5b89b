"""Snapshot: the metrics of one worker as plain values, and the merge of several workers' snapshots into one answer to a scrape.

The supervisor keeps the last snapshot of each worker. It merges that one when the worker does not answer in time, and adds it to
`Retired` when the worker ends; so no total ever decreases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

Labels = tuple[tuple[str, str], ...]  # (name, value) pairs, in the order of declaration
MetricKind = Literal["counter", "gauge", "histogram"]
MergeRule = Literal["sum", "max"]


class Family(msgspec.Struct, frozen=True, array_like=True):
    """All samples of one metric.

    `name` is without a counter's `_total`. A sample is (suffix, labels, value); the suffix is "", _total, _bucket, _count or _sum.
    """

    name: str
    kind: MetricKind
    help: str
    rule: MergeRule  # how values of several workers with equal labels are merged
    samples: list[tuple[str, Labels, float]]


class Untaken(msgspec.Struct, frozen=True, array_like=True):
    """A change by the operator that is not in force, such as a faulty rules file."""

    what: str  # relay.events.Changing
    since: float  # seconds since the epoch
    problem: str  # the first problem that was found


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """The metrics of one worker at one moment, and the changes that are not in force there."""

    families: list[Family]
    untaken: list[Untaken] = []


class Retired:
    """The sum of counters and histograms of workers that ended; gauges are dropped, as what they measured is gone."""

    def __init__(self) -> None:
        self.snapshot = Snapshot([])

    def add(self, last: Snapshot) -> None:
        """Adds the last snapshot of a worker that ended. Call once for each worker."""
        kept = [family for family in last.families if family.kind != "gauge"]
        self.snapshot = _sum([self.snapshot, Snapshot(kept)])


def merge(snapshots: Iterable[Snapshot], retired: Retired | None = None) -> Snapshot:
    """One snapshot for all workers: values are added, or the greatest is taken, by the family's `rule`."""
    return _sum([*snapshots, retired.snapshot] if retired is not None else list(snapshots))


def supervision(
    workers: int,
    restarts: int,
    reloads: int,
    refused: int = 0,
    refused_since: float = 0.0,
    switches: Mapping[tuple[str, str], int] | None = None,
) -> list[Family]:
    """The supervisor's own metrics. `refused_since` is when the first of the refused reloads was, in seconds since the epoch; 0 when the
    configuration on disk is in force. `switches`: how many are on, by upstream and kind."""
    ended: list[tuple[str, Labels, float]] = [
        ("_total", (("result", "refused"),), refused),
        ("_total", (("result", "ok"),), reloads),
    ]
    since: list[tuple[str, Labels, float]] = [("", (("what", "configuration"),), refused_since)]
    on: list[tuple[str, Labels, float]] = [
        ("", (("upstream", upstream), ("switch", kind)), count) for (upstream, kind), count in (switches or {}).items()
    ]
    return [
        Family(
            "relay_upstream_switches",
            "gauge",
            "Switches by which an operator keeps sessions from an upstream: 1 while it is paused or frozen, and how many addresses drain.",
            "sum",
            on,
        ),
        Family("relay_workers", "gauge", "Running worker processes.", "sum", [("", (), workers)]),
        Family(
            "relay_worker_restarts", "counter", "Workers started to replace one that ended unexpectedly.", "sum", [("_total", (), restarts)]
        ),
        Family("relay_reloads", "counter", "Reloads of the configuration, by result.", "sum", ended),
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
