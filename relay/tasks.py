"""A set of tasks that is kept, whose failures are logged, and that can be seen to end; and coroutines that need no task to begin."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger("relay.tasks")


class Tasks:
    """The loop keeps only a weak reference to a task; this keeps it until it ends and logs what it raised."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task %s failed", task.get_name(), exc_info=error)

    async def finish(self) -> None:
        """Waits until all have ended."""
        while self._running:
            await asyncio.wait(list(self._running))

    async def cancel(self) -> None:
        """Cancels all and waits until they have ended."""
        for task in list(self._running):
            task.cancel()
        await self.finish()
