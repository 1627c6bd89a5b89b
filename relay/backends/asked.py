"""One question that reaches a backend: timed, and told to the observer with how it went."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import TypeVar

from relay.errors import Denied, Undecided
from relay.events import BackendQuestion, Observer

A = TypeVar("A")


async def ask(observer: Observer, question: BackendQuestion, source: str, answer: Awaitable[A]) -> A:
    """The backend's answer; raises Denied for its no, Undecided when it could not answer, and whatever else it raises."""
    started, result = time.monotonic(), "error"
    try:
        value = await answer
        result = "ok"
        return value
    except Denied:
        result = "no"
        raise
    except Undecided as error:
        result = error.why
        raise
    finally:
        observer.backend_asked(question, source, time.monotonic() - started, result)
