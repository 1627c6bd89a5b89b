"""Slots: their number, their order, and that questions about strangers never take all of them."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.backends.slots import STRANGER, STRANGERS_SHARE, Slots
from relay.errors import Undecided
from tests.support.wait import wait_until_async


class Bench:
    """Questions that run until the test ends them; counts those that run."""

    def __init__(self, total: int, timeout_seconds: float = 30) -> None:
        self.slots = Slots("keys exec", total, timeout_seconds, "programs are running")
        self.asked = {True: 0, False: 0}
        self.over = asyncio.Event()

    async def ask(self, stranger: bool) -> bool:
        STRANGER.set(stranger)
        async with self.slots.taken():
            self.asked[stranger] += 1
            try:
                await self.over.wait()
            finally:
                self.asked[stranger] -= 1
        return stranger

    def start(self, count: int, stranger: bool) -> list[asyncio.Task[bool]]:
        return [asyncio.get_running_loop().create_task(self.ask(stranger)) for _ in range(count)]


@pytest.mark.parametrize(("total", "share"), [(1, 1), (2, 1), (4, 1), (8, 2), (16, 4), (100, 25)])
async def test_strangers_have_a_quarter_and_others_the_rest(total: int, share: int) -> None:
    bench = Bench(total)
    strangers = bench.start(98, stranger=True)
    await wait_until_async(lambda: bench.asked[True] == share)
    others = bench.start(98, stranger=False)
    if total > 1:
        await wait_until_async(lambda: bench.asked[False] == total - share)
    await asyncio.sleep(0)
    assert bench.asked == {True: share, False: total - share}
    bench.over.set()
    await asyncio.gather(*strangers, *others)


async def test_questions_about_known_keys_are_served_first() -> None:
    bench = Bench(1)
    first, *rest = bench.start(3, stranger=True)
    await wait_until_async(lambda: bench.asked[True] == 1)
    (known,) = bench.start(1, stranger=False)
    await asyncio.sleep(0)
    first.cancel()
    await wait_until_async(lambda: bench.asked[False] == 1)
    bench.over.set()
    await asyncio.gather(known, *rest)


async def test_a_question_that_waits_too_long_is_busy_and_loses_no_slot() -> None:
    bench = Bench(1, timeout_seconds=0.05)
    asked = bench.start(1, stranger=False)
    await wait_until_async(lambda: bench.asked[False] == 1)
    for _ in range(3):
        with pytest.raises(Undecided, match="keys exec: 1 programs are running") as caught:
            await bench.ask(True)
        assert caught.value.why == "busy"
    bench.over.set()
    await asyncio.gather(*asked)
    assert await bench.ask(True) and not await bench.ask(False)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=40), st.integers(1, 9))
def test_no_cancellation_loses_a_slot(steps: list[tuple[bool, int]], total: int) -> None:
    async def play() -> None:
        bench = Bench(total)
        tasks: list[asyncio.Task[bool]] = []
        for stranger, leaves in steps:
            tasks += bench.start(1, stranger)
            if leaves < len(tasks):
                tasks[leaves].cancel()
            if leaves % 2:
                await asyncio.sleep(0)
        bench.over.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (bench.slots._free, bench.slots._strangers) == (total, max(1, total // STRANGERS_SHARE))
        assert bench.slots._waiting == {False: deque(), True: deque()}

    asyncio.run(play())
