"""Answers of a backend that are used again: for a time, once for many who ask at once, and past their time while it cannot answer.

A no takes the place of the yes before it, so that nothing denied is ever served as allowed; and it has a space of its own, so that
strangers with endless keys cannot push out the answers about those who work here.

An answer serves past its time only when the backend itself failed to answer about what it said yes to before. Neither the relay's own limit
(`busy`) nor a question about something that nobody has a yes for is a reason: strangers could make both happen as long as they like.
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

PAUSE_SECONDS = 1.0  # after a question that could not be answered, whoever has a stale answer gets it at once for so long
WAIT_SECONDS = 0.25  # and waits for the backend no longer than this until it answers again

A = TypeVar("A")

_log = logging.getLogger("relay.cache")


@dataclass(frozen=True, slots=True)
class Entry(Generic[A]):
    """A yes, or the text of a no; `since` is when the backend was asked, perhaps by another relay, `told` when this one was; monotonic."""

    answer: A | Denied
    since: float
    told: float


class Level(Protocol[A]):
    """Yes answers of several relays together, behind the cache of each. Raises nothing: what it does not know in time it does not know."""

    async def find(self, key: Hashable) -> tuple[A, float] | None:
        """What another was told, and how many seconds ago it asked."""
        ...

    def keep(self, key: Hashable, answer: A | None, age: float) -> None:
        """For the others, without waiting: what was asked for `age` seconds ago; None takes back what is there."""
        ...

    def listen(self, trust: Callable[[bool], None], forget: Callable[[str | None], None]) -> None:
        """Where to tell of changes, as a backend does."""
        ...


class Cache(Generic[A]):
    """The answers to one question of one backend. All methods in one loop's thread.

    `trusted` says whether the backend tells of changes by `forget`; False while it should and cannot: then every answer is asked
    for again, and what is here serves as stale at most.
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
        self._yes: OrderedDict[Hashable, Entry[A]] = OrderedDict()  # the longest unused first
        self._no: OrderedDict[Hashable, Entry[A]] = OrderedDict()
        self._asking: dict[Hashable, asyncio.Task[A | Denied | Undecided]] = {}
        self._tasks = Tasks()
        self._trusted_since = float("-inf")  # what was asked for earlier is asked for again
        self._down_since: float | None = None  # when the backend first could not answer, if it still cannot
        self._failed = float("-inf")  # when it last could not answer about what it had said yes to
        self._fails = False  # whether that was its last word about such

    def __len__(self) -> int:
        return len(self._yes) + len(self._no)

    def __repr__(self) -> str:
        state = "down" if self._down_since is not None else "up"
        return f"<cache {self._question} {self._source} {state} yes={len(self._yes)} no={len(self._no)} asking={len(self._asking)}>"

    async def get(self, key: Hashable, look_up: Callable[[], Awaitable[A]]) -> A:
        """The answer to what `key` stands for; `look_up` asks the backend, and is called once for all who ask at the same time.

        Raises Denied or Undecided as `look_up` did.
        """
        now = self._clock()
        if (answer := self._fresh(key, now)) is not None:
            self._observer.cache_asked(self._question, "negative" if isinstance(answer, Denied) else "hit")
            return _given(answer)
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
            told = await asyncio.shield(task)  # who leaves does not take the others' answer away
        failed = told is None or (isinstance(told, Undecided) and told.why != "busy")
        if failed and (stale := self._stale(key, self._clock())) is not None:
            self._observer.cache_asked(self._question, "stale")
            return stale
        return _given(await asyncio.shield(task) if told is None else told)

    def forget(self, matches: Callable[[Hashable], bool] | None = None) -> None:
        """What `matches` (everything, without it) is asked for anew; an answer that is under way may be older than this and is not kept."""
        stores: tuple[MutableMapping[Hashable, Any], ...] = (self._yes, self._no, self._asking)
        for store in stores:
            for key in [key for key in store if matches is None or matches(key)]:
                del store[key]

    def trust(self, trusted: bool) -> None:
        """Whether changes are told from now on; those before cannot be known."""
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
        """A yes that may serve when the backend cannot answer."""
        entry = self._yes.get(key)
        if entry is None or now - entry.since >= self._settings.stale_seconds or isinstance(entry.answer, Denied):
            return None
        self._yes.move_to_end(key)
        return entry.answer

    async def _ask(self, key: Hashable, look_up: Callable[[], Awaitable[A]], told: float) -> A | Denied | Undecided:
        """Errors that are answers are returned, for each who waits raises one of its own."""
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
            self._cannot(undecided, key in self._yes)
            return undecided
        finally:
            if current := self._asking.get(key) is task:
                del self._asking[key]
        if not known:
            self._can()
        if current:  # else it was forgotten meanwhile
            self._keep(key, Entry(answer, since, told))
            self._tell(key, answer, since, found is not None, known)
        return answer

    def _tell(self, key: Hashable, answer: A | Denied, since: float, there: bool, known: bool) -> None:
        """What the backend said; a no only where the others have a yes, or strangers with endless keys would make endless work."""
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

    def _cannot(self, error: Undecided, known: bool) -> None:
        if error.why == "busy":
            return  # it was not asked
        if known:
            self._failed, self._fails = self._clock(), True
        if self._down_since is None:
            self._down_since = self._clock()
            stale = self._settings.stale_seconds
            _log.warning("%s %s does not answer: %s; answers up to %g s old serve on", self._question, self._source, error, stale)

    def _can(self) -> None:
        self._fails = False
        if self._down_since is not None:
            _log.warning("%s %s answers again after %.1f s", self._question, self._source, self._clock() - self._down_since)
            self._down_since = None


def _given(answer: A | Denied | Undecided) -> A:
    """Each asker gets an exception of its own: one that is raised twice mixes up its tracebacks."""
    if isinstance(answer, Denied):
        raise Denied(str(answer))
    if isinstance(answer, Undecided):
        raise Undecided(str(answer), answer.why)
    return answer
