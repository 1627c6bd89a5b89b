"""The table of sizes: `full` has those of the issue, `quick` and `tiny` are no larger."""

from __future__ import annotations

import msgspec

from benchmarks.sizes import FULL, GIB, QUICK, SIZES, TINY


def test_full_is_what_the_issue_asks_for() -> None:
    assert FULL.session_clients == (1, 16, 64)
    assert FULL.latency_together == 16
    assert FULL.stream_bytes == GIB
    assert FULL.streams_at_once == FULL.mixed_clones == 4
    assert FULL.repository_bytes == 10**9
    assert FULL.idle_connections == (1_000, 5_000)


def test_the_others_ask_for_no_more() -> None:
    for smaller, larger in ((TINY, QUICK), (QUICK, FULL)):
        for field in msgspec.structs.fields(larger):
            less, more = (getattr(one, field.name) for one in (smaller, larger))
            if field.name not in ("name", "shield_every_seconds"):  # the longer between two attempts, the less to do
                assert (max(less) <= max(more)) if isinstance(less, tuple) else less <= more, field.name


def test_every_table_is_found_by_its_name() -> None:
    assert {name: sizes.name for name, sizes in SIZES.items()} == {name: name for name in ("full", "quick", "tiny")}
