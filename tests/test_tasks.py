"""A set of tasks: referenced while they run, awaited at the end, and logged when they fail."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from relay.tasks import Tasks


async def test_a_task_that_nobody_else_holds_is_kept_until_it_ends() -> None:
    tasks, go, ended = Tasks(), asyncio.Event(), list[str]()

    async def work() -> None:
        await go.wait()
        ended.append("work")

    tasks.start(work(), "work")
    await asyncio.sleep(0)
    gc.collect()
    assert len(tasks) == 1
    go.set()
    await tasks.finish()
    assert (ended, len(tasks)) == (["work"], 0)


async def test_a_failure_is_logged_with_the_tasks_name_and_does_not_hold_up_the_others(caplog: pytest.LogCaptureFixture) -> None:
    tasks, ended = Tasks(), list[str]()

    async def fail() -> None:
        raise ValueError("said by the task")

    async def work() -> None:
        await asyncio.sleep(0)
        ended.append("work")

    tasks.start(fail(), "the failing one")
    tasks.start(work(), "work")
    with caplog.at_level(logging.ERROR, "relay.tasks"):
        await tasks.finish()
    assert ended == ["work"]
    assert [record.getMessage() for record in caplog.records] == ["task the failing one failed"]
    assert "said by the task" in caplog.text


async def test_cancel_waits_for_the_end_of_what_it_cancels(caplog: pytest.LogCaptureFixture) -> None:
    tasks, ended = Tasks(), list[int]()

    async def work(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(number)

    for number in range(3):
        tasks.start(work(number), "work")
    await asyncio.sleep(0)
    await tasks.cancel()
    assert (sorted(ended), len(tasks)) == ([0, 1, 2], 0)
    assert not caplog.records  # a cancelled task has not failed


async def test_finish_waits_for_tasks_that_tasks_start() -> None:
    tasks, ended = Tasks(), list[str]()

    async def second() -> None:
        for _ in range(10):  # several turns after the first has ended
            await asyncio.sleep(0)
        ended.append("second")

    async def first() -> None:
        tasks.start(second(), "second")

    tasks.start(first(), "first")
    await tasks.finish()
    assert ended == ["second"]


# -- coroutines that need no task to begin -------------------------------------------------------------------------------
