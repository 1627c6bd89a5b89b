"""Threads for work that waits for the disk."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from relay.packs.disk import Disk
from tests.packs.helpers import until


async def test_work_runs_in_a_thread_and_its_result_comes_in_the_loop() -> None:
    disk, results, here = Disk(), [], threading.get_ident()

    def done(result: asyncio.Future[int]) -> None:
        results.append((result.result() != here, threading.get_ident() == here))

    disk.run(threading.get_ident, done)
    await until(lambda: results)
    assert results == [(True, True)]
    disk.close()


async def test_an_exception_is_the_results() -> None:
    disk = Disk()
    results: list[asyncio.Future[None]] = []

    def work() -> None:
        raise OSError(28, "No space left on device")

    disk.run(work, results.append)
    await until(lambda: results)
    assert str(results[0].exception()) == "[Errno 28] No space left on device"
    disk.close()


async def test_a_close_waits_for_what_runs_and_cancels_what_has_not_begun() -> None:
    disk = Disk()
    results: list[asyncio.Future[Any]] = []
    begun, go = threading.Barrier(5), threading.Event()

    def work() -> bool:
        begun.wait(60)
        return go.wait(60)

    for _ in range(4):
        disk.run(work, results.append)
    disk.run(lambda: None, results.append)
    begun.wait(60)
    go.set()
    disk.close()
    disk.run(lambda: None, results.append)
    await until(lambda: len(results) == 6)
    assert sorted(one.cancelled() for one in results) == [False] * 4 + [True] * 2
