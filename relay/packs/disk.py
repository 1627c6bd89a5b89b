"""Threads for work that waits for the disk, so that the event loop does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

THREADS: Final = 4  # for each worker: they wait for one disk

T = TypeVar("T")


class Disk:
    """Runs functions in threads, and tells the loop what came of them."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "packs")
        self._closed = False

    def run(self, work: Callable[[], T], done: Callable[[asyncio.Future[T]], None]) -> None:
        """`done` is called in the loop, once, with a future that has the result or exception of `work`, or is cancelled after `close`."""
        loop = asyncio.get_running_loop()
        if self._closed:
            future = loop.create_future()
            future.cancel()
        else:
            future = loop.run_in_executor(self._threads, work)
        future.add_done_callback(done)

    def close(self) -> None:
        """Waits until what runs has ended; what has not begun is not run, and its `done` gets a cancelled future."""
        self._closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
