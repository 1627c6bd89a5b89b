"""The supervisor: parent of the workers. It owns the listening sockets, replaces workers that died, reloads the configuration, and
serves the admin address and the operators' socket for all workers.

The supervisor keeps every listening socket open, so a connection that waits in a backlog survives the end of a worker: the next worker
that holds the socket accepts it. The supervisor itself never accepts, and holds no private key in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any, TypeVar

from relay.ssh import asyncssh_import  # noqa: F401 - before what imports asyncssh

# isort: split
from relay.address import format_address, parse_address
from relay.config import Config
from relay.config.load import Loaded
from relay.errors import ConfigError
from relay.keys.open import left_out
from relay.observe.admin import Admin
from relay.observe.audit import tell_of_lost_worker
from relay.observe.log import configure
from relay.observe.metrics import render
from relay.observe.snapshot import Retired, Snapshot, Untaken, merge
from relay.preflight import load_all
from relay.process import messages, native_parts, systemd
from relay.process.console import Console, Operator, Question
from relay.process.sockets import Sockets, why_not
from relay.process.switches import OFF, Switches, Wrong, sentence
from relay.process.upstream_table import summed
from relay.process.worker_handle import EXIT_SECONDS, WorkerProcess, how_it_ended, sessions_of
from relay.ssh import asyncssh_pins
from relay.tasks import Tasks
from relay.text import counted, plain, size
from relay.upstream import colleagues

LOOK_SECONDS = 1.0  # between two rounds of questions to the workers
HUNG_SECONDS = 60.0  # a worker without an answer for so long is assumed to hang; it is killed and replaced
RESTART_FIRST_SECONDS = 0.1  # before a dead worker is replaced; doubles at each death
RESTART_MOST_SECONDS = 30.0
STEADY_SECONDS = 60.0  # a worker that lived longer resets that pause

T = TypeVar("T")

LEFT_OUT_LOGGED = 100  # lines of keys that are logged at start and after a reload

_log = logging.getLogger("relay.supervisor")


class Slot:
    """The place of one worker: its sockets, the worker that serves them, and the pause before the next one."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self.sockets = sockets
        self.worker: WorkerProcess | None = None
        self.pause = RESTART_FIRST_SECONDS


