"""The supervisor's handle of one worker: the child process, the socketpair to it, and its last snapshot."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from relay.config.load import Loaded
from relay.observe.snapshot import Snapshot
from relay.process import messages
from relay.upstream import colleagues
from relay.upstream.switches import UpstreamSwitches

START_SECONDS = 60.0  # for a worker to send Ready
ANSWER_SECONDS = 2.0  # for a worker to answer a question
SWITCH_SECONDS = 10.0  # for a worker to apply the operator's switches; one that starts does so once it serves
EXIT_SECONDS = 10.0  # after its drain time, for a worker to end by itself; then it is killed

T = TypeVar("T")

_log = logging.getLogger("relay.supervisor")


_HOME = Path(__file__).resolve().parents[2]  # where this `relay` is imported from


def _safe_path() -> list[str]:
    """Options of Python that keep a worker from importing what lies in the current folder, as another package with the name relay.

    `python -m` puts that folder in front of all others. Where the relay itself is imported from there, it has to.
    """
    try:
        return [] if Path.cwd().resolve() == _HOME else ["-P"]
    except FileNotFoundError:  # the folder was removed
        return ["-P"]


class WorkerProcess:
    """Created by `start`; `run` must be awaited once, and returns when the process has ended."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, loaded: Loaded
    ) -> None:
        loop = asyncio.get_running_loop()
        self.loaded = loaded  # what it serves
        self.pid = process.pid
        self.since = self.heard = loop.time()  # when the process was started, and when it sent its last message
        self.leaving = False  # it was told to drain, so its end is expected
        self.cut = 0  # sessions that it had to end, from Drained
        self.last: Snapshot | None = None  # its last metrics
        self.drained = False  # it sent Drained
        self.probing = False  # it was told to probe git hosts
        self.on_news: Callable[[colleagues.HostNews], None] = lambda news: None  # called for its News
        self.failed = False  # it sent Failed
        self._process = process
        self._reader = reader
        self._writer = writer
        self._ready: asyncio.Future[list[str]] = loop.create_future()
        self._questions: dict[int, asyncio.Future[msgspec.Raw | None]] = {}
        self._number = 0
        self._kill: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "leaving" if self.leaving else "serving" if self.ready else "starting"
        return f"<worker {self.pid} {state}>"

    @classmethod
    async def start(
        cls, loaded: Loaded, sockets: list[socket.socket], switches: Callable[[], dict[str, UpstreamSwitches]], first: bool = True
    ) -> WorkerProcess:
        """Starts a worker that serves `loaded` on duplicates of `sockets`; `first` as in messages.Start.

        `switches` is called in the step in which this returns: the caller can tell the worker of every later change.
        Raises OSError when processes or descriptors run out.
        """
        ours, theirs = socket.socketpair()
        fds = [sock.fileno() for sock in sockets]
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *[sys.executable, *_safe_path(), "-m", "relay.process.worker", str(loaded.path)],
                    *["--control", str(theirs.fileno()), "--listen", *map(str, fds)],
                    pass_fds=[theirs.fileno(), *fds],
                    stdin=asyncio.subprocess.DEVNULL,
                    start_new_session=True,  # so that Ctrl-C in a terminal signals the supervisor only
                )  # fmt: skip
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:  # including a cancellation
            ours.close()  # a worker that was started nevertheless reads EOF and ends
            raise
        worker = cls(process, reader, writer, loaded)
        worker.tell(messages.Start(loaded.config, first, switches()))
        return worker

    @property
    def ready(self) -> bool:
        """Whether it has sent Ready."""
        return self._ready.done() and not self._ready.result()

    @property
    def gone(self) -> bool:
        """Whether it has closed its end of the socketpair: it has ended, or is about to."""
        return self._writer.is_closing()

    async def started(self) -> list[str]:
        """Waits until the worker serves, or cannot; returns the problems, one line each, and an empty list when it serves."""
        done, _ = await asyncio.wait([self._ready], timeout=START_SECONDS)
        return self._ready.result() if done else [f"worker {self.pid} was not ready within {START_SECONDS:g} s"]

    async def run(self) -> int:
        """Handles the worker's messages until it has ended; returns its exit status, or the negated number of the signal that ended it."""
        try:
            await self._listen()
        except ValueError as error:
            _log.error("worker %d sent an invalid message: %s", self.pid, error)
        finally:
            self._set_ready([f"worker {self.pid} ended before it was ready"])
            for question in self._questions.values():
                if not question.done():
                    question.set_result(None)
            self._writer.close()
        self._kill_within(EXIT_SECONDS)
        status = await self._process.wait()
        if self._kill is not None:
            self._kill.cancel()
        return status

    def tell(self, message: messages.Message) -> None:
        if not self.gone:
            messages.write(self._writer, message)

    async def ask(self, what: messages.WorkerQuestion, kind: type[T], argument: str = "", operator: str = "") -> T | None:
        """The worker's answer; None when it does not answer within ANSWER_SECONDS, or ends."""
        body = await self._answer(lambda number: messages.AskWorker(number, what, argument, operator), ANSWER_SECONDS, what)
        return msgspec.msgpack.decode(body, type=kind) if body is not None else None

    async def switch(self, switches: dict[str, UpstreamSwitches]) -> bool:
        """Whether the worker has applied the switches: False when it does not say so within SWITCH_SECONDS, or ends."""
        return await self._answer(lambda number: messages.SetSwitches(number, switches), SWITCH_SECONDS, "switches") is not None

    async def _answer(self, question: Callable[[int], messages.Message], seconds: float, what: str) -> msgspec.Raw | None:
        """The body of the answer to `question`, which gets a number; None when there is none within `seconds`, or the worker ends."""
        if self.gone:
            return None
        self._number += 1
        number = self._number
        answer: asyncio.Future[msgspec.Raw | None] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        self.tell(question(number))
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            _log.warning("worker %d did not answer %r within %g s", self.pid, what, seconds)
            return None
        finally:
            del self._questions[number]

    def drain(self, seconds: float) -> None:
        """Tells the worker to accept no more connections and to end within `seconds`; a second call can only shorten that."""
        self.leaving = True
        self.tell(messages.Drain(seconds))
        self._kill_within(seconds + EXIT_SECONDS)

    def kill(self) -> None:
        """SIGKILL; its sessions end with it."""
        if self._process.returncode is None:
            self._process.kill()

    def _kill_within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._kill is None or self._kill.when() > loop.time() + seconds:
            if self._kill is not None:
                self._kill.cancel()
            self._kill = loop.call_later(seconds, self._kill_overdue)

    def _kill_overdue(self) -> None:
        if self._process.returncode is None:
            _log.error("worker %d did not end in time and is killed", self.pid)
            self.kill()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        while (message := await messages.read(self._reader)) is not None:
            self.heard = loop.time()
            match message:
                case messages.Ready():
                    self._set_ready([])
                case messages.Failed(problems):
                    self.failed = True
                    self._set_ready(problems)
                case messages.Drained(cut, metrics):
                    self.drained = True
                    self.cut = cut
                    self.last = msgspec.msgpack.decode(metrics, type=Snapshot)
                case messages.News(host):
                    self.on_news(host)
                case messages.Answer(number, body):
                    question = self._questions.get(number)
                    if question is not None and not question.done():
                        question.set_result(body)
                case _:
                    raise ValueError(type(message).__name__)

    def _set_ready(self, problems: list[str]) -> None:
        if not self._ready.done():
            self._ready.set_result(problems)


def how_it_ended(status: int) -> str:
    """`status 1` or `signal SIGKILL`, for logs."""
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"  # a real-time signal has no name


def sessions_of(snapshot: Snapshot | None) -> int:
    """The number of sessions that were open when the snapshot was taken."""
    families: list[Any] = [family for family in snapshot.families if family.name == "relay_sessions_open"] if snapshot is not None else []
    return int(sum(value for family in families for _, _, value in family.samples))
