"""Helpers of the upstream tests: a receiver of a command's output, the test sshd's login, a cancellation at a chosen step."""

from __future__ import annotations

import asyncio
import select
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

from relay.errors import RelayError
from relay.events import Observer, WaitsFor
from relay.model import Exit
from relay.upstream.hostkeys import parse_pinned
from relay.upstream.libssh2 import Connection, Login
from relay.upstream.pool import Pool
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async

T = TypeVar("T")
Dial = Callable[..., Awaitable[Connection]]
Make = Callable[..., Pool]
MIB = 1 << 20
EMPTY = {"idle": 0, "leased": 0, "dialing": 0, "waiting": 0}


def login(sshd: Sshd, **changes: Any) -> Login:
    """The login that the test sshd accepts."""
    known = {"user": sshd.user, "private_key": sshd.key.private.read_bytes(), "host_keys": parse_pinned([sshd.host_key_line])[0]}
    return Login(**{**known, **changes})


class Receiver:
    """A connection's peer that keeps all output; `ended` is how the command ended."""

    def __init__(self, connection: Connection) -> None:
        self.stdout, self.stderr = bytearray(), bytearray()
        self.accepted = 0
        self.most_unread = 0
        self.full = False  # its answer to each piece of output
        self.eof = False
        self.ended: asyncio.Future[Exit | RelayError] = asyncio.get_running_loop().create_future()
        connection.attach(self)

    def upstream_data(self, data: memoryview) -> None:
        assert not self.ended.done(), "data after the end"
        self.stdout += data

    def upstream_stderr(self, data: memoryview) -> None:
        assert not self.ended.done(), "stderr after the end"
        self.stderr += data

    def upstream_unread(self, count: int) -> bool:
        self.most_unread = max(self.most_unread, count)
        return self.full

    owed: float | None = None

    def give_way(self) -> bool:
        return False

    def upstream_accepted(self) -> None:
        self.accepted += 1

    def upstream_eof(self) -> None:
        assert not self.eof and not self.ended.done()
        self.eof = True

    def upstream_ended(self, how: Exit | RelayError) -> None:
        self.ended.set_result(how)  # raises if called twice


def readable(connection: Connection) -> bool:
    """Whether the connection's socket has unread input."""
    return bool(select.select([connection._fd], [], [], 0)[0])


async def started(connection: Connection, command: str, *environment: tuple[str, str]) -> Receiver:
    await connection.run(command, list(environment))
    return Receiver(connection)


async def end(receiver: Receiver) -> Exit | RelayError:
    async with asyncio.timeout(60):
        return await receiver.ended


class Seen(Observer):
    """An observer that keeps the events of a pool."""

    def __init__(self) -> None:
        self.dialed: list[tuple[str, str]] = []  # address, result
        self.warm: list[bool] = []  # of each lease
        self.health: list[tuple[str, bool]] = []  # address, up
        self.waits: list[str] = []  # what each session in line waits for

    def upstream_dialed(self, upstream: str, address: str, result: str, seconds: float, detail: str = "") -> None:
        self.dialed.append((address, result))

    def upstream_leased(self, upstream: str, seconds: float, warm: bool) -> None:
        self.warm.append(warm)

    def upstream_waited(self, upstream: str, waits_for: WaitsFor, seconds: float) -> None:
        assert seconds >= 0
        self.waits.append(waits_for)

    def upstream_health(self, upstream: str, address: str, up: bool, detail: str = "") -> None:
        self.health.append((address, up))

    @property
    def results(self) -> list[str]:
        return [result for _, result in self.dialed]


async def stands(pool: Pool, **states: int) -> None:
    await wait_until_async(lambda: pool.states == {**EMPTY, **states}, message=f"{pool} has {states}")


async def serve(pool: Pool, command: str, stay: asyncio.Event | None = None, repository: str = "") -> Connection:
    """Runs one session of `exit/7`; with `stay` it holds the lease until that is set."""
    async with pool.lease(command, [], repository) as connection:
        if stay is not None:
            await stay.wait()
        assert await Receiver(connection).ended == Exit(status=7)
        return connection


@types.coroutine
def cancelled_at(work: Coroutine[Any, Any, T], step: int) -> Generator[Any, Any, T]:
    """Runs `work` in the current task, which is cancelled when `work` is suspended for the `step`th time."""
    argument: Any = None
    failures: list[BaseException] = []  # popped: a reference in a frame of the traceback would keep error and task until a collection
    while True:
        try:
            waits_for = work.throw(failures.pop()) if failures else work.send(argument)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        step -= 1
        if step == 0:
            _cancel_this()
        try:
            argument = yield waits_for
        except BaseException as error:  # noqa: BLE001 - thrown on into `work`
            failures.append(error)


def _cancel_this() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
