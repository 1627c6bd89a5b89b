"""The parent of the workers: it owns the listening sockets, replaces workers that died or were reloaded, and answers for all.

One SO_REUSEPORT socket a slot and address is bound here and handed down, so that a connection which waits in a backlog is never
lost: whichever worker holds the slot accepts it. The supervisor itself never accepts, and holds no key in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from relay import control, sd
from relay.address import SYSTEMD, format_address, parse_address
from relay.admin import Admin
from relay.errors import ConfigError
from relay.load import Loaded, load_all
from relay.metrics import render
from relay.server import bind
from relay.snapshot import Retired, Snapshot, merge
from relay.tasks import Tasks

START_SECONDS = 60.0  # for a worker to say that it is ready
LOOK_SECONDS = 1.0
ANSWER_SECONDS = 2.0  # for a worker to answer a question
LAST_WORD_SECONDS = 10.0  # beyond its drain time, for a worker to go
RESTART_FIRST_SECONDS = 0.1  # the pause before a worker that died is replaced; doubles
RESTART_MOST_SECONDS = 30.0
STEADY_SECONDS = 60.0  # a worker that lived longer starts the pause anew

_log = logging.getLogger("relay.supervisor")


class WorkerProcess:
    """One child process and the socketpair to it."""

    def __init__(self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.process = process
        self.since = asyncio.get_running_loop().time()
        self.ready: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()  # problems; none: it serves
        self.draining = False
        self.cut = 0
        self.last: Snapshot | None = None
        self.said_goodbye = False
        self._reader = reader
        self._writer = writer
        self._questions: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._number = 0

    def __repr__(self) -> str:
        return f"<worker {self.process.pid}{' draining' if self.draining else ''}>"

    def tell(self, message: control.Message) -> None:
        if not self._writer.is_closing():
            control.write(self._writer, message)

    async def ask(self, what: str, argument: str, kind: Any) -> Any:
        """The worker's answer, or None when it gives none in time."""
        self._number += 1
        answer: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._questions[self._number] = answer
        number = self._number
        self.tell(control.Ask(number, what, argument))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return msgspec.msgpack.decode(await answer, type=kind)
        except (TimeoutError, asyncio.CancelledError):
            if self.process.returncode is None:
                _log.warning("worker %d did not answer %r within %g s", self.process.pid, what, ANSWER_SECONDS)
            return None
        finally:
            self._questions.pop(number, None)

    async def listen(self) -> None:
        """Hears the worker until it closes its end."""
        while (message := await control.read(self._reader)) is not None:
            match message:
                case control.Ready():
                    self._is_ready([])
                case control.Failed(problems):
                    self._is_ready(problems)
                case control.Drained(cut, metrics):
                    self.said_goodbye = True
                    self.cut = cut
                    self.last = msgspec.msgpack.decode(metrics, type=Snapshot)
                case control.Answer(number, body):
                    question = self._questions.get(number)
                    if question is not None and not question.done():
                        question.set_result(body)
                case _:
                    _log.error("worker %d sent %s", self.process.pid, type(message).__name__)
        self._is_ready(["it ended before it was ready"])
        for question in self._questions.values():
            if not question.done():
                question.cancel()
        self._writer.close()

    def _is_ready(self, problems: list[str]) -> None:
        if not self.ready.done():
            self.ready.set_result(problems)


class Slot:
    """One worker's place: its sockets, who serves on them now, and who still drains."""

    def __init__(self, number: int, sockets: list[socket.socket]) -> None:
        self.number = number
        self.sockets = sockets
        self.worker: WorkerProcess | None = None
        self.pause = RESTART_FIRST_SECONDS


