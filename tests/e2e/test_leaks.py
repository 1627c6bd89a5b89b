"""A thousand sessions that go wrong in every way leave nothing behind: no descriptor, no memory, no task, no libssh2 session."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import logging
import termios
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from relay.config.load import load_config
from relay.connection import ConnectionHandler
from relay.events import Observer, Outcome, SessionRecord
from relay.process.sockets import bind
from relay.session import Session
from relay.splice import Splice
from relay.ssh.client_connection import ClientConnection
from relay.upstream.libssh2 import Connection
from relay.upstream.libssh2.binding import Session as LibSSH2Session
from relay.upstream.libssh2.tcp import ioctl_int
from relay.wiring import build
from tests.e2e.faults import BUFFER_BYTES, MIB, settled_async, small_buffers
from tests.e2e.helpers import stands_still
from tests.support.faultlink import Action, Direction, Link
from tests.support.faultproxy import FaultProxy
from tests.support.keys import Key
from tests.support.pattern import stub_bytes
from tests.support.relay_process import RelayProcess, upstream
from tests.support.sshclient import connect, run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async

WARM_UP, ROUNDS = 200, 1000
AT_ONCE = 6
RSS_ALLOWED = 24 * MIB  # fragments: growth stops after 3,000 rounds; one leaked upstream connection in ten rounds is more
HEAP_ALLOWED = 3 * MIB  # of malloc's bytes in use, which vary by 1 MiB; half of what a leak of one half-sent packet in twenty rounds left
REUSE = 20  # sessions on one client connection

pytestmark = [pytest.mark.xdist_group("leaks"), pytest.mark.slow]

WELL = "well"


@dataclass(frozen=True)
class Bad:
    """An upstream whose link does `action` after `at` bytes in `direction`, and the repository on it."""

    at: int
    action: Action
    direction: Direction
    repository: str


BAD = {
    "key_exchange": Bad(700, "cut", "down", "stub/exit/1"),
    "login": Bad(1_750, "reset", "down", "stub/exit/2"),
    "transfer": Bad(500_000, "reset", "down", "stub/emit/2000000"),
    "stuck": Bad(200_000, "stall", "up", "stub/checksum"),
    "silent": Bad(0, "stall", "down", "stub/exit/3"),
}


@dataclass
class Rig:
    """Clients of a relay in front of links with faults; `port` is the relay's."""

    proxies: dict[str, FaultProxy]
    key: Key
    stranger: Key
    host_key_line: str
    port: int = 0
    dialling: asyncio.Lock = field(default_factory=asyncio.Lock)

    def connection(self, key: Key | None = None) -> Any:
        return connect(self.port, [key or self.key], self.host_key_line, user="git")

    def cut(self) -> None:
        """Ends idle connections and stalled links."""
        for proxy in self.proxies.values():
            proxy.cut()

    async def rounds(self, numbers: list[int]) -> None:
        """Runs AT_ONCE rounds at a time; raises the first unexpected result."""
        kinds = [
            self.clean,
            self.refused,
            self.key_exchange,
            self.login,
            self.transfer,
            self.stuck,
            self.silent,
            self.left,
            self.unknown,
        ]
        queue = iter(numbers)

        async def worker() -> None:
            batch = list(itertools.islice(queue, REUSE))
            while batch:
                async with self.connection() as connection:
                    for number in batch:
                        await kinds[number % len(kinds)](connection)
                batch = list(itertools.islice(queue, REUSE))

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(worker())

    # -- one round each, which asserts how its session ends

    async def clean(self, connection: asyncssh.SSHClientConnection) -> None:
        result = await run(connection, "git-upload-pack 'stub/emit/300000/37'")
        assert (result.exit_status, len(result.stdout)) == (37, 300_000)

    async def refused(self, connection: asyncssh.SSHClientConnection) -> None:
        assert (await run(connection, "ls -l")).exit_status == 128

    async def key_exchange(self, connection: asyncssh.SSHClientConnection) -> None:
        assert (await run(connection, "git-upload-pack 'stub/exit/1'")).exit_status == 255

    async def login(self, connection: asyncssh.SSHClientConnection) -> None:
        assert (await run(connection, "git-upload-pack 'stub/exit/2'")).exit_status == 255

    async def transfer(self, connection: asyncssh.SSHClientConnection) -> None:
        result = await run(connection, "git-upload-pack 'stub/emit/2000000'")
        assert result.exit_status == 255 and stub_bytes(2_000_000).startswith(result.stdout)

    async def stuck(self, _: asyncssh.SSHClientConnection) -> None:
        """The client leaves while a packet of its push is partly sent."""
        async with self.connection() as own:
            stuck = self.proxies["stuck"]
            async with self.dialling:
                dials = stuck.accepted
                process = await own.create_process("git-receive-pack 'stub/checksum'", encoding=None)
                await wait_until_async(lambda: stuck.accepted > dials, message="the relay dials")
                link = stuck.links[-1]
            process.stdin.write(bytes(MIB))
            await wait_until_async(lambda: link.up is not None and link.up.faults.stalled, message="the link stands still")
            await wait_until_async(stands_still(lambda: unread(link), times=5), message="the relay can send no more")
            own.abort()

    async def silent(self, _: asyncssh.SSHClientConnection) -> None:
        """The client leaves while the git host is dialled."""
        async with self.connection() as own:
            dials = self.proxies["silent"].accepted
            await own.create_process("git-upload-pack 'stub/exit/3'", encoding=None)
            await wait_until_async(lambda: self.proxies["silent"].accepted > dials, message="the relay dials")
            own.abort()

    async def left(self, _: asyncssh.SSHClientConnection) -> None:
        """The client leaves in the middle of a transfer."""
        async with self.connection() as own:
            process = await own.create_process("git-upload-pack 'stub/emit/20000000'", encoding=None)
            assert await process.stdout.read(1000)
            own.abort()

    async def unknown(self, _: asyncssh.SSHClientConnection) -> None:
        with pytest.raises(asyncssh.PermissionDenied):
            async with self.connection(self.stranger):
                pass


