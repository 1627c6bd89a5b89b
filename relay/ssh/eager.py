"""Coroutines that are stepped inline and become a task only if they wait."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any


class Waiting:
    """A coroutine that `begin` has run up to its first await; awaiting this object runs the rest."""

    def __init__(self, work: Coroutine[Any, Any, Any], waits_for: Any) -> None:
        self._work = work
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        work, waits_for = self._work, self._waits_for
        while True:
            thrown: BaseException | None = None
            try:
                answer = yield waits_for
            except GeneratorExit:
                work.close()
                raise
            except BaseException as error:  # noqa: BLE001 - whatever it is, a cancellation too, is the coroutine's
                thrown = error
            try:
                waits_for = work.send(answer) if thrown is None else work.throw(thrown)
            except StopIteration as ended:
                return ended.value


def begin(work: Coroutine[Any, Any, Any]) -> Waiting | None:
    """Runs `work` up to its first await that blocks; most have none, then it returns None. Raises what `work` raises.

    Until then `work` runs in no task of its own, so it must not use the current task, as asyncio.timeout does.
    """
    try:
        return Waiting(work, work.send(None))
    except StopIteration:
        return None
