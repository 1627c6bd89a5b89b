"""The breaker: when it opens, how long, and what closes it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.upstream.breaker import FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS, Breaker


def proven(failures: int = 3) -> Breaker:
    breaker = Breaker(failures)
    breaker.succeeded()
    return breaker


def state(breaker: Breaker) -> str:
    return breaker.state


def test_it_opens_after_as_many_failures_in_a_row() -> None:
    breaker = proven(3)
    for _ in range(2):
        breaker.failed()
    assert state(breaker) == "closed"
    breaker.succeeded()
    for _ in range(2):
        breaker.failed()
    assert state(breaker) == "closed"  # not in a row
    breaker.failed()
    assert repr(breaker) == "<breaker open failures=3>"


def test_before_a_first_success_one_failure_opens_the_breaker() -> None:
    breaker = Breaker(3)
    assert (breaker.state, breaker.proven) == ("closed", False)
    breaker.failed()
    assert state(breaker) == "open"


def test_a_failure_that_another_dial_cannot_mend_opens_the_breaker_at_once() -> None:
    breaker = proven(100)
    breaker.failed(at_once=True)
    assert state(breaker) == "open"


def test_the_trial_dial_closes_or_reopens_the_breaker() -> None:
    breaker = Breaker(3)
    breaker.try_again()
    assert state(breaker) == "closed"  # no trial dial is due
    breaker.failed()
    breaker.try_again()
    assert state(breaker) == "half-open"
    breaker.failed()
    assert state(breaker) == "open"
    breaker.try_again()
    breaker.succeeded()
    assert state(breaker) == "closed"


def test_pauses_grow_up_to_a_most_and_begin_anew_after_a_success() -> None:
    breaker = Breaker(1)
    pauses = [breaker.pause() for _ in range(12)]
    assert pauses[:3] == [FIRST_PAUSE_SECONDS, 2 * FIRST_PAUSE_SECONDS, 4 * FIRST_PAUSE_SECONDS]
    assert pauses == sorted(pauses)
    assert pauses[-1] == MOST_PAUSE_SECONDS
    breaker.succeeded()
    assert breaker.pause() == FIRST_PAUSE_SECONDS


@given(st.integers(1, 5), st.lists(st.sampled_from(["failed", "succeeded", "try_again"])))
def test_only_a_success_closes_it_and_only_so_many_failures_open_it(limit: int, steps: list[str]) -> None:
    breaker, in_a_row = Breaker(limit), 0
    for step in steps:
        before = breaker.state
        getattr(breaker, step)()
        in_a_row = in_a_row + 1 if step == "failed" else 0 if step == "succeeded" else in_a_row
        if step == "succeeded":
            assert state(breaker) == "closed"
        elif before != "closed":
            assert state(breaker) == ("half-open" if step == "try_again" else "open")
        elif breaker.state == "open":
            assert step == "failed"
            assert in_a_row >= limit or not breaker.proven
