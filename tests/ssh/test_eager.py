"""Coroutines that are stepped inline until they wait."""

from __future__ import annotations

import asyncio

import pytest

from relay.ssh.eager import begin


async def test_a_coroutine_that_never_blocks_ends_at_once() -> None:
    done = []

    async def work() -> None:
        done.append(True)

    assert begin(work()) is None
    assert done


async def test_a_coroutine_that_blocks_continues_when_awaited() -> None:
    first: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def work() -> int:
        one = await first
        await asyncio.sleep(0)
        return one + 1

    waiting = begin(work())
    assert waiting is not None
    task = asyncio.ensure_future(waiting)
    first.set_result(1)
    assert await task == 2


async def test_a_failure_or_cancellation_reaches_the_coroutine() -> None:
    for fail in (True, False):
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        met: list[BaseException] = []

        async def work(first: asyncio.Future[None] = first, met: list[BaseException] = met) -> str:
            try:
                await first
            except (OSError, asyncio.CancelledError) as error:
                met.append(error)
            return "ended"

        waiting = begin(work())
        assert waiting is not None
        task = asyncio.ensure_future(waiting)
        await asyncio.sleep(0)
        if fail:
            first.set_exception(OSError("gone"))
        else:
            task.cancel()
        assert await task == "ended"
        assert isinstance(met[0], OSError if fail else asyncio.CancelledError)


async def test_an_exception_before_the_first_await_is_raised() -> None:
    async def work() -> None:
        raise ValueError("at once")

    with pytest.raises(ValueError, match="at once"):
        begin(work())