def unread(link: Link) -> int:
    """Bytes that the relay has sent to a link that does not read."""
    return ioctl_int(link.client.fileno(), termios.FIONREAD)


@asynccontextmanager
async def rig(sshd: Sshd, process: RelayProcess, stranger: Key) -> AsyncIterator[Rig]:
    """The links; `process` gets their upstreams and routes, and is not started."""
    async with AsyncExitStack() as stack:
        proxies = {name: await stack.enter_async_context(FaultProxy("127.0.0.1", sshd.port)) for name in [*BAD, WELL]}
        for name, bad in BAD.items():
            proxies[name].at(bad.at, bad.action, bad.direction, scope="new")
        pool = {"idle_connections": 0, "connections_max": 2 * AT_ONCE, "connect_seconds": 30}  # no session waits: each dials
        pool["health_seconds"] = 0  # a check that hangs would hold a descriptor while the test counts them
        process.config["upstreams"] = {name: {**upstream(sshd, port=proxy.port), **pool} for name, proxy in proxies.items()}
        process.write_config({"limits": {"sessions_per_connection": 100}})
        path = f"{sshd.root}/{{repository}}.git"
        routes = [{"repositories": bad.repository, "upstream": name, "path": path} for name, bad in BAD.items()]
        process.write_routes({"route": [*routes, {"repositories": "**", "upstream": WELL, "path": path}]})
        yield Rig(proxies, process.key, stranger, process.host_key_line)


async def nobody(relay: RelayProcess) -> int:
    """Waits until the relay has no client and no upstream connection; returns how many descriptors it has."""

    def gone() -> int:
        assert relay.metric("relay_connections_open") == 0
        assert relay.metric("relay_upstream_connections") == 0
        return relay.fds()

    return await wait_until_async(lambda: asyncio.to_thread(gone), message="nobody is left")


