"""The cache: times, one question for concurrent callers, bounds, stale answers, and that a no is never served as a yes."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import config
from relay.backends import cache
from relay.backends.cache import PAUSE_SECONDS, Cache
from relay.errors import Denied, Undecided, Why
from relay.events import BackendQuestion, Observer
from tests.support.wait import wait_until_async

YES, NO, DOWN = "yes", Denied("no"), Undecided("gone", "unreachable")


class Heard(Observer):
    def __init__(self) -> None:
        self.results: list[str] = []

    def cache_asked(self, question: BackendQuestion, result: str) -> None:
        assert question == "keys"
        self.results.append(result)


class Bench:
    """A cache, a clock that a test moves, and a backend whose answer a test sets."""

    def __init__(self, **settings: float) -> None:
        self.now = 1000.0
        self.heard = Heard()
        self.cache: Cache[str] = Cache("keys", "redis", config.CacheSettings(**settings), self.heard, lambda: self.now)  # type: ignore[arg-type]
        self.answer: str | Exception = YES
        self.asked: Counter[object] = Counter()
        self.gate = asyncio.Event()
        self.gate.set()

    def look_up(self, key: object) -> Callable[[], Awaitable[str]]:
        async def look() -> str:
            self.asked[key] += 1
            answer = self.answer  # the answer when the backend is asked, however late it arrives
            await self.gate.wait()
            if isinstance(answer, Exception):
                raise answer
            return answer

        return look

    async def get(self, key: str = "k") -> str:
        try:
            return await self.cache.get(key, self.look_up(key))
        except Denied:
            return "no"
        except Undecided as error:
            assert error.why == "unreachable"
            return "undecided"


async def test_a_yes_is_used_again_for_ttl_seconds() -> None:
    bench = Bench(ttl_seconds=60)
    assert [await bench.get(), await bench.get()] == ["yes", "yes"]
    bench.now += 59.9
    assert await bench.get() == "yes"
    assert bench.asked["k"] == 1
    bench.now += 0.1
    bench.answer = "another"
    assert await bench.get() == "another"
    assert bench.heard.results == ["miss", "hit", "hit", "miss"]


async def test_a_no_is_used_again_for_negative_seconds() -> None:
    bench = Bench(ttl_seconds=60, negative_seconds=5)
    bench.answer = NO
    assert [await bench.get(), await bench.get()] == ["no", "no"]
    bench.now += 5
    bench.answer = YES
    assert await bench.get() == "yes"
    assert bench.heard.results == ["miss", "negative", "miss"]


async def test_a_cached_no_has_the_text_that_the_client_reads() -> None:
    bench = Bench(negative_seconds=5)
    bench.answer = Denied("no", message="relay: access was refused: sign first")
    said = []
    for _ in range(2):
        with pytest.raises(Denied) as caught:
            await bench.cache.get("k", bench.look_up("k"))
        said.append((caught.value.message, str(caught.value)))
    assert said == [("relay: access was refused: sign first", "no")] * 2 and bench.asked["k"] == 1


async def test_zero_turns_each_off() -> None:
    bench = Bench(ttl_seconds=0, negative_seconds=0, stale_seconds=0)
    for answer, told in ((YES, "yes"), (NO, "no"), (YES, "yes"), (DOWN, "undecided")):
        bench.answer = answer
        assert await bench.get() == told
        assert await bench.get() == told
    assert bench.asked["k"] == 8
    assert set(bench.heard.results) == {"miss"}


@pytest.mark.parametrize(("answer", "told"), [(YES, "yes"), (NO, "no"), (DOWN, "undecided")])
async def test_a_thousand_tasks_that_ask_at_once_cause_one_look_up(answer: str | Exception, told: str) -> None:
    bench = Bench()
    bench.answer = answer
    bench.gate.clear()
    everyone = [asyncio.get_running_loop().create_task(bench.get()) for _ in range(1000)]
    await wait_until_async(lambda: len(bench.heard.results) == 1000)
    bench.gate.set()
    assert await asyncio.gather(*everyone) == [told] * 1000
    assert bench.asked["k"] == 1
    assert Counter(bench.heard.results) == {"miss": 1, "joined": 999}


async def test_a_cancelled_task_does_not_cancel_the_others_question() -> None:
    bench = Bench()
    bench.gate.clear()
    first = asyncio.get_running_loop().create_task(bench.get())
    await wait_until_async(lambda: bench.asked["k"])
    second = asyncio.get_running_loop().create_task(bench.get())
    await wait_until_async(lambda: bench.heard.results == ["miss", "joined"])
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    bench.gate.set()
    assert await second == "yes"
    assert bench.asked["k"] == 1


async def test_an_unexpected_error_reaches_all_waiting_tasks_and_is_not_cached(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.answer = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        await bench.get()
    bench.answer = YES
    assert await bench.get() == "yes"


async def test_the_cache_is_bounded_and_drops_the_least_recently_used_first() -> None:
    bench = Bench(entries=3)
    for key in ("a", "b", "c", "a", "d"):
        await bench.get(key)
    assert len(bench.cache) == 3
    for key in ("a", "c", "d"):
        await bench.get(key)
    assert bench.asked == {"a": 1, "b": 1, "c": 1, "d": 1}
    await bench.get("b")
    assert bench.asked["b"] == 2


async def test_strangers_evict_no_known_key() -> None:
    bench = Bench(entries=3)
    await bench.get("alice")
    bench.answer = NO
    for number in range(100):
        await bench.get(f"stranger {number}")
    assert len(bench.cache) == 4
    assert await bench.get("alice") == "yes"
    assert bench.asked["alice"] == 1


async def test_while_the_backend_is_down_stale_answers_are_used_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    bench = Bench(ttl_seconds=60, stale_seconds=600)
    await bench.get("alice")
    bench.answer = DOWN
    bench.now += 60
    assert await bench.get("alice") == "yes"
    assert bench.heard.results == ["miss", "miss", "stale"]
    asked = bench.asked["alice"]
    bench.now += PAUSE_SECONDS / 2
    assert await bench.get("alice") == "yes"  # without a question: the backend failed a moment ago
    assert bench.asked["alice"] == asked
    bench.now += PAUSE_SECONDS / 2
    assert await bench.get("alice") == "yes"
    assert bench.asked["alice"] == asked + 1
    assert await bench.get("stranger") == "undecided"
    bench.now += 600 - 60 - PAUSE_SECONDS
    assert await bench.get("alice") == "undecided"  # too old
    assert [record.message for record in caplog.records] == ["keys redis does not answer: gone; cached answers up to 600 s old are used"]
    bench.answer = YES
    assert await bench.get("alice") == "yes"
    assert caplog.messages[1:] == ["keys redis answers again after 540.0 s"]
    assert "up" in repr(bench.cache)


async def test_a_hanging_backend_delays_a_stale_answer_only_once() -> None:
    bench = Bench(ttl_seconds=60)
    await bench.get()
    bench.now += 61
    bench.answer = DOWN
    assert await bench.get() == "yes"
    bench.now += PAUSE_SECONDS
    bench.gate.clear()
    assert await bench.get() == "yes"  # while the question still runs
    assert bench.heard.results[-2:] == ["miss", "stale"]
    bench.gate.set()
    await bench.cache.close()


async def test_a_no_is_never_overruled_by_an_older_yes() -> None:
    bench = Bench(ttl_seconds=60, negative_seconds=5, stale_seconds=3600)
    await bench.get()
    bench.now += 60
    bench.answer = NO
    assert await bench.get() == "no"
    bench.answer = DOWN
    for _ in range(20):
        bench.now += 1
        assert await bench.get() in ("no", "undecided")


async def test_the_relay_s_own_limit_is_no_reason_for_an_old_answer() -> None:
    bench = Bench(ttl_seconds=60, stale_seconds=3600)
    await bench.get()
    bench.now += 60
    bench.answer = Undecided("8 programs are running", "busy")
    for _ in range(3):
        with pytest.raises(Undecided) as caught:
            await bench.cache.get("k", bench.look_up("k"))
        assert caught.value.why == "busy"
    bench.answer = NO
    assert await bench.get() == "no"
    assert bench.heard.results == ["miss"] * 5, "and nobody was kept from asking meanwhile"


@pytest.mark.parametrize("why", get_args(Why))
async def test_failed_questions_about_unknown_keys_cause_no_stale_answers(why: Why) -> None:
    bench = Bench(ttl_seconds=60, stale_seconds=3600)
    await bench.get()
    bench.now += 60
    bench.answer = Undecided("a key that the program chokes on", why)
    with pytest.raises(Undecided):
        await bench.cache.get("stranger", bench.look_up("stranger"))
    bench.answer = NO
    bench.gate.clear()  # the backend takes longer than WAIT_SECONDS
    slow = asyncio.ensure_future(bench.get())
    await asyncio.sleep(cache.WAIT_SECONDS * 1.5)
    assert not slow.done()
    bench.gate.set()
    assert await slow == "no"


async def test_a_forgotten_answer_is_asked_for_again() -> None:
    bench = Bench()
    for key in ("a", "b"):
        await bench.get(key)
    bench.cache.forget(lambda key: key == "a")
    bench.answer = NO
    assert [await bench.get("a"), await bench.get("b")] == ["no", "yes"]
    bench.cache.forget()
    assert [await bench.get("a"), await bench.get("b")] == ["no", "no"]
    assert bench.asked == {"a": 3, "b": 2}


async def test_a_forgotten_answer_is_not_used_as_stale() -> None:
    bench = Bench()
    await bench.get()
    bench.cache.forget()
    bench.answer = DOWN
    assert await bench.get() == "undecided"


async def test_an_answer_from_before_forget_is_not_cached() -> None:
    bench = Bench()
    bench.gate.clear()
    early = asyncio.get_running_loop().create_task(bench.get())
    await wait_until_async(lambda: bench.asked["k"])
    bench.cache.forget()
    bench.answer = NO
    late = asyncio.get_running_loop().create_task(bench.get())
    await wait_until_async(lambda: bench.asked["k"] == 2)
    bench.gate.set()
    assert [await early, await late, await bench.get()] == ["yes", "no", "no"]
    assert bench.asked["k"] == 2


async def test_an_answer_during_forget_goes_only_to_the_tasks_that_asked() -> None:
    bench = Bench(ttl_seconds=3600, stale_seconds=3600)
    bench.gate.clear()
    early = asyncio.get_running_loop().create_task(bench.get())
    await wait_until_async(lambda: bench.asked["k"])
    bench.cache.forget(lambda key: key == "k")  # revoked while the question, whose answer is yes, runs
    bench.gate.set()
    assert await early == "yes"
    bench.answer = NO
    assert await bench.get() == "no"
    bench.answer = DOWN
    bench.now += 60
    assert await bench.get() == "undecided"


async def test_without_a_subscription_every_answer_is_asked_for_and_cached_ones_are_only_stale() -> None:
    bench = Bench(ttl_seconds=60)
    await bench.get()
    bench.cache.trust(False)
    await bench.get()
    assert bench.asked["k"] == 2
    bench.answer = DOWN
    assert await bench.get() == "yes"
    assert bench.heard.results[-1] == "stale"
    bench.now += PAUSE_SECONDS
    bench.answer = YES
    bench.cache.trust(True)
    await bench.get()
    await bench.get()
    assert bench.heard.results[-2:] == ["miss", "hit"]


_event = st.tuples(st.sampled_from(["alice", "bob"]), st.sampled_from(["yes", "no", "down", "forget"]), st.floats(0, 40))


@given(st.lists(_event, max_size=40))
def test_the_cache_never_allows_what_the_backend_last_denied(events: list[tuple[str, str, float]]) -> None:
    async def run() -> None:
        bench = Bench(ttl_seconds=20, negative_seconds=5, stale_seconds=60)
        last: dict[str, tuple[str, float]] = {}  # the backend's last answer, and its time
        for key, event, seconds in events:
            bench.now += seconds
            if event == "forget":
                bench.cache.forget(lambda one, key=key: one == key)  # type: ignore[misc]
                continue
            answers: dict[str, str | Exception] = {"yes": YES, "no": NO, "down": DOWN}
            bench.answer = answers[event]
            before = bench.asked[key]
            told = await bench.get(key)
            if bench.asked[key] > before and event != "down":
                last[key] = (event, bench.now)
                assert told == event
            elif told == "yes":
                word, since = last[key]
                assert word == "yes"
                assert bench.now - since < 60
            elif told == "no":
                assert last[key][0] == "no" and bench.now - last[key][1] < 5
        await bench.cache.close()

    asyncio.run(run())
