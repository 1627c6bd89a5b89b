"""Slots: how many questions a backend is asked at once, and who may take how many of them.

Anybody can make up keys that the relay has never seen. Questions about those share a quarter of the slots, so that the others are there for
keys that the backend said yes to before: whether such a key was revoked is always found out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

from relay.errors import Undecided

STRANGERS_SHARE = 4  # one slot in so many, and at least one

# Whether this task asks about a key that the relay knows no yes of. The cache sets it; who asks without one is no stranger.
STRANGER: ContextVar[bool] = ContextVar("stranger", default=False)


class Slots:
    """`total` at once; those who wait are served in order, strangers after all others. All methods in one loop's thread."""

    def __init__(self, name: str, total: int, timeout_seconds: float, what: str) -> None:
        """`name` and `what` are for the text of the error, as in "keys exec: 8 programs are running"."""
        self._free = total
        self._strangers = max(1, total // STRANGERS_SHARE)  # how many more of them may be asked at once
        # a stranger that holds the only slot holds it for `timeout_seconds` at most
        self._timeouts = {True: timeout_seconds, False: timeout_seconds * (2 if total == 1 else 1)}
        self._text = f"{name}: {total} {what}"
        self._waiting: dict[bool, deque[asyncio.Future[None]]] = {False: deque(), True: deque()}

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """One slot; raises Undecided ("busy") when none is free in time."""
        stranger = STRANGER.get()
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[stranger].append(ready)
        self._serve()
        try:
            async with asyncio.timeout(self._timeouts[stranger]):
                await asyncio.shield(ready)
        except BaseException as error:  # a cancellation too: a slot must not be lost
            if ready.done():
                self._give_back(stranger)
            else:
                self._waiting[stranger].remove(ready)
            if isinstance(error, TimeoutError):
                raise Undecided(self._text, "busy") from None
            raise
        try:
            yield
        finally:
            self._give_back(stranger)

    def _give_back(self, stranger: bool) -> None:
        self._free += 1
        self._strangers += stranger
        self._serve()

    def _serve(self) -> None:
        for stranger in (False, True):
            waiting = self._waiting[stranger]
            while waiting and self._free and (self._strangers or not stranger):
                self._free -= 1
                self._strangers -= stranger
                waiting.popleft().set_result(None)
