"""One worker process: serves the configuration that the supervisor sends over a socketpair, and answers its questions, until it drains."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import uvloop

from relay.ssh import asyncssh_import  # noqa: F401 - before what imports asyncssh

# isort: split
from relay.config.load import Loaded
from relay.errors import ConfigError, Ended
from relay.events import Observers
from relay.observe.audit import Audit
from relay.observe.log import configure
from relay.observe.metrics import LoopLag, Metrics
from relay.process import messages, native_parts
from relay.process.resources import calm_collector, fitted, keep_buffers, raise_limit, use_huge_pages
from relay.server import Server
from relay.ssh import asyncssh_pins
from relay.tasks import Tasks
from relay.upstream.colleagues import Colleagues
from relay.upstream.libssh2 import loaded_library
from relay.upstream.libssh2.descriptor import prepare
from relay.upstream.switches import Switched
from relay.wiring import build

if TYPE_CHECKING:
    from relay.observe.tracing import Tracing

NO_HOME = "/nonexistent"  # as in Debian's passwd

_log = logging.getLogger("relay.worker")


def session_lines(server: Server) -> list[messages.LiveSession]:
    """The live sessions of this process."""
    lines = []
    for connection in server.live:
        for session in connection.sessions.values():
            if session.over:
                continue
            record = session.record
            command = record.command
            lines.append(
                messages.LiveSession(
                    id=record.id,
                    identity=record.identity.name,
                    address=f"{record.connection.address}:{record.connection.port}",
                    service=command.service if command else "",
                    repository=command.repository if command else "",
                    upstream=record.upstream,
                    host=record.address,
                    seconds=time.monotonic() - record.started,
                    bytes_in=record.bytes_in,
                    bytes_out=record.bytes_out,
                    worker=os.getpid(),
                )
            )
    return lines


def kill_sessions(server: Server, operator: str, *, session_id: str = "", identity: str = "") -> list[str]:
    """Ends a session, or all of an identity, with a message to the client; returns their ids. The audit names the operator."""
    ended = []
    for connection in server.live:
        for session in list(connection.sessions.values()):
            record = session.record
            if (identity and record.identity.name == identity) or (session_id and record.id == session_id):
                detail = f"{operator or 'an operator'} ended it"
                if session.end(Ended(detail, message="relay: the session was ended by an operator", reason="killed")):
                    ended.append(record.id)
    return ended


def upstream_states(server: Server) -> list[messages.UpstreamState]:
    """The upstreams and the connections of this process to their addresses."""
    states = []
    for name, pool in server.pools.items():
        addresses = [messages.AddressState(one.address, one.up, one.leased, one.idle, one.dialing) for one in pool.table()]
        states.append(messages.UpstreamState(name, pool.waiting, addresses))
    return states


class Worker:
    """Serves and answers the supervisor until it is told to drain, or the supervisor has ended."""

    def __init__(
        self,
        loaded: Loaded,
        sockets: list[socket.socket],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        first: bool,
        switches: Switched,
    ) -> None:
        self._loaded = loaded
        self._sockets = sockets
        self._switches = switches  # at the start
        self._reader = reader
        self._writer = writer
        self._metrics = Metrics(loaded.config, str(loaded_library()), native_parts.used())
        self._audit = Audit(loaded.config.log.audit, loaded.config.log.format, loaded.base, self._metrics.change_reported)
        self._colleagues = Colleagues()
        self._first = first
        self._drain_seconds: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def run(self) -> int:
        """Returns the exit status 0 once drained; raises ConfigError or OSError when it cannot start."""
        self._colleagues.connect(lambda news: messages.write(self._writer, messages.News(news)), first=self._first)
        required = self._loaded.config.log.audit_required
        tracing = self._tracing()
        observers = Observers([self._metrics, self._audit, *([] if tracing is None else [tracing])])
        server = build(self._loaded, observers, self._colleagues, self._audit.begin if required else None)
        if required:
            server.unaudited = lambda: self._audit.unwritable
        self._metrics.pool_states = server.pool_states
        self._metrics.packs_state = server.packs_state
        self._metrics.host_certificates_end = server.host_certificates_end
        self._metrics.keys_left_out = server.keys_left_out
        server.set_switches(self._switches)
        await server.start(self._sockets)
        lag = LoopLag(self._metrics)
        lag.start()
        tasks = Tasks()
        tasks.start(self._listen(server), "control")
        use_huge_pages()
        messages.write(self._writer, messages.Ready())
        cut = await server.drain(await self._drain_seconds)
        await server.stop()
        await lag.stop()
        if tracing is not None:
            await tracing.close()
        await send_last(self._writer, messages.Drained(cut, messages.raw(self._metrics.snapshot())))
        await tasks.cancel()
        self._audit.close()
        return 0

    def _tracing(self) -> Tracing | None:
        """Imports what it needs, which is much and an extra, only where [tracing] is there."""
        settings = self._loaded.config.tracing
        if settings is None:
            return None
        from relay.observe.tracing import Tracing

        return Tracing(settings, self._loaded.base, self._metrics.spans_sent)

    async def _listen(self, server: Server) -> None:
        while (message := await messages.read(self._reader)) is not None:
            match message:
                case messages.Drain(seconds):
                    self._drain(seconds, server)
                case messages.Reopen():
                    self._audit.reopen()
                case messages.Probe(yes):
                    self._colleagues.probing = yes
                case messages.News(host):
                    self._colleagues.told(host)
                case messages.SetSwitches(number, switches):
                    server.set_switches(switches)
                    messages.write(self._writer, messages.Answer(number, messages.raw(True)))
                case messages.AskWorker(number, what, argument, operator):
                    messages.write(self._writer, messages.Answer(number, self._answer(what, argument, operator, server)))
                    await self._writer.drain()
                case _:
                    raise ValueError(f"the supervisor sent {type(message).__name__}")
        _log.warning("the supervisor has ended; draining")
        self._drain(self._loaded.config.limits.drain_seconds, server)

    def _drain(self, seconds: float, server: Server) -> None:
        """Begins to drain; a second call can only shorten the time."""
        if not self._drain_seconds.done():
            self._drain_seconds.set_result(seconds)
        else:
            server.hurry(seconds)

    def _answer(self, what: messages.WorkerQuestion, argument: str, operator: str, server: Server) -> msgspec.Raw:
        match what:
            case "metrics":
                return messages.raw(self._metrics.snapshot())
            case "ready":
                return messages.raw(server.ready())
            case "sessions":
                return messages.raw(session_lines(server))
            case "kill":
                return messages.raw(kill_sessions(server, operator, session_id=argument))
            case "kill_identity":
                return messages.raw(kill_sessions(server, operator, identity=argument))
            case "upstreams":
                return messages.raw(upstream_states(server))


async def send_last(writer: asyncio.StreamWriter, message: messages.Message) -> None:
    """Sends the worker's last message; logs when the supervisor has ended."""
    messages.write(writer, message)
    try:
        await writer.drain()
    except ConnectionError:
        _log.warning("the supervisor had ended before this worker could report its end")


