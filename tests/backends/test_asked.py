"""One question to a backend: the observer hears of each, once, with how it went."""

from __future__ import annotations

import pytest

from relay.backends.asked import ask
from relay.errors import Denied, Undecided
from relay.events import BackendQuestion, Observer


class Heard(Observer):
    def __init__(self) -> None:
        self.answers: list[tuple[str, str, str]] = []
        self.seconds: list[float] = []

    def backend_asked(self, question: BackendQuestion, source: str, seconds: float, result: str) -> None:
        self.answers.append((question, source, result))
        self.seconds.append(seconds)


async def give(answer: str | Exception) -> str:
    if isinstance(answer, Exception):
        raise answer
    return answer


async def test_a_yes() -> None:
    heard = Heard()
    assert await ask(heard, "keys", "redis", give("alice")) == "alice"
    assert heard.answers == [("keys", "redis", "ok")]
    assert 0 <= heard.seconds[0] < 60


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (Denied("x"), "no"),
        (Undecided("x", "timeout"), "timeout"),
        (Undecided("x", "unreachable"), "unreachable"),
        (Undecided("x"), "failed"),
        (Undecided("x", "invalid"), "invalid"),
        (Undecided("x", "busy"), "busy"),
        (RuntimeError("x"), "error"),
    ],
)
async def test_every_other_end_is_told_apart(error: Exception, result: str) -> None:
    heard = Heard()
    with pytest.raises(type(error)) as caught:
        await ask(heard, "access", "http", give(error))
    assert caught.value is error
    assert heard.answers == [("access", "http", result)]
