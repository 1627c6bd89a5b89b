"""Waits for a condition with a deadline, so that no test sleeps for a guessed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

DEFAULT_TIMEOUT = 60.0  # seconds; generous, for busy machines, because it is only ever used up by a failure
POLL_SECONDS = 0.01  # at least; else as long as the condition took, so that polling uses at most half of a processor


class WaitTimeoutError(AssertionError):
    """The condition did not hold within its deadline; the text shows the last value seen."""


def wait_until(condition: Callable[[], T | None], timeout: float = DEFAULT_TIMEOUT, message: str = "") -> T:
    """Call `condition` until its value is true and return that value; blocks the thread.

    An `AssertionError` from the condition counts as not yet. Raises WaitTimeoutError after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        asked = time.monotonic()
        value, failure = _attempt(condition)
        if failure is None and value:
            return value
        if time.monotonic() >= deadline:
            raise WaitTimeoutError(_text(condition, timeout, message, value, failure))
        time.sleep(max(POLL_SECONDS, time.monotonic() - asked))


@overload
async def wait_until_async(condition: Callable[[], Awaitable[T | None]], timeout: float = ..., message: str = ...) -> T: ...
@overload
async def wait_until_async(condition: Callable[[], T | None], timeout: float = ..., message: str = ...) -> T: ...
async def wait_until_async(condition: Callable[[], Any], timeout: float = DEFAULT_TIMEOUT, message: str = "") -> Any:
    """As `wait_until`, letting the loop run in between; the condition may be a function or a coroutine function."""
    deadline = time.monotonic() + timeout
    while True:
        asked = time.monotonic()
        outcome, failure = _attempt(condition)
        if inspect.isawaitable(outcome):
            try:
                value = await outcome
            except AssertionError as not_yet:
                value, failure = None, not_yet
        else:
            value = outcome
        if failure is None and value:
            return value
        if time.monotonic() >= deadline:
            raise WaitTimeoutError(_text(condition, timeout, message, value, failure))
        await asyncio.sleep(max(POLL_SECONDS, time.monotonic() - asked))


def _attempt(condition: Callable[[], T]) -> tuple[T | None, AssertionError | None]:
    try:
        return condition(), None
    except AssertionError as not_yet:
        return None, not_yet


def _text(condition: object, timeout: float, message: str, value: object, failure: AssertionError | None) -> str:
    seen = f"last failure: {failure}" if failure is not None else f"last value: {value!r}"
    return f"{message or repr(condition)} did not hold within {timeout:g} s; {seen}"
