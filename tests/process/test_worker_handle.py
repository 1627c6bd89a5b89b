"""The supervisor's handle of a worker, with real worker processes: start, answers, drain, and every way in which a worker ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
import pytest

from relay.config.load import Loaded
from relay.errors import ConfigError
from relay.observe.snapshot import Family, Snapshot
from relay.preflight import load_all
from relay.process import messages, worker_handle
from relay.process.sockets import bind
from relay.process.worker_handle import WorkerProcess, how_it_ended, sessions_of
from relay.tasks import Tasks
from relay.upstream.switches import UpstreamSwitches
from tests.support.processes import alive
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async


@dataclass
class Child:
    worker: WorkerProcess
    life: asyncio.Task[int]
    listener: socket.socket

    async def status(self) -> int:
        async with asyncio.timeout(30):
            return await self.life


@pytest.fixture
def loaded(sshd: Sshd, tmp_path: Path) -> Loaded:
    """A complete configuration in a folder; no relay serves it."""
    return load_all(RelayProcess(sshd, tmp_path / "relay").config_file)


@asynccontextmanager
async def started(loaded: Loaded, switches: Callable[[], dict[str, UpstreamSwitches]] = dict) -> AsyncIterator[Child]:
    tasks = Tasks()
    with bind("127.0.0.1", 0) as listener:
        worker = await WorkerProcess.start(loaded, [listener], switches)
        child = Child(worker, tasks.start(worker.run(), "worker"), listener)
        try:
            yield child
        finally:
            worker.kill()
            await child.status()
    await wait_until_async(lambda: not psutil.pid_exists(worker.pid), message="the child was reaped")


async def banner(listener: socket.socket) -> bytes:
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    try:
        async with asyncio.timeout(60):
            return await reader.readline()
    finally:
        writer.close()


async def test_starts_answers_and_drains(loaded: Loaded) -> None:
    before = psutil.Process().num_fds()
    async with started(loaded) as child:
        worker = child.worker
        waiting = asyncio.get_running_loop().create_task(banner(child.listener))  # before the worker accepts
        assert repr(worker) == f"<worker {worker.pid} starting>"
        assert await worker.started() == []
        assert repr(worker) == f"<worker {worker.pid} serving>"
        assert (await waiting).startswith(b"SSH-2.0-")
        assert await worker.ask("ready", tuple[bool, str]) == (True, "ready")
        snapshot = await worker.ask("metrics", Snapshot)
        assert snapshot is not None and sessions_of(snapshot) == 0
        assert await worker.ask("sessions", list[messages.LiveSession]) == []
        assert await worker.ask("kill", list[str], "nobody-1") == []
        worker.drain(5)
        assert await child.status() == 0
        assert worker.drained and worker.cut == 0 and worker.last is not None
        assert await worker.ask("ready", tuple[bool, str]) is None
    assert psutil.Process().num_fds() <= before


async def connections(worker: WorkerProcess) -> int:
    """The idle connections to the upstream, and those being dialed."""
    states = await worker.ask("upstreams", list[messages.UpstreamState])
    assert states is not None
    (state,) = states
    return state.idle + state.dialing


async def test_a_worker_has_the_switches_of_the_moment_in_which_it_starts_and_takes_later_ones(loaded: Loaded) -> None:
    known = {"main": UpstreamSwitches(paused=True), "elsewhere": UpstreamSwitches(paused=True)}
    async with started(loaded, lambda: known) as child:
        worker = child.worker
        first = await worker.switch(known)  # sent while the worker starts: answered once it serves
        assert first and worker.ready
        (address,) = loaded.config.upstreams["main"].addresses
        assert await worker.ask("upstreams", list[messages.UpstreamState]) == [
            messages.UpstreamState("main", 0, [messages.AddressState(address, None, 0, 0, 0)])
        ], "it never dialed"
        assert await worker.switch({})
        assert await connections(worker)
        assert await worker.switch(known)

        async def none_is_left() -> bool:
            return not await connections(worker)

        await wait_until_async(none_is_left)
        worker.kill()
        assert not await worker.switch({})
        await wait_until_async(lambda: worker.gone)


async def test_a_worker_that_hangs_does_not_take_switches(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_handle, "SWITCH_SECONDS", 0.1)
    async with started(loaded) as child:
        assert await child.worker.started() == []
        os.kill(child.worker.pid, signal.SIGSTOP)
        assert not await child.worker.switch({}) and not child.worker.gone
        assert "did not answer 'switches' within 0.1 s" in caplog.text


async def test_serves_the_given_configuration_even_if_the_file_has_changed(loaded: Loaded) -> None:
    loaded.path.write_text("broken")
    with pytest.raises(ConfigError):
        load_all(loaded.path)
    async with started(loaded) as child:
        assert await child.worker.started() == []


async def test_a_worker_that_cannot_serve_reports_every_problem(loaded: Loaded) -> None:
    (loaded.base / loaded.config.host_keys[0]).unlink()
    (loaded.base / "upstream_ed25519").unlink()
    async with started(loaded) as child:
        problems = await child.worker.started()
        assert len(problems) == 2
        assert "host_keys" in problems[0] and "upstreams.main.private_key" in problems[1]
        assert await child.status() == 1
        assert child.worker.failed and not child.worker.ready


async def test_a_worker_that_is_killed_before_it_is_ready(loaded: Loaded) -> None:
    async with started(loaded) as child:
        child.worker.kill()
        assert await child.worker.started() == [f"worker {child.worker.pid} ended before it was ready"]
        assert await child.status() == -signal.SIGKILL
        assert not child.worker.failed and not child.worker.drained


async def test_a_worker_that_is_not_ready_in_time(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_handle, "START_SECONDS", 0.1)
    async with started(loaded) as child:
        os.kill(child.worker.pid, signal.SIGSTOP)
        assert await child.worker.started() == [f"worker {child.worker.pid} was not ready within 0.1 s"]


async def test_a_worker_that_drains_before_it_is_ready(loaded: Loaded) -> None:
    async with started(loaded) as child:
        child.worker.drain(0)
        assert await child.status() == 0
        assert child.worker.drained


async def test_a_worker_that_does_not_drain_is_killed(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_handle, "EXIT_SECONDS", 0.2)
    monkeypatch.setattr(worker_handle, "ANSWER_SECONDS", 0.1)
    async with started(loaded) as child:
        assert await child.worker.started() == []
        os.kill(child.worker.pid, signal.SIGSTOP)
        assert await child.worker.ask("ready", tuple[bool, str]) is None
        assert "did not answer 'ready' within 0.1 s" in caplog.text
        child.worker.drain(3600)
        child.worker.drain(0)
        child.worker.drain(3600)
        assert await child.status() == -signal.SIGKILL
        assert "did not end in time and is killed" in caplog.text


async def test_a_pending_question_gets_no_answer_when_the_worker_dies(loaded: Loaded) -> None:
    async with started(loaded) as child:
        assert await child.worker.started() == []
        os.kill(child.worker.pid, signal.SIGSTOP)
        asking = asyncio.get_running_loop().create_task(child.worker.ask("ready", tuple[bool, str]))
        await asyncio.sleep(0)
        child.worker.kill()
        assert await asking is None


async def test_a_worker_does_not_get_the_signals_of_the_terminal(loaded: Loaded) -> None:
    async with started(loaded) as child:
        assert os.getsid(child.worker.pid) == child.worker.pid
        assert await child.worker.started() == []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(child.worker.pid, number)
        assert await child.worker.ask("ready", tuple[bool, str]) == (True, "ready")


async def test_a_worker_inherits_only_its_own_descriptors(loaded: Loaded) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        async with started(loaded) as child:
            assert await child.worker.started() == []
            listening = {
                connection.laddr.port
                for connection in psutil.Process(child.worker.pid).net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            }
            assert listening == {child.listener.getsockname()[1]}
            assert other.getsockname()[1] not in listening


async def test_a_worker_drains_and_ends_when_the_supervisor_has_ended(loaded: Loaded) -> None:
    async with started(loaded) as child:
        assert await child.worker.started() == []
        process = psutil.Process(child.worker.pid)
        child.worker._writer.close()
        await wait_until_async(lambda: not alive(process))
        assert await child.status() == 0


async def test_an_invalid_message_of_a_worker_is_logged(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_handle, "EXIT_SECONDS", 0.2)
    async with started(loaded) as child:
        assert await child.worker.started() == []
        child.worker._reader.feed_data(b"\0\0\0\1\xc1")
        await child.status()
        assert not child.worker.leaving


async def test_no_process_can_be_started(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*arguments: object, **options: object) -> None:
        raise OSError("Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)
    before = psutil.Process().num_fds()
    with pytest.raises(OSError, match="temporarily"):
        await WorkerProcess.start(loaded, [], dict)
    assert psutil.Process().num_fds() == before


@pytest.mark.parametrize(("status", "said"), [(0, "status 0"), (3, "status 3"), (-9, "signal SIGKILL"), (-40, "signal 40")])
def test_how_a_process_ended(status: int, said: str) -> None:
    assert how_it_ended(status) == said


def test_open_sessions_of_a_snapshot() -> None:
    def gauge(name: str, *values: float) -> Family:
        return Family(name, "gauge", "", "sum", [("", (("service", str(number)),), value) for number, value in enumerate(values)])

    assert sessions_of(None) == 0
    assert sessions_of(Snapshot([gauge("relay_connections_open", 7)])) == 0
    snapshot = Snapshot([gauge("relay_connections_open", 7), gauge("relay_sessions_open", 2, 0, 3)])
    assert sessions_of(msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot), type=Snapshot)) == 5
