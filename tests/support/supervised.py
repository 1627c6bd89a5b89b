"""A supervisor whose workers are stand-ins that do nothing by themselves, so that tests cause deaths, reloads and signals in any order.

async with supervised(tmp_path, monkeypatch) as run:
    one, two = await run.up()
    one.die()
    (*_, three) = await run.started(3)
"""

from __future__ import annotations

import asyncio
import copy
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay import config
from relay.config.load import Loaded
from relay.observe.snapshot import Snapshot
from relay.process import messages, supervisor
from relay.process.supervisor import Supervisor
from relay.process.worker_handle import WorkerProcess
from relay.tasks import Tasks
from relay.upstream import colleagues
from relay.upstream.switches import UpstreamSwitches
from tests.support.wait import wait_until_async

DRAIN_SECONDS = 33.0


class Worker:
    """A stand-in: it first reports by `serve` or `fail`, and ends by `leave` or `die`."""

    def __init__(self, number: int, sockets: list[socket.socket], loaded: Loaded, first: bool) -> None:
        self.pid = 1000 + number
        self.loaded, self.first = loaded, first
        self.sockets = sockets
        self.listening = [sock.fileno() for sock in sockets]
        self.since = self.heard = asyncio.get_running_loop().time()
        self.leaving = self.drained = self.failed = self.probing = False
        self.on_news: Callable[[colleagues.HostNews], None] = lambda news: None
        self.news: list[colleagues.HostNews] = []  # of other workers, as the supervisor passed it on
        self.cut = 0
        self.last: Snapshot | None = None  # the supervisor keeps the last answer here
        self.snapshot = Snapshot([])  # the answer
        self.upstreams: list[messages.UpstreamState] = []  # the answer
        self.told: list[float | str] = []  # seconds of each drain, and names of other messages
        self.killed = False
        self.switches: list[dict[str, UpstreamSwitches]] = []  # as received, at its start and later
        self.deaf = False  # does not apply switches
        self._problems: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._end: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def serve(self) -> None:
        self._problems.set_result([])

    def fail(self, *problems: str) -> None:
        self.failed = True
        self._problems.set_result(list(problems))
        self._end.set_result(1)

    def leave(self, cut: int = 0) -> None:
        self.drained, self.cut = True, cut
        if not self._problems.done():
            self.serve()
        self._end.set_result(0)

    def die(self, status: int = -9) -> None:
        if not self._problems.done():
            self._problems.set_result([f"worker {self.pid} ended before it was ready"])
        self._end.set_result(status)

    @property
    def ended(self) -> bool:
        return self._end.done()

    # -- what the supervisor uses

    @property
    def ready(self) -> bool:
        return self._problems.done() and not self._problems.result()

    async def started(self) -> list[str]:
        return await asyncio.shield(self._problems)

    async def run(self) -> int:
        return await self._end

    def tell(self, message: messages.Message) -> None:
        if isinstance(message, messages.News):
            self.news.append(message.host)
        elif not isinstance(message, messages.Probe):
            self.told.append(type(message).__name__)

    @property
    def gone(self) -> bool:
        return self.ended

    async def switch(self, switches: dict[str, UpstreamSwitches]) -> bool:
        self.switches.append(switches)
        return not self.deaf and not self.ended

    async def ask(self, what: str, kind: Any, argument: str = "", operator: str = "") -> Any:
        answers = {"ready": (True, "ready"), "metrics": self.snapshot, "upstreams": self.upstreams}
        answers |= {"sessions": [], "kill": [], "kill_identity": []}
        return None if self.deaf else answers[what]

    def drain(self, seconds: float) -> None:
        self.leaving = True
        self.told.append(seconds)

    def kill(self) -> None:
        self.killed = True
        if not self._end.done():
            self.die()


class Run:
    """A supervisor under test: the workers it started, in order, and how it ended."""

    def __init__(self, folder: Path) -> None:
        self.workers: list[Worker] = []
        self.refused = 0  # how many of the next starts fail
        self.serving = True  # whether workers serve at once
        self.loaded = Loaded(
            folder / "relay.toml",
            config.Config(
                listen=["127.0.0.1:0"],
                workers=2,
                admin=config.AdminSettings(listen="127.0.0.1:0"),
                limits=config.LimitsSettings(drain_seconds=DRAIN_SECONDS),
                upstreams={},
            ),
        )
        self.supervisor = Supervisor(self.loaded)
        self.tasks = Tasks()
        self.end: asyncio.Task[int] | None = None

    async def start_worker(
        self, loaded: Loaded, sockets: list[socket.socket], switches: Callable[[], dict[str, UpstreamSwitches]], first: bool = True
    ) -> Worker:
        await asyncio.sleep(0)
        if self.refused:
            self.refused -= 1
            raise OSError("Resource temporarily unavailable")
        worker = Worker(len(self.workers), sockets, loaded, first)
        self.workers.append(worker)
        worker.switches.append(switches())
        if self.serving:
            worker.serve()
        return worker

    def load(self, path: Path) -> Loaded:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return copy.copy(self.loaded)  # each reading makes a new one

    def change(self, **changes: Any) -> None:
        self.loaded = Loaded(self.loaded.path, msgspec.structs.replace(self.loaded.config, **changes))

    async def started(self, count: int) -> list[Worker]:
        """Waits for the `count`th worker; returns all."""
        await wait_until_async(lambda: len(self.workers) >= count, message=f"{count} workers were started")
        return self.workers

    async def up(self) -> list[Worker]:
        """Runs it, with its two workers serving."""
        self.begin()
        await self.admin_answers()
        await wait_until_async(lambda: self.supervisor._slots)
        return self.workers

    def begin(self) -> None:
        self.end = self.tasks.start(self.supervisor.run(), "supervisor")

    async def admin_answers(self) -> None:
        await wait_until_async(lambda: self.supervisor._console is not None)

    def reload(self) -> None:
        self.supervisor._on_reload()

    def stop(self) -> None:
        self.supervisor._on_stop()

    async def finished(self) -> int:
        assert self.end is not None
        async with asyncio.timeout(60):
            return await self.end

    def in_force(self, worker: Any) -> bool:
        return any(slot.worker is worker for slot in self.supervisor._slots)

    async def counts(self) -> dict[str, float]:
        """The supervisor's own counters among its metrics."""
        lines = (await self.supervisor._render()).decode().splitlines()
        samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        counts = {name: float(samples[f"relay_{name}"]) for name in ("workers", "worker_restarts_total")}
        return {**counts, "reloads_total": float(samples['relay_reloads_total{result="ok"}'])}


@asynccontextmanager
async def supervised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Run]:
    """A run that has not begun; at the end stops it and its workers if the test did not, and asserts that no task is left."""
    monkeypatch.setattr(supervisor, "RESTART_FIRST_SECONDS", 0.01)
    run = Run(folder)
    monkeypatch.setattr(WorkerProcess, "start", run.start_worker)
    monkeypatch.setattr(supervisor, "load_all", run.load)
    yield run
    if run.end is not None and not run.end.done():
        run.stop()
        for worker in run.workers:
            if not worker.ended:
                worker.leave()
        await run.finished()
    left = {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    assert not left, "the supervisor left tasks"
