"""Two minutes in the town: everyday load, and one fault after another."""

from __future__ import annotations

import asyncio
import math
import random
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

from relay.tasks import Tasks
from tests.grafana.town import SIZES, Town

EVERYDAY_RATE = 7.0  # sessions a second, on average
AT_ONCE = 60  # sessions at most: a slow machine shows a lower rate, not a longer run

# The time of each fault, as a fraction of the run.
MIRROR_DOWN = (0.22, 0.36)
ADDRESS_DOWN = (0.30, 0.42)
AUTHORITY_DOWN = (0.46, 0.58)
REDIS_DOWN = (0.52, 0.60)
ARCHIVE_CROWDED = (0.66, 0.78)
WORKER_KILLED = 0.62
RELOAD = 0.84
SCANNER = (0.84, 0.95)
ARCHIVE_FROZEN = (0.80, 0.95)
MIRROR_PAUSED = (0.88, 0.94)

Act = Callable[[Town], Awaitable[Any]]

EVERYDAY: tuple[tuple[float, Act], ...] = (
    (30, lambda town: town.clone(SIZES[0])),
    (16, lambda town: town.clone(SIZES[1])),
    (8, lambda town: town.clone(SIZES[2])),
    (5, lambda town: town.clone(SIZES[3])),
    (2, lambda town: town.clone(SIZES[4])),
    (6, lambda town: town.clone_project()),
    (10, lambda town: town.clone_mirror(SIZES[1])),
    (4, lambda town: town.clone_archive("0.1")),
    (3, lambda town: town.clone_archive("0.5")),
    (9, lambda town: town.push(random.randrange(20_000, 3_000_000))),
    (2, lambda town: town.export()),
    (4, lambda town: town.large_files()),
    (1.5, lambda town: town.fails_there()),
    (0.5, lambda town: town.dies_there()),
    (1, lambda town: town.not_git()),
    (0.7, lambda town: town.malformed()),
    (1.5, lambda town: town.denied()),
    (0.7, lambda town: town.greeting()),
    (3, lambda town: town.stranger()),
    (0.7, lambda town: town.wrong_user()),
    (0.7, lambda town: town.leaves()),
    (2, lambda town: town.probe()),
)


class Demo:
    """Runs for `seconds`; the same seed gives the same choices, but not the same times."""

    def __init__(self, town: Town, seconds: float, seed: int = 1) -> None:
        self._town = town
        self._seconds = seconds
        self._random = random.Random(seed)
        self._tasks = Tasks()
        self._under_way = 0

    async def run(self) -> None:
        self._tasks.start(self._things_go_wrong(), "faults")
        weights, acts = zip(*EVERYDAY, strict=True)
        started = time.monotonic()
        while (now := (time.monotonic() - started) / self._seconds) < 1:
            rate = EVERYDAY_RATE * (1 + 0.35 * math.sin(now * 9) + 0.15 * math.sin(now * 31))
            await asyncio.sleep(self._random.expovariate(rate))
            self._begin(self._random.choices(acts, weights)[0])
            if ARCHIVE_CROWDED[0] < now < ARCHIVE_CROWDED[1]:
                self._begin(lambda town: town.clone_archive("2"))
            if SCANNER[0] < now < SCANNER[1]:
                self._begin(lambda town: town.stranger())
                self._begin(lambda town: town.denied())
        await self._tasks.cancel()

    def _begin(self, act: Act) -> None:
        if self._under_way < AT_ONCE:
            self._under_way += 1
            self._tasks.start(self._do(act), "act")

    async def _do(self, act: Act) -> None:
        try:
            await act(self._town)
        finally:
            self._under_way -= 1

    async def _things_go_wrong(self) -> None:
        town = self._town
        happenings: list[tuple[float, Callable[[], object]]] = [
            (MIRROR_DOWN[0], town.mirror.stop),
            (MIRROR_DOWN[1], town.mirror.start),
            (ADDRESS_DOWN[0], town.address_goes),
            (ADDRESS_DOWN[1], town.address_comes),
            (AUTHORITY_DOWN[0], town.authority.kill),
            (AUTHORITY_DOWN[1], town.authority.start),
            (REDIS_DOWN[0], town.redis.kill),
            (REDIS_DOWN[1], town.redis.start),
            (WORKER_KILLED, lambda: town.relays[0].processes()[1].kill()),
            (ARCHIVE_FROZEN[0], lambda: town.switch("freeze", "archive", "moving to another disk")),
            (ARCHIVE_FROZEN[1], lambda: town.switch("thaw", "archive")),
            (MIRROR_PAUSED[0], lambda: town.switch("pause", "mirror")),
            (MIRROR_PAUSED[1], lambda: town.switch("resume", "mirror")),
            (RELOAD, lambda: town.relays[-1].signal(signal.SIGHUP)),
        ]
        started = time.monotonic()
        for when, happens in sorted(happenings, key=lambda one: one[0]):
            await asyncio.sleep(max(0.0, started + when * self._seconds - time.monotonic()))
            await asyncio.to_thread(happens)
