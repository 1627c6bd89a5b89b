"""A TCP proxy whose link can be stalled, slowed, split, cut, reset and half-closed, each direction for itself.

    async with FaultProxy("127.0.0.1", sshd.port) as proxy:   # clients connect to 127.0.0.1:proxy.port
        proxy.slow(100_000, "down")                           # all connections, live and new
        proxy.at(50_000, "reset", "up", scope="new")          # each new connection dies after 50,000 bytes up
        proxy.links[0].reset()                                # one connection
        proxy.heal()

"up" is client to target, "down" is target to client. All methods must be called in the proxy's loop; tests without a
loop use `ThreadedFaultProxy`, which runs the same proxy in a thread: `proxy.do(lambda p: p.stall("up"))`.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Literal, Self, TypeVar

from tests.support.faultlink import Action, Direction, Faults, Link, close

Scope = Literal["all", "new", "live"]
Mode = Literal["forward", "silent", "reset", "refuse"]
T = TypeVar("T")

BACKLOG = 1024
THREAD_TIMEOUT = 60.0  # seconds for a call into the thread


class FaultProxy:
    """Listens on 127.0.0.1, port chosen by the kernel; an async context manager."""

    def __init__(self, target_host: str, target_port: int) -> None:
        self.target = (target_host, target_port)
        self.port = 0
        self.mode: Mode = "forward"
        self.links: list[Link] = []
        self.accepted = 0  # connections so far
        self.unreachable = 0  # of these, how many found no target
        self._ended_up = 0
        self._ended_down = 0
        self._up = Faults()
        self._down = Faults()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []

    async def __aenter__(self) -> Self:
        self.start()
        await asyncio.sleep(0)  # let the accepting task take its first step: cancelled before, it would not close its listener
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    @property
    def bytes_up(self) -> int:
        """Bytes delivered to the target, by all connections so far."""
        return self._ended_up + sum(link.bytes_up for link in self.links)

    @property
    def bytes_down(self) -> int:
        return self._ended_down + sum(link.bytes_down for link in self.links)

    @property
    def in_flight(self) -> int:
        """Bytes of the live connections, both ways, that were delivered and not acknowledged by the sink's kernel: `reset` drops them."""
        return sum(link.in_flight for link in self.links)

    # -- faults

    def stall(self, direction: Direction = "both", scope: Scope = "all") -> None:
        """Deliver nothing more and stop reading, connections stay open; `resume` goes on without a loss."""
        self._change(direction, scope, lambda faults: replace(faults, stalled=True))

    def resume(self, direction: Direction = "both", scope: Scope = "all") -> None:
        self._change(direction, scope, lambda faults: replace(faults, stalled=False))

    def split(self, write_bytes: int, direction: Direction = "both", scope: Scope = "all") -> None:
        """Deliver by writes of at most `write_bytes` (TCP_NODELAY is set on both sides)."""
        self._change(direction, scope, lambda faults: replace(faults, write_bytes=write_bytes))

    def slow(self, bytes_per_second: float, direction: Direction = "both", scope: Scope = "all") -> None:
        """Deliver no faster than this, by bursts of 20 ms, through small kernel buffers."""
        self._change(direction, scope, lambda faults: replace(faults, bytes_per_second=bytes_per_second))

    def at(self, at_bytes: int, action: Action, direction: Direction, scope: Scope = "all") -> None:
        """Do `action` once exactly `at_bytes` were delivered in `direction` of a connection, or now if more were.

        "cut" and "reset" first wait until the sink's kernel has taken all of them.
        "half_close" ends only this direction: the sink sees EOF, the source is no longer read.
        """
        self._change(direction, scope, lambda faults: replace(faults, at_bytes=at_bytes, action=action))

    def heal(self, scope: Scope = "all") -> None:
        """Undo stall, split, slow and at; the buffers of connections that were slowed stay small."""
        self._change("both", scope, lambda faults: Faults())

    def cut(self) -> None:
        """Close every live connection by FIN on both sides."""
        for link in self.links:
            link.cut()

    def reset(self) -> None:
        """Close every live connection by RST on both sides; bytes `in_flight` are lost."""
        for link in self.links:
            link.reset()

    def half_close(self, direction: Direction) -> None:
        """Send EOF to the sink of this direction on every live connection, and read its source no more."""
        self._change(direction, "live", lambda faults: replace(faults, at_bytes=0, action="half_close"))

    def accept(self, mode: Mode) -> None:
        """For new connections: "forward" them, accept and stay "silent", accept and "reset", or "refuse" (nobody listens)."""
        self.mode = mode
        if mode == "refuse":
            self._stop_listening()
        elif self._listener is None:
            self._listen()

    # -- life

    def start(self) -> None:
        self._listen()

    async def stop(self) -> None:
        """Refuse new connections, reset the live ones, wait for every task; raises the proxy's own errors."""
        accepting = self._accepting
        self._stop_listening()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *([accepting] if accepting else []), return_exceptions=True)
        if self._failures:
            raise ExceptionGroup("in the fault proxy", [error for error in self._failures if isinstance(error, Exception)])

    def _change(self, direction: Direction, scope: Scope, change: Callable[[Faults], Faults]) -> None:
        if scope != "live":
            self._up = change(self._up) if direction != "down" else self._up
            self._down = change(self._down) if direction != "up" else self._down
        if scope != "new":
            for link in list(self.links):
                for pipe in link.pipes(direction):
                    pipe.set(change(pipe.faults))

    def _listen(self) -> None:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener))
        self._accepting.add_done_callback(self._note)

    def _stop_listening(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            self._accepting = None
        self._listener = None  # the accepting task closes the listener once it no longer waits on it

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                client, _ = await loop.sock_accept(listener)
                self.accepted += 1
                client.setblocking(False)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.mode == "reset":
                    close(client, reset=True)
                    continue
                link = Link(client)
                self.links.append(link)
                task = asyncio.create_task(self._carry(link))
                self._tasks.add(task)
                task.add_done_callback(self._note)

    async def _carry(self, link: Link) -> None:
        try:
            reached = await link.run(None if self.mode == "silent" else self.target, self._up, self._down)
            self.unreachable += not reached
        finally:
            self.links.remove(link)
            self._ended_up += link.bytes_up
            self._ended_down += link.bytes_down

    def _note(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)


class ThreadedFaultProxy:
    """A FaultProxy in a thread with a loop of its own, for tests without one; a context manager.

    `do` runs a function on the proxy inside its loop and returns the result: also the way to read its counters.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._proxy: FaultProxy | None = None
        self._stopping: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread = ThreadPoolExecutor(1, "fault-proxy")
        self._end: Future[None] | None = None

    def __enter__(self) -> Self:
        self._end = self._thread.submit(asyncio.run, self._main())
        self._end.add_done_callback(lambda _: self._ready.set())
        self._ready.wait(THREAD_TIMEOUT)
        if self._end.done():
            self._end.result()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        stopping, end = self._stopping, self._end
        assert stopping is not None and end is not None
        self.do(lambda _: stopping.set())
        end.result(THREAD_TIMEOUT)
        self._thread.shutdown()

    @property
    def port(self) -> int:
        assert self._proxy is not None, "the fault proxy was not started"
        return self._proxy.port

    def do(self, call: Callable[[FaultProxy], T]) -> T:
        proxy, loop = self._proxy, self._loop
        assert proxy is not None and loop is not None, "the fault proxy was not started"

        async def inside() -> T:
            return call(proxy)

        return asyncio.run_coroutine_threadsafe(inside(), loop).result(THREAD_TIMEOUT)

    async def _main(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        async with FaultProxy(*self._target) as self._proxy:
            self._ready.set()
            await self._stopping.wait()
