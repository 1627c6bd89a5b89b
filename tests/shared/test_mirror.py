"""The mirror: sent and received counts, lost and repeated exchanges, bounded memory; compared with a model of the other workers."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from relay import config
from relay.admission.limits import SOURCES_LIMIT
from relay.shared.mirror import BATCH, PAGE, Batch, ExchangeReply, Mirror


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def mirror(clock: Clock | None = None, **limits: int) -> Mirror:
    return Mirror(config.LimitsSettings(**limits), 3.0, clock or Clock())  # type: ignore[arg-type]  # all that is given are counts


def told(epoch: str = "one", since: int = 0, totals: dict[str, int] | None = None, kept: dict[str, float] | None = None) -> ExchangeReply:
    return ExchangeReply(epoch=epoch, since=since, totals=totals or {}, kept=kept or {}, workers=1)


def exchange(one: Mirror, answer: ExchangeReply | None = None, asked: float = 1000.0) -> Batch:
    batch = one.batch()
    one.answered(batch, answer or told(), asked)
    return batch


def test_the_first_exchange_sends_and_requests_everything() -> None:
    one = mirror()
    one.counted("a", 1)
    batch = exchange(one)
    assert (batch.fresh, batch.since, batch.counts) == (True, 0, {"a": 1})
    batch = exchange(one, told(since=7))
    assert (batch.fresh, batch.epoch, batch.counts) == (False, "one", {})
    assert one.batch().since == 7


def test_only_changed_counts_are_sent() -> None:
    one = mirror()
    one.counted("a", 1)
    one.counted("b", 1)
    exchange(one)
    one.counted("a", 2)
    one.counted("b", 2)
    one.counted("b", 1)
    one.counted("c", 1)
    one.counted("c", 0)
    assert one.batch().counts == {"a": 2}


def test_a_change_during_an_exchange_is_sent_with_the_next() -> None:
    one = mirror()
    one.counted("a", 1)
    batch = one.batch()
    one.counted("a", 2)
    one.answered(batch, told(totals={"a": 5}), 1000.0)
    assert one.connections("a") == 4, "of the five one is this worker's"
    assert one.batch().counts == {"a": 2}


def test_connections_elsewhere_are_the_totals_without_this_worker_s() -> None:
    one = mirror()
    one.counted("a", 2)
    exchange(one, told(totals={"a": 2, "b": 40}))
    assert (one.connections("a"), one.connections("b"), one.connections("c")) == (0, 40, 0)


def test_connections_elsewhere_count_for_a_lease_and_penalties_until_they_end() -> None:
    clock = Clock()
    one = mirror(clock)
    exchange(one, told(totals={"a": 40}, kept={"b": 20.0}))
    clock.now += 2.9
    assert one.connections("a") == 40
    clock.now += 0.1
    assert one.connections("a") == 0
    assert round(one.penalty("b")) == 17
    clock.now += 17
    assert one.penalty("b") == 0


def test_penalties_from_elsewhere_are_limited_like_those_from_here() -> None:
    one = mirror(penalty_max_seconds=60)
    exchange(one, told(kept={"a": 1e9}))
    assert one.penalty("a") == 60


def test_a_penalty_that_has_ended_is_removed() -> None:
    one = mirror()
    exchange(one, told(kept={"a": 20.0}))
    exchange(one, told(kept={"a": -1.0}))
    assert one.penalty("a") == 0


def test_penalties_add_up_and_are_sent_again_under_their_number_until_the_reply() -> None:
    one = mirror()
    one.penalised("a", 5)
    one.penalised("a", 5)
    first = one.batch()
    assert (first.number, first.penalties) == (1, {"a": 10})
    one.penalised("a", 7)
    again = one.batch()
    assert (again.number, again.penalties) == (1, {"a": 10}), "its answer was lost: perhaps it was heard"
    one.answered(again, told(), 1000.0)
    assert one.batch().penalties == {"a": 7}


def test_a_worker_that_the_redis_does_not_know_sends_everything_again() -> None:
    one = mirror()
    one.counted("a", 1)
    exchange(one, told(since=9))
    batch = one.batch()
    one.answered(batch, told(epoch=""), 1000.0)
    batch = one.batch()
    assert (batch.fresh, batch.since, batch.counts) == (True, 0, {"a": 1})


def test_another_epoch_is_another_redis() -> None:
    one = mirror()
    one.counted("a", 1)
    exchange(one)
    exchange(one, told(epoch="two"))
    assert one.batch().fresh


def test_many_sources_are_sent_in_batches_and_stored_within_bounds() -> None:
    one = mirror()
    for number in range(BATCH + 1):
        one.counted(str(number), 1)
    for number in range(SOURCES_LIMIT + 1):
        one.penalised(str(number), 1)
    batch = exchange(one)
    assert (len(batch.counts), len(batch.penalties), one.behind) == (BATCH, BATCH, True)
    assert len(one._penalties) == SOURCES_LIMIT - BATCH
    kept = {str(number): 20.0 + number / SOURCES_LIMIT for number in range(SOURCES_LIMIT + 10)}
    exchange(one, told(kept=kept))
    assert len(one._kept) == SOURCES_LIMIT
    assert one.penalty("0") == 0, "the soonest to end went"
    assert one.penalty(str(SOURCES_LIMIT)) > 0


def test_after_a_full_page_the_next_exchange_is_soon() -> None:
    one = mirror()
    exchange(one, told(kept={str(number): 20.0 for number in range(PAGE)}))
    assert one.behind
    exchange(one)
    assert not one.behind


@given(st.lists(st.tuples(st.sampled_from(["open", "close", "told", "lost", "forgotten"]), st.sampled_from("abc")), max_size=60))
def test_the_redis_has_the_right_counts_after_any_order_of_events(steps: list[tuple[str, str]]) -> None:
    one = mirror()
    here: Counter[str] = Counter()
    known: dict[str, int] = {}

    def talk() -> None:
        batch = one.batch()
        if batch.fresh:
            known.clear()
        known.update(batch.counts)
        one.answered(batch, told(), 1000.0)

    for step, source in steps:
        if step == "open":
            here[source] += 1
            one.counted(source, here[source])
        elif step == "close" and here[source]:
            here[source] -= 1
            one.counted(source, here[source])
        elif step == "told":
            talk()
        elif step == "lost":
            known.update(one.batch().counts)  # the Redis got the exchange, but its reply was lost
        elif step == "forgotten":
            known.clear()
            one.start_over()
    talk()
    assert +Counter(known) == +here
