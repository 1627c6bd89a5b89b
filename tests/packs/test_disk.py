"""Threads for work that waits for the disk."""

from __future__ import annotations

import threading
from typing import Any

from relay.packs.disk import Closed, Disk, Outcome
from tests.packs.helpers import until


async def test_work_runs_in_a_thread_and_its_result_comes_in_the_loop() -> None:
    disk, results, here = Disk(), [], threading.get_ident()

    def done(result: Outcome[int]) -> None:
        results.append((result.value != here, threading.get_ident() == here))

    disk.run(threading.get_ident, done)
    await until(lambda: results)
    assert results == [(True, True)]
    disk.close()


async def test_an_exception_is_the_results() -> None:
    disk = Disk()
    results: list[Outcome[None]] = []

    def work() -> None:
        raise OSError(28, "No space left on device")

    disk.run(work, results.append)
    await until(lambda: results)
    assert results[0].why == "No space left on device" and isinstance(results[0].error, OSError)
    disk.close()


async def test_a_close_waits_for_what_runs_and_cancels_what_has_not_begun() -> None:
    disk = Disk()
    results: list[Outcome[Any]] = []
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
    assert sorted(isinstance(one.error, Closed) for one in results) == [False] * 4 + [True] * 2
    assert {one.why for one in results if one.error is not None} == {"the relay stops"}
