"""Snapshots: how those of several workers are merged, and what is kept of a worker that ended."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from relay.observe.snapshot import Family, Labels, MergeRule, MetricKind, Retired, Snapshot, merge, supervision

KINDS: dict[str, tuple[MetricKind, MergeRule]] = {
    "count": ("counter", "sum"),
    "spread": ("histogram", "sum"),
    "open": ("gauge", "sum"),
    "up": ("gauge", "max"),
}
Values = dict[tuple[str, str], float]  # (name, label) -> value
WHOLE = st.integers(0, 1 << 40).map(float)  # floats that add without rounding


def families(values: Values) -> Snapshot:
    found = []
    for name, (kind, rule) in KINDS.items():
        samples: list[tuple[str, Labels, float]] = [("", (("of", label),), value) for (one, label), value in values.items() if one == name]
        found.append(Family(name, kind, name, rule, samples))
    return Snapshot(found)


def flat(snapshot: Snapshot) -> Values:
    return {(family.name, labels[0][1]): value for family in snapshot.families for _, labels, value in family.samples}


SNAPSHOTS = st.lists(st.dictionaries(st.tuples(st.sampled_from(list(KINDS)), st.sampled_from("abc")), WHOLE), max_size=5)


@given(SNAPSHOTS)
def test_equal_series_are_added_or_the_greatest_counts(values: list[Values]) -> None:
    merged = flat(merge(map(families, values)))
    assert merged.keys() == {key for one in values for key in one}
    for key, value in merged.items():
        seen = [one[key] for one in values if key in one]
        assert value == (max(seen) if key[0] == "up" else sum(seen))


@given(SNAPSHOTS)
def test_the_order_of_workers_does_not_matter(values: list[Values]) -> None:
    assert flat(merge(map(families, values))) == flat(merge(map(families, reversed(values))))


@given(SNAPSHOTS, SNAPSHOTS)
def test_totals_of_ended_workers_remain_and_their_gauges_are_dropped(living: list[Values], gone: list[Values]) -> None:
    retired = Retired()
    for one in gone:
        retired.add(families(one))
    merged = flat(merge(map(families, living), retired))
    alive, everyone = (flat(merge(map(families, some))) for some in (living, living + gone))
    for key in merged.keys() | everyone.keys():
        assert merged.get(key) == (everyone if key[0] in ("count", "spread") else alive).get(key), key


def test_one_that_ended_is_not_changed_by_what_is_added_later() -> None:
    last, retired = families({("count", "a"): 1.0}), Retired()
    retired.add(last)
    retired.add(last)
    assert flat(last) == {("count", "a"): 1.0}
    assert flat(retired.snapshot) == {("count", "a"): 2.0}


def test_it_travels_as_msgpack() -> None:
    snapshot = families({("count", "a"): 1.0, ("up", "ü"): 0.0})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot), type=Snapshot) == snapshot


def test_the_supervisor_counts_workers_restarts_and_reloads() -> None:
    families = supervision(3, 2, 1, 4, 5.5, {("main", "paused"): 1, ("main", "draining"): 2})
    found = {(family.name + suffix, *labels): value for family in families for suffix, labels, value in family.samples}
    assert found == {
        ("relay_workers",): 3,
        ("relay_worker_restarts_total",): 2,
        ("relay_reloads_total", ("result", "ok")): 1,
        ("relay_reloads_total", ("result", "refused")): 4,
        ("relay_change_not_taken_since_seconds", ("what", "configuration")): 5.5,
        ("relay_upstream_switches", ("upstream", "main"), ("switch", "paused")): 1,
        ("relay_upstream_switches", ("upstream", "main"), ("switch", "draining")): 2,
    }
