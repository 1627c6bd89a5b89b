"""One worker process: builds a server from the configuration, and answers the supervisor over a socketpair until told to drain."""

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

import asyncssh
import msgspec
import uvloop

from relay import control
from relay.access import open_access
from relay.audit import Audit
from relay.descriptors import fitted, raise_limit
from relay.errors import ConfigError, Ended
from relay.events import Observer, Observers
from relay.keys import open_certificates, open_keys
from relay.load import Loaded
from relay.log import configure
from relay.memory import calm_collector, keep_buffers
from relay.metrics import LoopLag, Metrics
from relay.routes import open_routes
from relay.server import Server
from relay.shared import open_shared
from relay.tasks import Tasks
from relay.upstream.colleagues import Colleagues
from relay.upstream.descriptor import prepare
from relay.upstream.identities import IdentityPools
from relay.upstream.libssh2 import library
from relay.upstream.opened import open_pool
from relay.upstream.pool import Pool

NO_HOME = "/nonexistent"  # as in Debian's passwd

_log = logging.getLogger("relay.worker")


def build(loaded: Loaded, observer: Observer, colleagues: Colleagues | None = None) -> Server:
    """The parts of one worker, wired. Raises ConfigError, with every problem, for what cannot be read."""
    config, base = loaded.config, loaded.base
    problems: list[str] = []
    host_keys = []
    for name in config.host_keys:
        try:
            host_keys.append(asyncssh.read_private_key(base / name))
        except (OSError, asyncssh.KeyImportError) as error:
            problems.append(f"{loaded.where('host_keys')}: {base / name}: {error}")
    pools: dict[str, Pool | IdentityPools] = {}
    for name, upstream in config.upstreams.items():
        try:
            pools[name] = open_pool(name, upstream, loaded.in_upstream(name), base, observer, colleagues)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    shared = open_shared(config.shared, config.limits, config.keys, base, observer)
    keys = open_keys(config.keys, base, observer, shared.answers if shared is not None else None)
    return Server(
        config,
        host_keys,
        keys,
        open_certificates(config.certificates, base, config.user, keys.lines),
        open_access(config.access, base, observer, upstreams=config.upstreams, folded=config.folds),
        open_routes(config.routes, base, config.upstreams, observer, ignoring=config.ignoring),
        pools,
        observer,
        shared,
    )


def session_lines(server: Server) -> list[control.SessionLine]:
    """The live sessions of this process."""
    lines = []
    for connection in server.live:
        for session in connection.sessions.values():
            if session.over:
                continue
            record = session.record
            command = record.command
            lines.append(
                control.SessionLine(
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


def kill_session(server: Server, session_id: str) -> bool:
    """Ends one session with a message; False when it is not of this process."""
    for connection in server.live:
        for session in list(connection.sessions.values()):
            if session.record.id == session_id:
                return session.end(Ended("an operator ended it", message="relay: the session was ended by an operator", reason="killed"))
    return False


class Worker:
    """Serves until it is told to drain, or until the supervisor is gone; answers questions all the while."""

    def __init__(self, loaded: Loaded, sockets: list[socket.socket], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._loaded = loaded
        self._sockets = sockets
        self._reader = reader
        self._writer = writer
        self._metrics = Metrics(loaded.config, str(library()))
        self._audit = Audit(loaded.config.log.audit, loaded.config.log.format, loaded.base, self._metrics.change_told)
        self._colleagues = Colleagues()
        self._drain_seconds: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def run(self) -> int:
        """Returns the process's exit status: 0 drained, 1 could not start."""
        self._colleagues.connect(lambda news: control.write(self._writer, control.News(news)))
        server = build(self._loaded, Observers([self._metrics, self._audit]), self._colleagues)
        self._metrics.pool_states = server.pool_states
        await server.start(self._sockets)
        lag = LoopLag(self._metrics)
        lag.start()
        tasks = Tasks()
        tasks.start(self._listen(server), "control")
        control.write(self._writer, control.Ready())
        cut = await server.drain(await self._drain_seconds)
        await server.stop()
        await lag.stop()
        await tell(self._writer, control.Drained(cut, control.raw(self._metrics.snapshot())))
        await tasks.cancel()
        self._audit.close()
        return 0

    async def _listen(self, server: Server) -> None:
        while (message := await control.read(self._reader)) is not None:
            match message:
                case control.Drain(seconds):
                    self._drain(seconds, server)
                case control.Reopen():
                    self._audit.reopen()
                case control.Probe(yes):
                    self._colleagues.probing = yes
                case control.News(host):
                    self._colleagues.told(host)
                case control.Ask(number, what, argument):
                    control.write(self._writer, control.Answer(number, self._answer(what, argument, server)))
                    await self._writer.drain()
                case _:
                    raise ValueError(f"the supervisor sent {type(message).__name__}")
        _log.warning("the supervisor is gone; draining")
        self._drain(self._loaded.config.limits.drain_seconds, server)

    def _drain(self, seconds: float, server: Server) -> None:
        """A second time shortens the first."""
        if not self._drain_seconds.done():
            self._drain_seconds.set_result(seconds)
        else:
            server.hurry(seconds)

    def _answer(self, what: control.Question, argument: str, server: Server) -> msgspec.Raw:
        match what:
            case "metrics":
                return control.raw(self._metrics.snapshot())
            case "ready":
                return control.raw(server.ready())
            case "sessions":
                return control.raw(session_lines(server))
            case "kill":
                return control.raw(kill_session(server, argument))


async def tell(writer: asyncio.StreamWriter, message: control.Message) -> None:
    """A last word, which the supervisor may be too dead to hear."""
    control.write(writer, message)
    try:
        await writer.drain()
    except ConnectionError:
        _log.warning("the supervisor was gone before this worker's last word")


async def serve(path: Path, control_fd: int, listen_fds: list[int]) -> int:
    """The life of a worker process, from the supervisor's first word on."""
    sockets = [socket.socket(fileno=fd) for fd in (control_fd, *listen_fds)]
    for sock in sockets:
        sock.set_inheritable(False)  # for backends that run programs
    reader, writer = await asyncio.open_connection(sock=sockets.pop(0))
    try:
        start = await control.read(reader)
        if not isinstance(start, control.Start):
            return 1  # the supervisor was gone before it could say a word
        handler = configure(start.config.log)
        keep_buffers()
        calm_collector()
        try:
            prepare()
            return await Worker(Loaded(path, fitted(start.config, raise_limit())), sockets, reader, writer).run()
        except (ConfigError, OSError) as error:
            await tell(writer, control.Failed(error.problems if isinstance(error, ConfigError) else [str(error)]))
            return 1
        finally:
            handler.close()
    finally:
        writer.close()


def have_home() -> None:
    """asyncssh asks for a home folder, though it reads nothing there; the user of a service or a container may have none."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = NO_HOME


def main() -> int:
    """The entry of a worker process; only the supervisor starts one."""
    have_home()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the supervisor hears them and tells its workers
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # uvloop starts a child with its parent's blocked ones, and so on to a program's
    parser = argparse.ArgumentParser(prog="relay.worker", description="a worker of relay serve; started by it")
    parser.add_argument("config", type=Path)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--listen", type=int, nargs="*", default=[])
    given = parser.parse_args()
    return int(uvloop.run(serve(given.config, given.control, given.listen)))


if __name__ == "__main__":
    sys.exit(main())
