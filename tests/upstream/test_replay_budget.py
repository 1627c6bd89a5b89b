"""How many sessions are replayed in a second, and how long the others wait for their turn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.upstream.replay_budget import ReplayBudget


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_seconds_worth_goes_on_at_once_and_the_others_in_turn() -> None:
    clock = Clock()
    budget = ReplayBudget(4, clock)
    assert [budget.reserve(60) for _ in range(4)] == [0, 0, 0, 0]
    assert [round(budget.reserve(60) or 0, 6) for _ in range(3)] == [0.25, 0.5, 0.75]
    clock.now += 10
    assert [budget.reserve(60) for _ in range(4)] == [0, 0, 0, 0], "no more than a second's worth is saved up"
    assert budget.reserve(60)


def test_who_would_wait_too_long_takes_nobodys_turn() -> None:
    clock = Clock()
    budget = ReplayBudget(1, clock)
    assert budget.reserve(0) == 0
    assert budget.reserve(0) is None and budget.reserve(0.5) is None
    assert budget.reserve(1) == 1
    clock.now += 2
    assert budget.reserve(0) == 0


def test_without_a_budget_nobody_goes_on() -> None:
    assert ReplayBudget(0).reserve(1e9) is None


@given(st.integers(1, 50), st.lists(st.tuples(st.floats(0, 2), st.floats(0, 5)), max_size=100))
def test_no_second_has_more_than_two_seconds_worth(rate: int, asked: list[tuple[float, float]]) -> None:
    """A second's worth at once, and those that become due in the second after it."""
    clock = Clock()
    budget = ReplayBudget(rate, clock)
    turns = []
    for pause, patience in asked:
        clock.now += pause
        wait = budget.reserve(patience)
        if wait is not None:
            assert 0 <= wait <= patience
            turns.append(clock.now + wait)
    for start in turns:
        assert sum(start <= turn < start + 1 - 1e-6 for turn in turns) <= 2 * rate