async def serve(path: Path, control_fd: int, listen_fds: list[int]) -> int:
    """Runs the worker, from the supervisor's Start message to the end; returns the exit status: 0 drained, 1 could not start."""
    sockets = [socket.socket(fileno=fd) for fd in (control_fd, *listen_fds)]
    for sock in sockets:
        sock.set_inheritable(False)  # programs that backends run must not inherit it
    reader, writer = await asyncio.open_connection(sock=sockets.pop(0))
    try:
        start = await messages.read(reader)
        if not isinstance(start, messages.Start):
            return 1  # the supervisor ended before it sent Start
        handler = configure(start.config.log)
        keep_buffers()
        calm_collector()
        try:
            prepare()
            asyncssh_pins.settle()  # the supervisor has logged what it returns
            loaded = Loaded(path, fitted(start.config, raise_limit()))
            return await Worker(loaded, sockets, reader, writer, start.first, start.switches).run()
        except (ConfigError, OSError) as error:
            await send_last(writer, messages.Failed(error.problems if isinstance(error, ConfigError) else [str(error)]))
            return 1
        finally:
            handler.close()
    finally:
        writer.close()


def ensure_home() -> None:
    """Sets $HOME where the user has no home folder, as in a container: asyncssh fails without one, though it reads nothing there."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = NO_HOME


def main() -> int:
    """The entry of a worker process; only the supervisor starts one."""
    ensure_home()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the supervisor handles them and messages its workers
    signal.pthread_sigmask(
        signal.SIG_SETMASK, ()
    )  # uvloop lets a child inherit blocked signals, and programs of backends would inherit them too
    parser = argparse.ArgumentParser(prog="relay.worker", description="a worker of relay serve; started by it")
    parser.add_argument("config", type=Path)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--listen", type=int, nargs="*", default=[])
    given = parser.parse_args()
    return int(uvloop.run(serve(given.config, given.control, given.listen)))


if __name__ == "__main__":
    sys.exit(main())
