"""wait_until returns the condition's value, and its error has the last value seen."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.wait import WaitTimeoutError, wait_until, wait_until_async


def test_returns_the_first_true_value() -> None:
    values = iter([0, None, 7, 8])
    assert wait_until(lambda: next(values)) == 7


def test_a_failed_assertion_is_not_yet() -> None:
    attempts: list[int] = []

    def condition() -> bool:
        attempts.append(1)
        assert len(attempts) == 3, "not three"
        return True

    assert wait_until(condition)


def test_the_last_value_is_in_the_message() -> None:
    with pytest.raises(WaitTimeoutError, match=r"the thing did not hold within 0\.05 s; last value: \[\]"):
        wait_until(list, timeout=0.05, message="the thing")


def test_the_last_failure_is_in_the_message() -> None:
    def condition() -> bool:
        raise AssertionError("five is not six")

    with pytest.raises(WaitTimeoutError, match="last failure: five is not six"):
        wait_until(condition, timeout=0.05)


def test_another_exception_is_passed_on_at_once() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: 1 // 0)


async def test_async_lets_the_loop_run() -> None:
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    assert await wait_until_async(event.is_set)


async def test_async_takes_coroutine_functions() -> None:
    values = iter([0, 5])

    async def condition() -> int:
        await asyncio.sleep(0)
        value = next(values)
        assert value, "nothing yet"
        return value

    assert await wait_until_async(condition) == 5


async def test_async_gives_up() -> None:
    async def condition() -> str:
        return ""

    with pytest.raises(WaitTimeoutError, match="last value: ''"):
        await wait_until_async(condition, timeout=0.05)
