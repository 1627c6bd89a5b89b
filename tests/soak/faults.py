"""Random faults on both sides of the relay and in the relay, one at a time."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from typing import Literal

from tests.soak.site import Site
from tests.support.faultproxy import FaultProxy
from tests.support.processes import send_signal

PAUSE_SECONDS = (0.3, 1.6)  # between two faults
STALL_SECONDS = (0.1, 2.0)  # shorter than any timeout: must only delay operations
AT_SECONDS = 0.5  # for how long new links break after some bytes
AT_BYTES = 300_000
REFUSED_SECONDS = 0.3

Where = Literal["front", "back"]


class Chaos:
    """Draws faults until stopped; `workers`: also kills and replaces workers."""

    def __init__(self, site: Site, seed: int) -> None:
        self._site = site
        self._random = random.Random(seed)
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    def start(self, workers: bool) -> None:
        self._stopping.clear()
        self._task = asyncio.create_task(self._run(workers))

    async def stop(self) -> None:
        self._stopping.set()
        assert self._task is not None
        await self._task

    async def _run(self, workers: bool) -> None:
        kinds: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (4, lambda: self._end_link("front")),
            (4, lambda: self._end_link("back")),
            (2, lambda: self._end_links("back")),
            (3, lambda: self._stall("front")),
            (3, lambda: self._stall("back")),
            (2, lambda: self._break_new("front")),
            (2, lambda: self._break_new("back")),
            (1, self._refuse),
            (2, self._kill_sshd_sessions),
            (2, self._kill_commands),
        ]
        if workers:
            kinds += [(2, self._reload), (1, self._kill_worker)]
        weights, faults = [weight for weight, _ in kinds], [fault for _, fault in kinds]
        while not await self._stopped_within(self._random.uniform(*PAUSE_SECONDS)):
            await self._random.choices(faults, weights)[0]()

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._stopping.wait()
        except TimeoutError:
            return False

    def _proxy(self, where: Where) -> FaultProxy:
        return self._site.front if where == "front" else self._site.back

    # -- of the links

    async def _end_link(self, where: Where) -> None:
        links = self._proxy(where).links
        if not links:
            return
        link, way = self._random.choice(links), self._random.choice(("cut", "reset"))
        with self._site.faults.during(f"{where} link {way}"):
            link.cut() if way == "cut" else link.reset()

    async def _end_links(self, where: Where) -> None:
        with self._site.faults.during(f"all {where} links reset"):
            self._proxy(where).reset()

    async def _stall(self, where: Where) -> None:
        """Excuses no failure: a link that stalls for a while loses nothing."""
        proxy, direction = self._proxy(where), self._random.choice(("up", "down", "both"))
        self._site.faults.count(f"{where} links stalled")
        proxy.stall(direction)  # type: ignore[arg-type]
        await asyncio.sleep(self._random.uniform(*STALL_SECONDS))
        proxy.resume(direction)  # type: ignore[arg-type]

    async def _break_new(self, where: Where) -> None:
        proxy = self._proxy(where)
        action, direction = self._random.choice(("cut", "reset")), self._random.choice(("up", "down"))
        with self._site.faults.during(f"new {where} links broken"):
            proxy.at(self._random.randrange(AT_BYTES), action, direction, scope="new")  # type: ignore[arg-type]
            await asyncio.sleep(AT_SECONDS)
            proxy.heal()

    async def _refuse(self) -> None:
        with self._site.faults.during("git host refuses"):
            self._site.back.accept("refuse")
            await asyncio.sleep(REFUSED_SECONDS)
            self._site.back.accept("forward")

    # -- of the git host

    async def _kill_sshd_sessions(self) -> None:
        with self._site.faults.during("sshd sessions killed"):
            await asyncio.to_thread(self._site.sshd.signal_sessions, signal.SIGKILL)

    async def _kill_commands(self) -> None:
        with self._site.faults.during("git host's commands killed"):
            await asyncio.to_thread(self._site.sshd.signal_commands, signal.SIGKILL)

    # -- of the relay

    async def _reload(self) -> None:
        """Excuses no failure."""
        self._site.faults.count("reload")
        self._site.relay.signal(signal.SIGHUP)

    async def _kill_worker(self) -> None:
        workers = await asyncio.to_thread(self._site.relay.processes)
        if len(workers) > 1:
            with self._site.faults.during("worker killed"):
                send_signal(self._random.choice(workers[1:]), signal.SIGKILL)