async def test_a_thousand_rounds_of_a_process(sshd: Sshd, tmp_path: Path, key: Key) -> None:
    relay = RelayProcess(sshd, env=small_buffers(tmp_path))
    async with rig(sshd, relay, key) as it:
        with relay:
            it.port = relay.port
            await it.rounds(list(range(WARM_UP)))
            it.cut()
            descriptors, rss = await nobody(relay), relay.rss()
            await it.rounds(list(range(WARM_UP, ROUNDS)))
            it.cut()
            after = await nobody(relay)
            grown = relay.rss() - rss
            print(f"{ROUNDS - WARM_UP} rounds: {grown / 1024:.0f} KiB more, {after} descriptors")
            assert after == descriptors
            assert grown < RSS_ALLOWED
            await settled_async(relay)
        lines = [line for line in relay.audit_lines() if line["event"] == "session"]
        assert len({line["session"] for line in lines}) == len(lines)


class Counting(Observer):
    """How often the observer got the end of a session."""

    def __init__(self) -> None:
        self.ends: dict[str, int] = {}

    def session_started(self, session: SessionRecord) -> None:
        assert session.id not in self.ends
        self.ends[session.id] = 0

    def session_ended(self, session: SessionRecord, outcome: Outcome) -> None:
        self.ends[session.id] += 1


def objects(*kinds: type) -> list[Any]:
    """Objects of these classes that are still referenced, if only by a cycle."""
    return [thing for thing in gc.get_objects() if isinstance(thing, kinds)]


def alive(*kinds: type, but: list[Any]) -> dict[str, int]:
    """How many there are of each class, without those in `but`."""
    known = {id(thing) for thing in but}
    found = [type(thing).__name__ for thing in objects(*kinds) if id(thing) not in known]
    return {name: found.count(name) for name in set(found)}


async def test_no_object_is_left_in_a_process(
    sshd: Sshd, tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The relay in this process leaves no task, no session of libssh2 even before a garbage collection, and no connection after one."""
    monkeypatch.setattr("relay.upstream.libssh2.tcp.SEND_BUFFER_BYTES", BUFFER_BYTES)
    caplog.set_level(logging.CRITICAL, "relay")  # caplog would keep every record
    gc.collect()
    # other tests of this process leave some behind: an error that is a parameter keeps its traceback, and so the frames
    before = objects(LibSSH2Session, Connection, ConnectionHandler, ClientConnection, Session, Splice)
    settings, counting = RelayProcess(sshd, tmp_path / "relay"), Counting()
    async with rig(sshd, settings, key) as it:
        server = build(load_config(settings.config_file), counting)
        sock = bind("127.0.0.1", 0)
        it.port = sock.getsockname()[1]
        await server.start([sock])
        tasks = tasks_of_the_relay()
        used = []
        for rounds in (range(90), range(90, 270)):
            gc.collect()
            gc.disable()
            try:
                await it.rounds(list(rounds))
                it.cut()
                await wait_until_async(lambda: not server.live and not occupied(server.pool_states()), message="nobody is left")
                await wait_until_async(lambda: tasks_of_the_relay() == tasks, message="no task is left")
                assert alive(LibSSH2Session, Connection, but=before) == {}
            finally:
                gc.enable()
            gc.collect()
            assert alive(ConnectionHandler, ClientConnection, Session, Splice, but=before) == {}
            used.append(heap())
        print(f"180 rounds: {(used[1] - used[0]) / 1024:.0f} KiB more in use")
        assert used[1] - used[0] < HEAP_ALLOWED
        assert set(counting.ends.values()) == {1}
        await server.stop()


class MallInfo2(ctypes.Structure):
    """The struct of mallinfo2(3); uordblks and hblkhd are the bytes in use."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def heap() -> int:
    """Bytes that malloc has given out in this process: libssh2's and OpenSSL's, and Python's larger objects."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallInfo2
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def occupied(states: dict[str, dict[str, int]]) -> bool:
    return any(any(pool.values()) for pool in states.values())


def tasks_of_the_relay() -> set[str]:
    """Their names, without the tests' own tasks, such as the links'."""
    found = set()
    for task in asyncio.all_tasks():
        code = getattr(task.get_coro(), "cr_code", None)
        if code is None or "/tests/" not in code.co_filename:
            found.add(task.get_name())
    return found
