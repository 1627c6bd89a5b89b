"""How the relay asks any backend: through a cache where there is one, and each question that reaches the backend is timed and observed.

`AskedKeys`, `AskedAccess` and `AskedRoutes` add the question itself, and what identifies it in the cache.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, Protocol, TypeVar

from relay.backends.cache import Cache
from relay.backends.watched import Tell, Watching
from relay.errors import Denied, Undecided
from relay.events import BackendQuestion, Observer


class Backend(Protocol):
    """What a keys, an access and a routes backend have in common."""

    source: str

    async def close(self) -> None: ...


A = TypeVar("A")  # the answer
B = TypeVar("B", bound=Backend)


class AskedBackend(Generic[B, A]):
    """One backend with its cache; a file backend has none, for it has all answers in memory."""

    question: BackendQuestion

    def __init__(self, backend: B, observer: Observer, cache: Cache[A] | None = None) -> None:
        self.source = backend.source
        self._backend = backend
        self._observer = observer
        self._cache = cache

    async def _ask(self, key: Hashable, look_up: Callable[[], Awaitable[A]]) -> A:
        """The cached answer to `key`, or that of `look_up`, which asks the backend; raises what `ask` raises."""

        def observed() -> Awaitable[A]:
            return ask(self._observer, self.question, self.source, look_up())

        return await (observed() if self._cache is None else self._cache.get(key, observed))

    def watch(self, tell: Tell) -> None:
        """Has a backend that reads files report the faults in them; does nothing with any other."""
        if isinstance(self._backend, Watching):
            self._backend.watch(tell)

    async def close(self) -> None:
        if self._cache is not None:
            await self._cache.close()
        await self._backend.close()


async def ask(observer: Observer, question: BackendQuestion, source: str, answer: Awaitable[A]) -> A:
    """The backend's answer. The observer is told once how long it took and how it ended.

    Raises Denied when the backend says no, Undecided when it could not answer, and whatever else `answer` raises.
    """
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
