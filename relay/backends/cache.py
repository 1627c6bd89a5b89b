"""Caches a backend's answers. Tasks that ask the same at the same time share one question; a stale yes is used while the backend is down.

A no replaces the yes before it, so that nothing denied is ever served as allowed. Yes and no have separate space, so that strangers with
endless keys cannot evict the answers about known keys.

A stale yes is used only when the backend failed to answer a question to which it said yes before. Neither the relay's own limit (`busy`)
nor a failed question about something unknown is a reason: strangers could cause both as long as they like.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, MutableMapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from relay import config
from relay.backends.slots import STRANGER
from relay.errors import Denied, Undecided
from relay.events import BackendQuestion, Observer
from relay.tasks import Tasks

PAUSE_SECONDS = 1.0  # after a failed question a stale yes is used at once for this long
WAIT_SECONDS = 0.25  # after that, until the backend answers again, it is used when the backend takes longer than this

A = TypeVar("A")

_log = logging.getLogger("relay.cache")


@dataclass(frozen=True, slots=True)
class Entry(Generic[A]):
    """A yes, or a no with its text. `since` is when the backend was asked, perhaps by another relay, `told` when this relay asked."""

    answer: A | Denied
    since: float
    told: float


class Level(Protocol[A]):
    """A second level that several relays share; holds yes answers only. Never raises: a failure or a slow answer counts as unknown."""

    async def find(self, key: Hashable) -> tuple[A, float] | None:
        """The answer that another relay got, and how many seconds ago it asked."""
        ...

    def keep(self, key: Hashable, answer: A | None, age: float) -> None:
        """Stores an answer, asked for `age` seconds ago, without waiting; None deletes the stored one."""
        ...

    def listen(self, trust: Callable[[bool], None], forget: Callable[[str | None], None]) -> None:
        """Sets what to call when changes are published, as for a backend."""
        ...


class Cache(Generic[A]):
    """The cached answers of one backend. All methods run in one loop's thread.

    A backend that publishes changes calls `forget`. While it should and cannot (`trust(False)`), every answer is asked for again, and
    cached ones are used only as stale answers.
    """

    def __init__(
        self,
        question: BackendQuestion,
        source: str,
        settings: config.CacheSettings,
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
        level: Level[A] | None = None,
    ) -> None:
        self._question: BackendQuestion = question
        self._source = source
        self._settings = settings
        self._observer = observer
        self._clock = clock
        self._level = level
        self._yes: OrderedDict[Hashable, Entry[A]] = OrderedDict()  # least recently used first
        self._no: OrderedDict[Hashable, Entry[A]] = OrderedDict()
        self._asking: dict[Hashable, asyncio.Task[A | Denied | Undecided]] = {}
        self._tasks = Tasks()
        self._trusted_since = float("-inf")  # answers asked for before this are asked for again
        self._down_since: float | None = None  # when the backend failed first, while it is down
        self._failed = float("-inf")  # when it last failed a question to which it had said yes before
        self._fails = False  # whether it has failed the last such question

    def __len__(self) -> int:
        return len(self._yes) + len(self._no)

    def __repr__(self) -> str:
        state = "down" if self._down_since is not None else "up"
        return f"<cache {self._question} {self._source} {state} yes={len(self._yes)} no={len(self._no)} asking={len(self._asking)}>"

    async def get(self, key: Hashable, look_up: Callable[[], Awaitable[A]]) -> A:
        """The answer for `key`. `look_up` asks the backend; it is called once for all tasks that ask for the same key at the same time.

        Raises Denied or Undecided as `look_up` did.
        """
        now = self._clock()
        if (answer := self._fresh(key, now)) is not None:
            self._observer.cache_asked(self._question, "negative" if isinstance(answer, Denied) else "hit")
            return _raise_or_return(answer)
        down = self._fails
        if down and now - self._failed < PAUSE_SECONDS and (stale := self._stale(key, now)) is not None:
            self._observer.cache_asked(self._question, "stale")
            return stale
        task = self._asking.get(key)
        if task is not None or self._level is None:
            self._observer.cache_asked(self._question, "miss" if task is None else "joined")
        if task is None:
            task = self._tasks.start(self._ask(key, look_up, now), f"{self._question} {self._source} is asked")
            self._asking[key] = task
        if down and self._stale(key, now) is not None:
            await asyncio.wait((task,), timeout=WAIT_SECONDS)
            told = task.result() if task.done() else None
        else:
            told = await asyncio.shield(task)  # a cancelled task must not cancel the question that others wait for
        failed = told is None or (isinstance(told, Undecided) and told.why != "busy")
        if failed and (stale := self._stale(key, self._clock())) is not None:
            self._observer.cache_asked(self._question, "stale")
            return stale
        return _raise_or_return(await asyncio.shield(task) if told is None else told)

    def forget(self, matches: Callable[[Hashable], bool] | None = None) -> None:
        """Drops the answers that match, or all. A question that runs now may get an answer from before the change, which is not cached."""
        stores: tuple[MutableMapping[Hashable, Any], ...] = (self._yes, self._no, self._asking)
        for store in stores:
            for key in [key for key in store if matches is None or matches(key)]:
                del store[key]

    def trust(self, trusted: bool) -> None:
        """Whether changes are published from now on; changes before now may have been missed."""
        self._trusted_since = self._clock() if trusted else float("inf")

    async def close(self) -> None:
        await self._tasks.cancel()

    # -- what is known ---------------------------------------------------------------------------------------------------

    def _fresh(self, key: Hashable, now: float) -> A | Denied | None:
        for entries, seconds in ((self._yes, self._settings.ttl_seconds), (self._no, self._settings.negative_seconds)):
            if (entry := entries.get(key)) is not None and now - entry.since < seconds and entry.told >= self._trusted_since:
                entries.move_to_end(key)
                return entry.answer
        return None

    def _stale(self, key: Hashable, now: float) -> A | None:
        """A yes that may be used while the backend cannot answer."""
        entry = self._yes.get(key)
        if entry is None or now - entry.since >= self._settings.stale_seconds or isinstance(entry.answer, Denied):
            return None
        self._yes.move_to_end(key)
        return entry.answer

    async def _ask(self, key: Hashable, look_up: Callable[[], Awaitable[A]], told: float) -> A | Denied | Undecided:
        """The answer of the second level or the backend. Denied and Undecided are returned: each waiting task raises its own copy."""
        task = asyncio.current_task()
        since = told
        STRANGER.set(self._question == "keys" and key not in self._yes)
        try:
            found = await self._level.find(key) if self._level is not None else None
            if found is not None:
                STRANGER.set(False)
            known = found is not None and found[1] < self._settings.ttl_seconds and told >= self._trusted_since
            if self._level is not None:
                self._observer.cache_asked(self._question, "shared" if known else "miss")
            if found is not None and known:
                answer: A | Denied = found[0]
                since = told - found[1]
            else:
                answer = await look_up()
        except Denied as denied:
            answer = denied
        except Undecided as undecided:
            self._backend_failed(undecided, key in self._yes)
            return undecided
        finally:
            if current := self._asking.get(key) is task:
                del self._asking[key]
        if not known:
            self._backend_answered()
        if current:  # `forget` was not called meanwhile
            self._keep(key, Entry(answer, since, told))
            self._share(key, answer, since, found is not None, known)
        return answer

    def _share(self, key: Hashable, answer: A | Denied, since: float, there: bool, known: bool) -> None:
        """Stores the answer for other relays; a no only to delete a yes, or strangers with endless keys would cause endless writes."""
        if self._level is not None and not known and (there or not isinstance(answer, Denied)):
            self._level.keep(key, None if isinstance(answer, Denied) else answer, self._clock() - since)

    def _keep(self, key: Hashable, entry: Entry[A]) -> None:
        kept, other = (self._no, self._yes) if isinstance(entry.answer, Denied) else (self._yes, self._no)
        other.pop(key, None)
        kept[key] = entry
        kept.move_to_end(key)
        if len(kept) > self._settings.entries:
            kept.popitem(last=False)

    # -- up and down -----------------------------------------------------------------------------------------------------

    def _backend_failed(self, error: Undecided, known: bool) -> None:
        if error.why == "busy":
            return  # the backend was not asked
        if known:
            self._failed, self._fails = self._clock(), True
        if self._down_since is None:
            self._down_since = self._clock()
            stale = self._settings.stale_seconds
            _log.warning("%s %s does not answer: %s; cached answers up to %g s old are used", self._question, self._source, error, stale)

    def _backend_answered(self) -> None:
        self._fails = False
        if self._down_since is not None:
            _log.warning("%s %s answers again after %.1f s", self._question, self._source, self._clock() - self._down_since)
            self._down_since = None


def _raise_or_return(answer: A | Denied | Undecided) -> A:
    """Each task raises a new exception: one that is raised twice mixes up the tracebacks."""
    if isinstance(answer, Denied):
        raise Denied(str(answer), message=answer.message)
    if isinstance(answer, Undecided):
        raise Undecided(str(answer), answer.why)
    return answer