class Supervisor:
    """`run` serves until SIGTERM or SIGINT; returns 0 when all sessions had ended by themselves, 1 when some were cut."""

    def __init__(self, loaded: Loaded, announce: Callable[[str], None] | None = None) -> None:
        self._loaded = loaded
        self._path = loaded.path
        self._announce = announce
        self._slots: list[Slot] = []
        self._workers: set[WorkerProcess] = set()
        self._tasks = Tasks()
        self._retired = Retired()
        self._restarts = 0
        self._reloads = 0
        self._cut = 0
        self._stopping = False
        self._stopped = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._admin: Admin | None = None
        self._sessions: asyncio.AbstractServer | None = None
        self._forced = False
        self._readiness = (False, "starting")

    @property
    def _size(self) -> int:
        return self._loaded.config.workers or len(os.sched_getaffinity(0))

    # -- life ------------------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number, call in ((signal.SIGTERM, self._on_stop), (signal.SIGINT, self._on_stop), (signal.SIGHUP, self._on_reload)):
            loop.add_signal_handler(number, call)
        try:
            self._slots = self._open_slots(self._loaded)
        except OSError as error:
            raise ConfigError([f"{self._path}:listen: {error}"]) from None
        await self._open_admin()
        problems = await self._fill(self._slots)
        if problems:
            await self._end_all(0)
            await self._close()
            raise ConfigError(problems)
        self._say_where()
        sd.notify("READY=1")
        self._tasks.start(self._look(), "look at workers")
        await self._stopped.wait()
        await self._close()
        _log.info("stopped; %d sessions were cut", self._cut, extra={"fields": {"cut": self._cut}})
        return 1 if self._cut else 0

    def _say_where(self) -> None:
        where = sorted({format_address(*sock.getsockname()[:2]) for slot in self._slots for sock in slot.sockets})
        for address in where:
            _log.info("listening on %s", address)
        assert self._admin is not None
        _log.info("admin on http://%s", format_address(*self._admin.address))
        if self._announce is not None:
            self._announce(where[0])

    async def _close(self) -> None:
        if self._sessions is not None:
            self._sessions.close()
            with contextlib.suppress(FileNotFoundError):
                self._socket_path.unlink()
        if self._admin is not None:
            await self._admin.close()
        await self._tasks.cancel()
        for slot in self._slots:
            for sock in slot.sockets:
                sock.close()

    # -- sockets ---------------------------------------------------------------------------------------------------------

    def _open_slots(self, loaded: Loaded) -> list[Slot]:
        """Binds one socket a slot and address; a port of 0 is chosen once and shared by all slots."""
        slots = [Slot(number, []) for number in range(self._size)]
        for text in loaded.config.listen:
            if text == SYSTEMD:
                handed = sd.listen_sockets()
                if not handed:
                    raise OSError("systemd handed over no socket (LISTEN_FDS is not set for this process)")
                for slot in slots:
                    slot.sockets += [sock.dup() for sock in handed]
                continue
            host, port = parse_address(text, any_port=True)
            for slot in slots:
                sock = bind(host, port, reuse_port=True)
                port = sock.getsockname()[1]
                slot.sockets.append(sock)
        return slots

    # -- workers ---------------------------------------------------------------------------------------------------------

    async def _spawn(self, slot: Slot) -> WorkerProcess:
        ours, theirs = socket.socketpair()
        fds = [sock.fileno() for sock in slot.sockets]
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "relay.worker", str(self._path), "--control", str(theirs.fileno()), "--listen", *map(str, fds),
                pass_fds=[theirs.fileno(), *fds],
                stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=control.FRAME_MAX_BYTES)
        worker = WorkerProcess(process, reader, writer)
        self._workers.add(worker)
        self._tasks.start(self._watch(worker, slot), f"worker {process.pid}")
        return worker

    async def _fill(self, slots: list[Slot]) -> list[str]:
        """Starts a worker in each slot; returns the problems of those that did not come up."""
        workers = [await self._spawn(slot) for slot in slots]
        problems: dict[str, None] = {}
        for slot, worker in zip(slots, workers, strict=True):
            try:
                async with asyncio.timeout(START_SECONDS):
                    problems.update(dict.fromkeys(await asyncio.shield(worker.ready)))
            except TimeoutError:
                problems[f"worker {worker.process.pid} was not ready within {START_SECONDS:g} s"] = None
            slot.worker = worker
        return list(problems)

    async def _watch(self, worker: WorkerProcess, slot: Slot) -> None:
        """From start to end of one process; its totals stay, and its place is filled again if it was not told to go."""
        listening = self._tasks.start(worker.listen(), f"control of worker {worker.process.pid}")
        status = await worker.process.wait()
        await asyncio.wait([listening])
        self._workers.discard(worker)
        if worker.last is not None:
            self._retired.add(worker.last)
        self._cut += worker.cut
        if worker.said_goodbye or self._stopping:
            _log.info("worker %d ended, %d sessions were cut", worker.process.pid, worker.cut)
        elif slot.worker is worker:
            slot.worker = None
            self._restarts += 1
            lived = asyncio.get_running_loop().time() - worker.since
            if lived > STEADY_SECONDS:
                slot.pause = RESTART_FIRST_SECONDS
            how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
            _log.error("worker %d died by %s after %.1f s; the next starts in %g s", worker.process.pid, how, lived, slot.pause)
            pause, slot.pause = slot.pause, min(slot.pause * 2, RESTART_MOST_SECONDS)
            self._tasks.start(self._replace(slot, pause), f"restart in slot {slot.number}")

    async def _replace(self, slot: Slot, pause: float) -> None:
        await asyncio.sleep(pause)
        async with self._reloading:
            if not self._stopping and slot.worker is None and slot in self._slots:
                slot.worker = await self._spawn(slot)
                problems = await slot.worker.ready
                if problems:
                    _log.error("a worker did not start: %s", "; ".join(problems))

    # -- reload ----------------------------------------------------------------------------------------------------------

    def _on_reload(self) -> None:
        if not self._stopping:
            self._tasks.start(self._reload(), "reload")

    async def _reload(self) -> None:
        """All or nothing: what is wrong is logged and the old workers serve on; else new ones take over the sockets."""
        async with self._reloading:
            sd.notify("RELOADING=1")
            for worker in self._workers:
                worker.tell(control.Reopen())
            try:
                loaded = await asyncio.get_running_loop().run_in_executor(None, load_all, self._path)
            except ConfigError as error:
                self._refuse_reload(error.problems)
                return
            old_loaded, old_slots = self._loaded, self._slots
            self._loaded = loaded
            same_sockets = loaded.config.listen == old_loaded.config.listen and self._size == len(old_slots)
            try:
                slots = [Slot(s.number, s.sockets) for s in old_slots] if same_sockets else self._open_slots(loaded)
                if loaded.config.admin != old_loaded.config.admin:
                    _log.warning("reload: a changed [admin] takes effect with the next start only")
                problems = await self._fill(slots)
            except OSError as error:
                slots, problems = [], [f"{self._path}:listen: {error}"]
            if problems:
                self._loaded = old_loaded
                for slot in slots:
                    if slot.worker is not None:
                        slot.worker.draining = True
                        slot.worker.tell(control.Drain(0))
                self._refuse_reload(problems)
                return
            self._slots = slots
            for slot in old_slots:
                if slot.worker is not None:
                    slot.worker.draining = True
                    self._tasks.start(self._drain(slot.worker, old_loaded.config.limits.drain_seconds), "drain after reload")
                if not same_sockets:
                    for sock in slot.sockets:
                        sock.close()
            self._reloads += 1
            _log.info("reloaded %s", self._path)
            sd.notify("READY=1")

    def _refuse_reload(self, problems: list[str]) -> None:
        for problem in problems:
            _log.error("reload refused: %s", problem)
        _log.error("reload refused: %d problems; the old configuration serves on", len(problems))
        sd.notify("READY=1")

    # -- stop ------------------------------------------------------------------------------------------------------------

    def _on_stop(self) -> None:
        if self._stopping:
            self._forced = True
            _log.warning("stopping at once")
            for worker in self._workers:
                worker.tell(control.Drain(0))
            return
        self._stopping = True
        sd.notify("STOPPING=1")
        _log.info("draining for at most %g s", self._loaded.config.limits.drain_seconds)
        self._tasks.start(self._stop(), "stop")

    async def _stop(self) -> None:
        await self._end_all(self._loaded.config.limits.drain_seconds)
        self._stopped.set()

    async def _end_all(self, seconds: float) -> None:
        self._stopping = True
        workers = list(self._workers)
        for worker in workers:
            worker.draining = True
        if workers:
            await asyncio.wait([self._tasks.start(self._drain(worker, 0 if self._forced else seconds), "drain") for worker in workers])
        while self._workers:  # noqa: ASYNC110 - until every _watch has counted its worker
            await asyncio.sleep(0.01)

    async def _drain(self, worker: WorkerProcess, seconds: float) -> None:
        """Tells the worker to drain; kills it when it does not go long after its time."""
        worker.tell(control.Drain(seconds))
        try:
            async with asyncio.timeout(seconds + LAST_WORD_SECONDS):
                await worker.process.wait()
        except TimeoutError:
            _log.error("worker %d did not end %g s after its drain time and is killed", worker.process.pid, LAST_WORD_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()
            await worker.process.wait()

    # -- questions -------------------------------------------------------------------------------------------------------

    async def _open_admin(self) -> None:
        host, port = parse_address(self._loaded.config.admin.listen, any_port=True)
        self._admin = Admin(self._render, self._ready)
        try:
            await self._admin.start(host, port)
        except OSError as error:
            raise ConfigError([f"{self._path}:admin.listen: {error}"]) from None
        path = self._socket_path
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        old = os.umask(0o177)
        try:
            self._sessions = await asyncio.start_unix_server(self._serve_sessions, path)
        except OSError as error:
            raise ConfigError([f"{self._path}:admin.sessions_socket: {path}: {error}"]) from None
        finally:
            os.umask(old)

    @property
    def _socket_path(self) -> Path:
        return self._loaded.base / self._loaded.config.admin.sessions_socket

    async def _ready(self) -> tuple[bool, str]:
        """As the workers said within the last second; draining is known at once."""
        if self._stopping:
            return False, "draining"
        return self._readiness

    async def _look(self) -> None:
        """Every second: is any worker ready, and the totals of each, so that they outlive one that is killed."""
        while True:
            serving = [slot.worker for slot in self._slots if slot.worker is not None and slot.worker.ready.done()]
            answers = [answer for answer in await self._ask_all("ready", "", tuple[bool, str], serving) if answer is not None]
            why = answers[0][1] if answers else "starting"
            self._readiness = (True, "ready") if any(ready for ready, _ in answers) else (False, why)
            await self._snapshots()
            await asyncio.sleep(LOOK_SECONDS)

    async def _ask_all(self, what: str, argument: str, kind: Any, workers: list[WorkerProcess] | None = None) -> list[Any]:
        asked = list(self._workers) if workers is None else workers
        return list(await asyncio.gather(*(worker.ask(what, argument, kind) for worker in asked)))

    async def _snapshots(self) -> list[Snapshot]:
        workers = [worker for worker in self._workers if worker.ready.done()]
        for worker, answer in zip(workers, await self._ask_all("metrics", "", Snapshot, workers), strict=True):
            if answer is not None and not worker.said_goodbye:
                worker.last = answer
        return [worker.last for worker in workers if worker.last is not None]

    async def _render(self) -> bytes:
        snapshots = await self._snapshots()
        return render(merge(snapshots, self._retired), workers=len(snapshots), restarts=self._restarts, reloads=self._reloads)

    async def _serve_sessions(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """`relay sessions`: only the owner may connect, by the socket's mode and by the peer's user."""
        try:
            if not _same_user(writer.get_extra_info("socket")):
                return
            while isinstance(message := await control.read(reader), control.Ask):
                if message.what == "kill":
                    body: Any = any(await self._ask_all("kill", message.argument, bool))
                else:
                    found = await self._ask_all("sessions", "", list[control.SessionLine])
                    body = [line for lines in found if lines is not None for line in lines]
                control.write(writer, control.Answer(message.number, control.raw(body)))
                await writer.drain()
        except (ValueError, ConnectionError) as error:
            _log.warning("sessions socket: %s", error)
        finally:
            writer.close()


def _same_user(sock: Any) -> bool:
    """SO_PEERCRED, unix(7): pid, uid, gid."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(raw[4:8], sys.byteorder) in (os.geteuid(), 0)
