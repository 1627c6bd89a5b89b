"""Threads for work that waits for the disk, so that the event loop does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Generic, NamedTuple, TypeVar

THREADS: Final = 4  # for each worker: they wait for one disk

T = TypeVar("T")


class Closed(Exception):
    """The worker stops, so the work was not begun."""

    def __init__(self) -> None:
        super().__init__("the relay stops")


class Outcome(NamedTuple, Generic[T]):
    """What came of some work: its value, or why there is none."""

    value: T | None = None
    error: Exception | None = None

    @property
    def why(self) -> str:
        """The error for people, without its number."""
        return getattr(self.error, "strerror", None) or str(self.error)


class Disk:
    """Runs functions in threads, and tells the loop what came of them."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "packs")
        self._closed = False

    def run(self, work: Callable[[], T], done: Callable[[Outcome[T]], None]) -> None:
        """`done` is called in the loop, once; after `close` with the error Closed."""
        loop = asyncio.get_running_loop()
        if self._closed:
            loop.call_soon(done, Outcome(error=Closed()))
            return

        def ended(future: asyncio.Future[Outcome[T]]) -> None:
            done(Outcome(error=Closed()) if future.cancelled() else future.result())

        loop.run_in_executor(self._threads, _outcome, work).add_done_callback(ended)

    def close(self) -> None:
        """Waits until what runs has ended; what has not begun is not run."""
        self._closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)


def _outcome(work: Callable[[], T]) -> Outcome[T]:
    try:
        return Outcome(work())
    except Exception as error:  # noqa: BLE001 - `done` gets it; a future's exception would be lost with a loop that is closed meanwhile
        return Outcome(error=error)