class Supervisor:
    """`run` serves until SIGTERM or SIGINT. It returns 0 when all sessions ended by themselves, 1 when the relay had to end some."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._sockets = Sockets({})
        self._slots: list[Slot] = []  # of the configuration in force; a slot of an earlier one is not in this list
        self._workers: set[WorkerProcess] = set()  # all running workers, draining ones included
        self._lives = Tasks()  # one for each worker, from start to end
        self._changes = Tasks()  # reloads and restarts: the tasks that start workers
        self._looking = Tasks()  # what goes on beside: looks at workers, switches that a reload dropped
        self._retired = Retired()
        self._restarts = 0
        self._reloads = 0
        self._refused = 0  # refused reloads
        self._refused_since = 0.0  # when the first of them was, in seconds since the epoch; 0 after a reload that took effect
        self._refusal = ""  # the first problem of the last refused reload
        self._reload_wanted = False
        self._reloading = False
        self._stopping = asyncio.Event()
        self._forced = False  # a second signal to stop
        self._cut = 0  # sessions that the workers ended while stopping
        self._admin: Admin | None = None
        self._console: Console | None = None
        self._readiness = (False, "starting")
        self._switches = Switches(loaded.config)

    # -- life ------------------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Raises ConfigError when it cannot start; then nothing is left running."""
        loop = asyncio.get_running_loop()
        for number, call in ((signal.SIGTERM, self._on_stop), (signal.SIGINT, self._on_stop), (signal.SIGHUP, self._on_reload)):
            loop.add_signal_handler(number, call)
        try:
            # before the listening sockets: a second relay, started by mistake, fails here and does not accept the first one's clients
            await self._open_admin()
            if await self._start():
                await self._stopping.wait()
                await self._stop()
        finally:
            await self._close()
        _log.info("stopped; %s cut", counted(self._cut, "session", "were"), extra={"fields": {"cut": self._cut}})
        return 1 if self._cut else 0

    async def _start(self) -> bool:
        """False when a signal stopped the relay in the meantime."""
        try:
            sockets, slots = await self._start_workers(self._loaded)
        except ConfigError:
            await self._lives.finish()
            if self._stopping.is_set():
                return False
            raise
        self._take_over(self._loaded, sockets, slots)
        for address in sockets.addresses():
            _log.info("listening on %s", address)
        self._tell_left_out()
        if remark := asyncssh_pins.settle():
            _log.warning("the direct path for AES-GCM is off: %s", remark)
        if warning := native_parts.warning():
            _log.warning("not all of git-ssh-relay-native is used: %s", warning)
        assert self._admin is not None
        _log.info("admin on http://%s", format_address(*self._admin.address))
        systemd.notify("READY=1")
        self._looking.start(self._look(), "look at workers")
        if self._reload_wanted:
            self._on_reload()
        return True

    async def _close(self) -> None:
        await self._looking.cancel()
        self._sockets.close()
        if self._console is not None:
            await self._console.close()
        if self._admin is not None:
            await self._admin.close()

    async def _open_admin(self) -> None:
        admin = self._loaded.config.admin
        self._admin = Admin(self._render, self._ready)
        try:
            await self._admin.start(*parse_address(admin.listen, any_port=True))
        except OSError as error:
            raise ConfigError([f"{self._loaded.where('admin.listen')}: {admin.listen}: {why_not(error, admin.listen)}"]) from None
        self._console = await self._opened_console(self._loaded)

    async def _opened_console(self, loaded: Loaded) -> Console:
        """Raises ConfigError."""
        console = Console(loaded.resolve(loaded.config.admin.sessions_socket), self._answer_operator)
        try:
            await console.open()
        except OSError as error:
            raise ConfigError([f"{loaded.where('admin.sessions_socket')}: {console.path}: {why_not(error)}"]) from None
        return console

    async def _changed_admin(self, loaded: Loaded) -> Admin | None:
        """Listens on the new `admin.listen`; None if it is the old one. Raises ConfigError."""
        before, listen = self._loaded.config.admin.listen, loaded.config.admin.listen
        if listen == before:
            return None
        admin = Admin(self._render, self._ready)
        host, port = parse_address(listen, any_port=True)
        try:
            await admin.start(host, port)
        except OSError as error:
            why = why_not(error, listen)
            if error.errno == errno.EADDRINUSE and self._admin is not None and self._admin.address[1] == port:
                why += f"; this relay listens on {before} until it is restarted, so a reload takes another port only"
            raise ConfigError([f"{loaded.where('admin.listen')}: {listen}: {why}"]) from None
        return admin

    async def _changed_console(self, loaded: Loaded) -> Console | None:
        """Listens on the new `admin.sessions_socket`; None if it is the old one. Raises ConfigError."""
        path = loaded.resolve(loaded.config.admin.sessions_socket)
        if self._console is None or _same_path(path, self._console.path):
            return None
        return await self._opened_console(loaded)

    # -- workers ---------------------------------------------------------------------------------------------------------

    async def _start_workers(self, loaded: Loaded) -> tuple[Sockets, list[Slot]]:
        """Starts a worker for each slot and waits until all serve. Raises ConfigError with the workers' problems; then all drain."""
        size = _size(loaded.config)
        sockets = self._sockets
        slots: list[Slot] = []
        workers: list[WorkerProcess] = []
        problems: dict[str, None] = {}  # a set that keeps the order
        try:
            sockets = self._sockets.opened(loaded.config.listen, size)
            slots = [Slot(hand) for hand in sockets.dealt(size)]
            for slot in slots:
                if self._stopping.is_set():
                    break
                workers.append(await self._spawn(slot, loaded, first=not workers))
        except OSError as error:
            problems[f"{loaded.where('listen')}: {error}"] = None
        for worker in workers:
            problems.update(dict.fromkeys(await worker.started()))
        if problems or self._stopping.is_set():
            for worker in workers:
                worker.drain(0)
            sockets.close(but=self._sockets)
            raise ConfigError(list(problems))
        return sockets, slots

    def _take_over(self, loaded: Loaded, sockets: Sockets, slots: list[Slot]) -> None:
        """Puts the new workers in force; the old ones drain."""
        drain_seconds = self._loaded.config.limits.drain_seconds
        (self._loaded, old_sockets, old_slots), self._sockets, self._slots = (loaded, self._sockets, self._slots), sockets, slots
        for slot in old_slots:
            if slot.worker is not None:
                slot.worker.drain(drain_seconds)
        old_sockets.close(but=sockets)
        if dropped := self._switches.reload(loaded.config):
            for line in dropped:
                _log.warning("the reload dropped an operator's switch: %s", line)
            self._looking.start(self._switch_workers(), "switches")
        for upstream in self._switches.without_address():
            _log.warning("upstream %s serves no new session: the reload left only addresses that drain", upstream)
        for slot in slots:
            if slot.worker is None:  # the worker died after it was ready
                self._restart(slot)

    async def _spawn(self, slot: Slot, loaded: Loaded, *, first: bool = True) -> WorkerProcess:
        """Raises OSError."""
        worker = await WorkerProcess.start(loaded, slot.sockets, self._switches.state, first)
        slot.worker = worker
        worker.on_news = lambda news: self._forward_news(worker, news)
        self._workers.add(worker)
        self._lives.start(self._live(worker, slot), f"worker {worker.pid}")
        if self._stopping.is_set():
            worker.drain(0)
        return worker

    async def _live(self, worker: WorkerProcess, slot: Slot) -> None:
        """From start to end of one worker: keeps its metrics, and replaces it unless it was told to drain."""
        status = await worker.run()
        self._workers.discard(worker)
        if slot.worker is worker:
            slot.worker = None
        if worker.last is not None:
            self._retired.add(worker.last)
        if worker.leaving:
            self._drained_worker_ended(worker, status)
            return
        lived = asyncio.get_running_loop().time() - worker.since
        if lived > STEADY_SECONDS:
            slot.pause = RESTART_FIRST_SECONDS
        if not worker.failed:
            _log.error("worker %d died by %s after %.1f s", worker.pid, how_it_ended(status), lived)
            self._audit_lost(worker, status)
        if slot in self._slots:
            self._restart(slot)

    def _drained_worker_ended(self, worker: WorkerProcess, status: int) -> None:
        cut = worker.cut if worker.drained else sessions_of(worker.last)
        if worker.drained:
            _log.info("worker %d ended, %s cut", worker.pid, counted(cut, "session", "were"))
        elif not worker.failed:
            _log.error("worker %d died by %s while it drained, with %s", worker.pid, how_it_ended(status), counted(cut, "session"))
            self._audit_lost(worker, status)
        if self._stopping.is_set():
            self._cut += cut

    def _audit_lost(self, worker: WorkerProcess, status: int) -> None:
        """Writes the audit line about the worker, as its sessions have none."""
        tell_of_lost_worker(self._loaded.config.log, self._loaded.base, worker.pid, how_it_ended(status), sessions_of(worker.last))

    def _restart(self, slot: Slot) -> None:
        """Starts the next worker after a pause, which grows because the cause may kill that one too."""
        if self._stopping.is_set():
            return
        self._restarts += 1
        pause, slot.pause = slot.pause, min(slot.pause * 2, RESTART_MOST_SECONDS)
        _log.info("the next worker starts in %g s", pause)
        self._changes.start(self._replace(slot, pause), "restart")

    async def _replace(self, slot: Slot, pause: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._stopping.wait()
        if self._stopping.is_set() or slot not in self._slots:
            return
        try:
            worker = await self._spawn(slot, self._loaded)
        except OSError as error:
            _log.error("a worker could not be started: %s", error)
            self._restart(slot)
            return
        if slot not in self._slots:  # a reload has replaced the slot in the meantime
            worker.drain(0)
        problems = await worker.started()
        if problems and not worker.leaving:
            _log.error("a worker did not start: %s", "; ".join(problems))
            worker.kill()  # in case it has not ended by itself

    # -- reload ----------------------------------------------------------------------------------------------------------

    def _on_reload(self) -> None:
        """Reloads run one at a time; however many signals arrive during one, a single reload follows it."""
        self._reload_wanted = True
        if self._slots and not self._reloading and not self._stopping.is_set():
            self._reloading = True
            self._changes.start(self._reload_while_wanted(), "reload")

    async def _reload_while_wanted(self) -> None:
        try:
            while self._reload_wanted and not self._stopping.is_set():
                self._reload_wanted = False
                systemd.notify(systemd.reloading())
                await self._reload()
                if not self._stopping.is_set():
                    systemd.notify("READY=1")
        finally:
            self._reloading = False

    async def _reload(self) -> None:
        """All or nothing: with any problem the old workers go on serving and the problems are logged; else new workers take over."""
        for worker in self._workers:
            worker.tell(messages.Reopen())
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(None, load_all, self._loaded.path)
            if self._stopping.is_set():
                return
            admin = console = None
            try:
                admin = await self._changed_admin(loaded)
                console = await self._changed_console(loaded)
                sockets, slots = await self._start_workers(loaded)
            except ConfigError:
                if admin is not None:
                    await admin.close()
                if console is not None:
                    await console.close()
                raise
        except ConfigError as error:
            if self._stopping.is_set():
                return
            for problem in error.problems:
                _log.error("reload refused: %s", problem)
            _log.error("reload refused for %s; the old configuration stays in force", counted(len(error.problems), "problem"))
            self._refused += 1
            self._refused_since = self._refused_since or time.time()
            self._refusal = error.problems[0] if error.problems else "no worker could serve"
            return
        if admin is not None and self._admin is not None:
            await self._admin.close()
            self._admin = admin
            _log.info("admin on http://%s", format_address(*admin.address))
        if console is not None and self._console is not None:
            await self._console.close()
            self._console = console
            _log.info("sessions_socket is %s", console.path)
        for address in sorted(set(sockets.addresses()) - set(self._sockets.addresses())):
            _log.info("listening on %s", address)
        if loaded.config.log != self._loaded.config.log:
            configure(loaded.config.log)
        self._take_over(loaded, sockets, slots)
        self._reloads += 1
        self._refused_since, self._refusal = 0.0, ""
        _log.info("reloaded %s", loaded.path)
        self._tell_left_out()

    def _tell_left_out(self) -> None:
        """What faulty_lines = "skip" leaves out of the keys; the workers log what is left out after a change."""
        lines = left_out(self._loaded.config.keys, self._loaded.base)
        for line in lines[:LEFT_OUT_LOGGED]:
            _log.warning("left out of the keys: %s", line)
        if len(lines) > LEFT_OUT_LOGGED:
            _log.warning("left out of the keys: %d more lines; relay check names all", len(lines) - LEFT_OUT_LOGGED)

    # -- stop ------------------------------------------------------------------------------------------------------------

    def _on_stop(self) -> None:
        self._forced = self._stopping.is_set()
        self._stopping.set()
        if self._forced:
            _log.warning("stopping at once")
        if self._forced or not self._slots:
            for worker in self._workers:
                worker.drain(0)

    async def _stop(self) -> None:
        """Drains all workers. `_spawn` drains those that a reload or restart under way still starts."""
        self._sockets.close()
        seconds = 0.0 if self._forced else self._loaded.config.limits.drain_seconds
        _log.info("draining for at most %g s", seconds)
        systemd.notify(systemd.stopping(seconds + EXIT_SECONDS))
        for switch in self._switches.all_on():
            _log.warning("upstream %s; the relay forgets that, it will not be so when it is started again", switch)
        for worker in self._workers:
            worker.drain(seconds)
        await self._changes.finish()
        await self._lives.finish()

    # -- questions -------------------------------------------------------------------------------------------------------

    async def _ready(self) -> tuple[bool, str]:
        """From the workers' answers of the last second; draining takes effect at once."""
        if self._stopping.is_set():
            return False, "draining"
        ready, why = self._readiness
        if ready and (paused := self._switches.paused()):
            return True, f"ready; paused: {', '.join(paused)}"
        return ready, why

    async def _look(self) -> None:
        """Every second: asks whether any worker is ready, and for each one's metrics, so that those of a killed worker are not lost."""
        while True:
            serving = self._serving()
            self._choose_prober(serving)
            answers = [answer for answer in await self._ask(serving, "ready", tuple[bool, str]) if answer is not None]
            why = answers[0][1] if answers else "starting"
            self._readiness = (True, "ready") if any(ready for ready, _ in answers) else (False, why)
            await self._snapshots()
            self._kill_hung()
            await asyncio.sleep(LOOK_SECONDS)

    def _serving(self) -> list[WorkerProcess]:
        return [slot.worker for slot in self._slots if slot.worker is not None and slot.worker.ready]

    def _choose_prober(self, serving: list[WorkerProcess]) -> None:
        """Chooses the one worker that probes git hosts of unknown health; only one, because hosts limit such connections."""
        chosen = next((worker for worker in serving if worker.probing), serving[0] if serving else None)
        for worker in self._workers:
            if worker.probing is not (worker is chosen):
                worker.probing = worker is chosen
                worker.tell(messages.Probe(worker.probing))

    def _forward_news(self, sender: WorkerProcess, news: colleagues.HostNews) -> None:
        """To the workers that serve the same configuration: another one may have another key for the host, or another host."""
        for worker in self._workers:
            if worker is not sender and worker.loaded is sender.loaded:
                worker.tell(messages.News(news))

    def _kill_hung(self) -> None:
        now = asyncio.get_running_loop().time()
        for worker in self._workers:
            if worker.ready and now - worker.heard > HUNG_SECONDS:
                _log.error("worker %d has not answered for %g s and is killed", worker.pid, HUNG_SECONDS)
                worker.kill()

    async def _ask(
        self, workers: list[WorkerProcess], what: messages.WorkerQuestion, kind: type[T], argument: str = "", operator: str = ""
    ) -> list[T | None]:
        return list(await asyncio.gather(*(worker.ask(what, kind, argument, operator) for worker in workers)))

    async def _snapshots(self) -> list[Snapshot]:
        workers = [worker for worker in self._workers if worker.ready]
        for worker, answer in zip(workers, await self._ask(workers, "metrics", Snapshot), strict=True):
            if answer is not None and not worker.drained:
                worker.last = answer
        return [worker.last for worker in workers if worker in self._workers and worker.last is not None]

    async def _render(self) -> bytes:
        snapshots = await self._snapshots()
        return render(
            merge(snapshots, self._retired),
            workers=len(snapshots),
            restarts=self._restarts,
            reloads=self._reloads,
            refused=self._refused,
            refused_since=self._refused_since,
            switches=self._switches.counts(),
        )

    # -- operators -------------------------------------------------------------------------------------------------------

    async def _answer_operator(self, question: Question, operator: Operator) -> Any:
        match question:
            case messages.Switch():
                return await self._switch(question, operator)
            case messages.AskWorker(what="kill" | "kill_identity" as what, argument=whom):
                return await self._kill_sessions(what, whom, operator)
            case messages.PacksRemoved(_, count, bytes, repository):
                of = f" of {plain(repository)}" if repository else ""
                _log.info("operator %s: removed %s%s: %s", operator, counted(count, "kept answer"), of, size(bytes))
                return True
            case messages.AskWorker(what="upstreams"):
                return await self._ask_upstreams()
            case _:
                return await self._ask_sessions()

    async def _switch(self, question: messages.Switch, operator: Operator) -> messages.SwitchAnswer:
        """Returns when all workers have applied it, or did not in time."""
        try:
            changed = self._switches.throw(question.action, question.upstream, question.argument, str(operator), time.time())
        except Wrong as problem:
            return messages.SwitchAnswer(problem=str(problem))
        level = logging.INFO if question.action in OFF or not changed else logging.WARNING
        done = sentence(question.action, question.upstream, question.argument)
        _log.log(level, "operator %s: %s%s", operator, done, "" if changed else "; it was so before")
        return messages.SwitchAnswer(changed=changed, late=await self._switch_workers())

    async def _switch_workers(self) -> list[int]:
        """Sends the switches to all workers, draining and starting ones included; returns the pids of those that were late."""
        workers, state = list(self._workers), self._switches.state()
        taken = await asyncio.gather(*(worker.switch(state) for worker in workers))
        late = [worker.pid for worker, took in zip(workers, taken, strict=True) if not took and not worker.gone]
        for pid in late:
            _log.error("worker %d has not applied the operator's switches for upstreams", pid)
        return late

    async def _ask_upstreams(self) -> messages.Upstreams:
        answers = await self._ask([worker for worker in self._workers if worker.ready], "upstreams", list[messages.UpstreamState])
        states = [states for states in answers if states is not None]
        return messages.Upstreams(summed(states, self._loaded.config, self._switches), answers.count(None))

    async def _ask_sessions(self) -> messages.Sessions:
        answers = await self._ask([worker for worker in self._workers if worker.ready], "sessions", list[messages.LiveSession])
        lines = [line for lines in answers if lines is not None for line in lines]
        return messages.Sessions(lines, answers.count(None), self._untaken())

    def _untaken(self) -> list[Untaken]:
        """Changes that are not in force, by the last snapshots of workers that do not drain; for each kind of change the oldest."""
        last = [slot.worker.last for slot in self._slots if slot.worker is not None]
        changes = [one for snapshot in last if snapshot is not None for one in snapshot.untaken]
        if self._refused_since:
            changes.append(Untaken("configuration", self._refused_since, f"reload refused: {self._refusal}"))
        first: dict[str, Untaken] = {}
        for one in sorted(changes, key=lambda one: one.since):
            first.setdefault(one.what, one)
        return list(first.values())

    async def _kill_sessions(self, what: messages.WorkerQuestion, whom: str, operator: Operator) -> list[str]:
        """The ids of the sessions that are being ended."""
        workers = [worker for worker in self._workers if worker.ready]
        answers = await self._ask(workers, what, list[str], whom, str(operator))
        ended = [session for answer in answers if answer is not None for session in answer]
        for session in ended:
            _log.info("session %s is ended by %s", session, operator)
        return ended


def _size(config: Config) -> int:
    return config.workers or len(os.sched_getaffinity(0))


def _same_path(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
