"""Slots limit how many questions a backend is asked at once.

Anybody can make up keys that the relay has never seen. Questions about unknown keys share a quarter of the slots. The others remain for
keys that the backend said yes to before, so that the relay always finds out whether such a key was revoked.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

from relay.errors import Undecided

STRANGERS_SHARE = 4  # one slot in four is for unknown keys, and at least one

# Whether this task asks about a key for which the relay has no yes. Set by the cache; False without a cache.
STRANGER: ContextVar[bool] = ContextVar("stranger", default=False)


class Slots:
    """`total` slots. Tasks that wait are served in order, those that ask for strangers last. All methods run in one loop's thread."""

    def __init__(self, name: str, total: int, timeout_seconds: float, what: str) -> None:
        """`name` and `what` make the text of the error: "keys exec: 8 programs are running"."""
        self._free = total
        self._strangers = max(1, total // STRANGERS_SHARE)  # slots that are still free for strangers
        # with one slot in all, a stranger may hold it for `timeout_seconds` before the others get it
        self._timeouts = {True: timeout_seconds, False: timeout_seconds * (2 if total == 1 else 1)}
        self._text = f"{name}: {total} {what}"
        self._waiting: dict[bool, deque[asyncio.Future[None]]] = {False: deque(), True: deque()}

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Holds one slot; raises Undecided ("busy") when none becomes free in time."""
        stranger = STRANGER.get()
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[stranger].append(ready)
        self._serve()
        try:
            async with asyncio.timeout(self._timeouts[stranger]):
                await asyncio.shield(ready)
        except BaseException as error:  # also CancelledError: the slot must be given back
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
