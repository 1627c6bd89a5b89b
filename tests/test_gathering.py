"""The pace of a flow, by which bulk that comes in small packets gathers or does not."""

from __future__ import annotations

import pytest

from relay.gathering import GATHER_BYTES_PER_SECOND, GATHER_SECONDS, GATHER_UNTAKEN_BYTES, PACE_SECONDS, Pace


@pytest.mark.parametrize(("bytes_per_second", "slow"), [(0, True), (GATHER_BYTES_PER_SECOND - 1, True), (GATHER_BYTES_PER_SECOND, False)])
def test_a_flow_is_slow_below_the_limit(bytes_per_second: int, slow: bool) -> None:
    pace, begin = Pace(), 1_000.0
    pace.is_slow(begin, 5)
    assert pace.is_slow(begin + 2.0, 5 + 2 * bytes_per_second) is slow


def test_between_two_measurements_the_last_one_holds() -> None:
    pace, begin, much = Pace(), 1_000.0, 1 << 40
    pace.is_slow(begin, 0)
    begin += 2 * PACE_SECONDS
    assert pace.is_slow(begin, 1)
    assert pace.is_slow(begin + PACE_SECONDS / 2, much), "too soon to measure again"
    begin += 2 * PACE_SECONDS
    assert not pace.is_slow(begin, much)
    begin += 2 * PACE_SECONDS
    assert pace.is_slow(begin, much + 1), "and it may become slow again"


def test_a_slow_flow_takes_longer_than_a_gathering_for_what_is_untaken() -> None:
    assert GATHER_BYTES_PER_SECOND * GATHER_SECONDS < GATHER_UNTAKEN_BYTES / 1.5
