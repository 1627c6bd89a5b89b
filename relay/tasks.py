"""Background tasks: kept until they end, with failures logged, and cancelled or awaited together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger("relay.tasks")


class Tasks:
    """Keeps each task until it ends, as the event loop has only weak references, and logs the exception of one that failed.

    All tasks are of one loop. It is asked for once: Python 3.11 calls getpid each time.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._running)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that ran when it was first asked for. Raises RuntimeError when none runs."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = self.loop.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task %s failed", task.get_name(), exc_info=error)

    async def finish(self) -> None:
        """Waits until all tasks have ended."""
        while self._running:
            await asyncio.wait(list(self._running))

    async def cancel(self) -> None:
        """Cancels all tasks and waits until they have ended."""
        for task in list(self._running):
            task.cancel()
        await self.finish()
