"""The base of backends: the cache, one observation for each question that reaches the backend, and close."""

from __future__ import annotations

import pytest

from relay import config
from relay.backends.asked import AskedBackend, ask
from relay.backends.cache import Cache
from relay.backends.watched import Tell
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
async def test_every_other_result_is_observed(error: Exception, result: str) -> None:
    heard = Heard()
    with pytest.raises(type(error)) as caught:
        await ask(heard, "access", "http", give(error))
    assert caught.value is error
    assert heard.answers == [("access", "http", result)]


class Plain:
    """A backend that reads no files."""

    source = "http"

    def __init__(self) -> None:
        self.asked = 0
        self.closed = 0

    async def answer(self) -> str:
        self.asked += 1
        return "alice"

    async def close(self) -> None:
        self.closed += 1


class ReadingFiles(Plain):
    source = "file"
    tell: Tell | None = None

    def watch(self, tell: Tell) -> None:
        self.tell = tell


class AskedTest(AskedBackend[Plain, str]):
    question = "keys"

    async def answer(self, key: str) -> str:
        return await self._ask(key, self._backend.answer)


async def test_without_a_cache_every_question_reaches_the_backend() -> None:
    heard, backend = Heard(), Plain()
    asked = AskedTest(backend, heard)
    assert [await asked.answer("one") for _ in range(3)] == ["alice"] * 3
    assert backend.asked == 3
    assert heard.answers == [("keys", "http", "ok")] * 3
    await asked.close()
    assert backend.closed == 1


async def test_with_a_cache_only_the_first_question_reaches_the_backend_and_the_observer() -> None:
    heard, backend = Heard(), Plain()
    cache: Cache[str] = Cache("keys", "http", config.CacheSettings(), heard)
    asked = AskedTest(backend, heard, cache)
    assert [await asked.answer(key) for key in ("one", "one", "other", "one")] == ["alice"] * 4
    assert backend.asked == 2
    assert heard.answers == [("keys", "http", "ok")] * 2
    await asked.close()
    assert backend.closed == 1


def test_watch_reaches_only_a_backend_that_reads_files() -> None:
    def tell(what: str, problems: list[str]) -> None:
        raise AssertionError

    files = ReadingFiles()
    AskedTest(files, Heard()).watch(tell)
    assert files.tell is tell
    AskedTest(Plain(), Heard()).watch(tell)  # `Plain` has no `watch`, and needs none
