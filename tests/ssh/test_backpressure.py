"""The byte budget: it counts held bytes and calls paused sessions back; compared with a plain model over long random histories."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from relay.ssh.backpressure import FREE_BYTES, RESUME_FRACTION, Budget, Share


def test_take_and_give() -> None:
    budget = Budget(100)
    assert not budget.take(100)
    assert not budget.over
    assert budget.take(1)
    assert budget.over
    assert not budget.give(1)
    assert not budget.give(100)
    assert (budget.used, budget.peak) == (0, 101)


@pytest.mark.parametrize("count", [-1, 11])
def test_what_was_not_taken_cannot_be_given_back(count: int) -> None:
    budget = Budget(100)
    budget.take(10)
    with pytest.raises(ValueError, match="cannot be given back, 10 are held"):
        budget.give(count)
    assert budget.used == 10


def test_nothing_negative_is_taken_or_held() -> None:
    budget = Budget(100)
    budget.take(50)
    with pytest.raises(ValueError, match="cannot be taken"):
        budget.take(-1)
    with pytest.raises(ValueError, match="cannot be held"):
        budget.share(lambda: None).hold(-1)
    assert budget.used == 50


BIG = 10 * FREE_BYTES


def test_a_session_over_the_budget_is_paused_and_told_when_there_is_room() -> None:
    budget = Budget(2 * BIG)
    resumed: list[str] = []
    hog = budget.share(lambda: resumed.append("hog"))
    one = budget.share(lambda: resumed.append("one"))
    assert not hog.hold(BIG)
    assert not one.hold(BIG), "all of it is used, none too much"
    assert one.hold(BIG + 1)
    assert not hog.hold(BIG - 1)
    assert resumed == [], "it fits, but a mark below avoids going to and fro"
    hog.hold(int(2 * BIG * RESUME_FRACTION) - BIG - 1)
    assert resumed == ["one"]
    hog.close()
    assert resumed == ["one"], "once"


def test_only_as_many_go_on_as_there_is_room_for() -> None:
    budget = Budget(BIG)
    resumed: list[Share] = []
    shares: list[Share] = []

    def make() -> Share:
        def resume() -> None:
            resumed.append(share)
            share.hold(share.held + BIG)

        share = budget.share(resume)
        return share

    shares = [make() for _ in range(5)]
    hog = budget.share(lambda: None)
    hog.hold(2 * BIG)
    for share in shares:
        assert share.hold(FREE_BYTES + 1)
    hog.close()
    assert resumed == shares[:1]
    shares[0].close()
    assert resumed == shares[:2]


def test_a_session_that_holds_little_is_never_paused() -> None:
    """Else clients that read nothing would together pause all others, until the stall limit ends them."""
    budget = Budget(BIG)
    stalled = budget.share(lambda: None)
    stalled.hold(3 * BIG)
    honest = budget.share(lambda: None)
    assert not honest.hold(FREE_BYTES)
    assert honest.hold(FREE_BYTES + 1)
    assert not honest.hold(FREE_BYTES)


def test_a_closed_share_holds_nothing_and_is_not_called() -> None:
    budget = Budget(BIG)
    called: list[str] = []
    one, other = budget.share(lambda: called.append("one")), budget.share(lambda: called.append("other"))
    other.hold(BIG)
    one.hold(BIG)
    one.close()
    one.close()
    assert (budget.used, one.held) == (BIG, 0)
    assert not one.hold(BIG), "a callback that comes late must not leak"
    assert (budget.used, one.held) == (BIG, 0)
    other.close()
    assert (budget.used, called) == (0, [])


class BudgetMachine(RuleBasedStateMachine):
    """The budget's use is the sum of its shares; a paused share, and no other, is called back when there is room."""

    shares: Bundle[int] = Bundle("shares")

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(20 * FREE_BYTES)
        self.all: list[Share] = []
        self.paused: set[int] = set()

    @rule(target=shares)
    def opens(self) -> int:
        number = len(self.all)
        self.all.append(self.budget.share(lambda: self.paused.remove(number)))
        return number

    @rule(number=shares, held=st.integers(0, 20 * FREE_BYTES))
    def holds(self, number: int, held: int) -> None:
        self.paused.discard(number)
        if self.all[number].hold(held):
            assert self.budget.over and held > FREE_BYTES
            self.paused.add(number)

    @rule(number=consumes(shares))
    def closes(self, number: int) -> None:
        self.paused.discard(number)
        self.all[number].close()

    @invariant()
    def the_sum_is_right(self) -> None:
        assert self.budget.used == sum(share.held for share in self.all) >= 0
        assert self.budget.peak >= self.budget.used
        assert self.budget.over == (self.budget.used > self.budget.total)
        if self.budget.used <= self.budget.total * RESUME_FRACTION:
            assert not self.paused, "there is room, and somebody was not told"


TestBudget = BudgetMachine.TestCase
TestBudget.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
