"""Rates, idle times and order of live sessions, from samples at given times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.commands.sessions_rates import HISTORY, ORDERS, QUIET_SECONDS, SLOW_BYTES, STALLED_SECONDS, WINDOW_SECONDS, Live, Row, ordered
from relay.process.messages import LiveSession


def line(seconds: float, bytes_in: int = 0, bytes_out: int = 0, id: str = "c-1", worker: int = 1, identity: str = "alice") -> LiveSession:
    where = "team/app", "main", "192.0.2.9:22"
    return LiveSession(id, identity, "192.0.2.7:4711", "git-upload-pack", *where, seconds, bytes_in, bytes_out, worker)


def test_the_first_look_tells_a_rate_of_a_young_session_only() -> None:
    (young,) = Live().look([line(2.0, 100, 4000)])
    assert (young.rate_in, young.rate_out) == (50.0, 2000.0)
    (old,) = Live().look([line(60.0, 100, 4000)])
    assert (old.rate_in, old.rate_out, old.pace) == (None, None, "new")


def test_a_rate_is_that_of_the_last_seconds() -> None:
    live = Live()
    for second in range(20):  # a thousand bytes a second, then none
        (row,) = live.look([line(100.0 + second, second * 10, min(second, 10) * 1000)])
        if 1 <= second <= 10:
            assert (row.rate_in, row.rate_out) == (10.0, 1000.0)
        if second >= 10 + WINDOW_SECONDS:
            assert row.rate_out == 0.0


def test_quiet_slow_and_stalled() -> None:
    live, paces = Live(), {}
    for second in range(60):
        (row,) = live.look([line(100.0 + second, 0, min(second, 10) * 1_000_000)])
        paces[second] = row.pace
    assert paces[0] == "new" and {paces[second] for second in range(1, 11)} == {"moving"}
    assert paces[10 + int(QUIET_SECONDS)] == "quiet" and paces[10 + int(STALLED_SECONDS)] == "stalled"
    (row,) = live.look([line(200.0, 0, 10_000_001)])
    assert row.pace == "slow" and 0 < row.rate < SLOW_BYTES


def test_sessions_of_two_workers_are_not_mixed_up_and_what_ended_is_forgotten() -> None:
    live = Live()
    live.look([line(10, 0, 0, worker=1), line(10, 0, 5000, worker=2)])
    rows = live.look([line(11, 0, 100, worker=1), line(11, 0, 5300, worker=2)])
    assert [row.rate_out for row in rows] == [100.0, 300.0]
    live.look([])
    assert live.rows == [] and not live._tracks
    (again,) = live.look([line(12, 0, 9000, worker=2)])
    assert again.rate_out is None


def test_totals_and_their_history() -> None:
    live = Live()
    live.look([line(10, 1, 2), line(10, 10, 20, id="c-2"), line(10, 0, 0, id="c-3", identity="bob")])
    live.look([line(11, 11, 102), line(11, 10, 20, id="c-2"), line(11, 0, 0, id="c-3", identity="bob")])
    assert live.totals == (3, 2, 21, 122, 10.0, 100.0)
    assert list(live.history) == [(0.0, 0.0), (10.0, 100.0)]
    for _ in range(2 * HISTORY):
        live.look([])
    assert len(live.history) == HISTORY


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 1 << 40), st.integers(0, 1 << 40)), min_size=1, max_size=30))
def test_whatever_comes_a_rate_is_never_negative_and_quiet_never_longer_than_the_session(steps: list[tuple[float, int, int]]) -> None:
    live, seconds, bytes_in, bytes_out = Live(), 0.0, 0, 0
    for step, more_in, more_out in steps:
        seconds, bytes_in, bytes_out = seconds + step, bytes_in + more_in, bytes_out + more_out
        (row,) = live.look([line(seconds, bytes_in, bytes_out)])
        assert row.rate >= 0 and 0 <= row.quiet_seconds <= seconds
        assert len(live._tracks[1, "c-1"].seen) <= len(steps)


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_forwards_and_backwards(order: str) -> None:
    rows = [
        Row(line(age, size, 100 - size, id=f"c-{age}", identity=who), size, size, age)
        for age, size, who in ((3, 30, "b"), (1, 10, "c"), (2, 20, "a"))
    ]
    forwards, backwards = ordered(rows, order), ordered(rows, order, backwards=True)
    assert {row.line.id for row in forwards} == {row.line.id for row in rows}
    keys = [ORDERS[order](row) for row in forwards]
    assert keys == sorted(keys)
    assert [ORDERS[order](row) for row in backwards] == keys[::-1]


def test_equal_rows_are_sorted_by_age() -> None:
    rows = [Row(line(age, id=f"c-{age}"), 0.0, 0.0, 0.0) for age in (1, 3, 2)]
    assert [row.line.seconds for row in ordered(rows, "rate")] == [3, 2, 1]
    assert [row.line.seconds for row in ordered(rows, "rate", backwards=True)] == [3, 2, 1]
