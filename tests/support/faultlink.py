"""One connection through the fault proxy: two pipes, and the ways in which it can end."""

from __future__ import annotations

import asyncio
import socket
import struct
import termios
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from relay.upstream.libssh2.tcp import ioctl_int

Direction = Literal["up", "down", "both"]
Action = Literal["cut", "reset", "stall", "half_close"]

READ_BYTES = 65536  # also the most that a stalled direction has taken from its source without delivering it
SLOW_BUFFER_BYTES = 4096  # kernel buffers of a slowed direction, small so that the sender is slowed; the kernel doubles it
CONNECT_TIMEOUT = 60.0  # seconds, towards the target
BURSTS_PER_SECOND = 50  # of a slowed direction
LOOK_SECONDS = 0.001  # between two reads of the bytes in flight


@dataclass(frozen=True)
class Faults:
    """The faults of one direction; the default is a perfect link."""

    stalled: bool = False
    write_bytes: int | None = None  # every write to the sink is at most this long
    bytes_per_second: float | None = None
    at_bytes: int | None = None  # when this many bytes were delivered in this direction, `action` happens
    action: Action = "cut"


class Pipe:
    """One direction of one connection; its task ends at EOF, which it passes on as a half-close."""

    def __init__(self, link: Link, source: socket.socket, sink: socket.socket, faults: Faults) -> None:
        self.moved = 0  # bytes delivered: sent to the sink, perhaps still in this kernel's send buffer
        self.writes = 0  # the number of writes
        self.faults = faults
        self._link = link
        self._source = source
        self._sink = sink
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._over = False  # deliver nothing more: a send that does not block would run before the cancellation
        self._shrink_buffers()

    def start(self) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self._run())
        self._act_if_due()  # at_bytes = 0 is due now
        return self._task

    def set(self, faults: Faults) -> None:
        self.faults = faults
        self._changed.set()
        self._shrink_buffers()
        self._act_if_due()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._source, READ_BYTES):
            await self._deliver(loop, memoryview(data))
            if self._over:
                return
        await self._while_stalled()
        self._half_close()

    def end(self) -> None:
        self._over = True
        if self._task is not None:
            self._task.cancel()

    def _half_close(self) -> None:
        try:
            self._sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the sink has closed already: its own pipe reports that

    async def _deliver(self, loop: asyncio.AbstractEventLoop, data: memoryview) -> None:
        while data:
            await self._while_stalled()
            if self._over:
                return
            faults = self.faults
            size = min(len(data), faults.write_bytes or READ_BYTES)
            if faults.bytes_per_second is not None:
                size = min(size, max(1, int(faults.bytes_per_second / BURSTS_PER_SECOND)))
            if faults.at_bytes is not None and faults.at_bytes > self.moved:
                size = min(size, faults.at_bytes - self.moved)
            await loop.sock_sendall(self._sink, data[:size])
            if faults.at_bytes is not None and self.moved < faults.at_bytes <= self.moved + size and faults.action in ("cut", "reset"):
                await self._until_taken()
            self.moved += size
            self.writes += 1
            data = data[size:]
            self._act_if_due()
            if faults.bytes_per_second is not None:
                await asyncio.sleep(size / faults.bytes_per_second)

    @property
    def in_flight(self) -> int:
        """Bytes that the sink's kernel has not acknowledged. A reset drops them; so does a cut if the sink sends more."""
        try:
            return ioctl_int(self._sink.fileno(), termios.TIOCOUTQ)
        except OSError:
            return 0  # closed

    async def _until_taken(self) -> None:
        """Never returns if the sink does not read and more was delivered than its kernel takes."""
        while self.in_flight:
            await asyncio.sleep(LOOK_SECONDS)

    async def _while_stalled(self) -> None:
        while self.faults.stalled:
            self._changed.clear()
            await self._changed.wait()

    def _act_if_due(self) -> None:
        at_bytes, action = self.faults.at_bytes, self.faults.action
        if at_bytes is None or self.moved < at_bytes:
            return
        if action == "stall":
            self.faults = replace(self.faults, stalled=True, at_bytes=None)
        elif action == "half_close":
            self._half_close()
            self.end()
        else:
            self._link.end(action)

    def _shrink_buffers(self) -> None:
        if self.faults.bytes_per_second is not None:
            self._source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
            self._sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SLOW_BUFFER_BYTES)


class Link:
    """One client connection and, unless `accept` says to ignore it, the connection to the target."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.target: socket.socket | None = None
        self.up: Pipe | None = None
        self.down: Pipe | None = None
        self._ending: asyncio.Future[Action] = asyncio.get_running_loop().create_future()

    @property
    def in_flight(self) -> int:
        return sum(pipe.in_flight for pipe in self.pipes("both"))

    @property
    def bytes_up(self) -> int:
        return self.up.moved if self.up is not None else 0

    @property
    def bytes_down(self) -> int:
        return self.down.moved if self.down is not None else 0

    def cut(self) -> None:
        """Close both sides with a FIN; undelivered bytes are lost."""
        self.end("cut")

    def reset(self) -> None:
        """Close both sides with an RST; bytes `in_flight` are lost. A peer can still read the bytes that its kernel has received."""
        self.end("reset")

    def end(self, action: Action) -> None:
        if not self._ending.done():
            self._ending.set_result(action)
            for pipe in self.pipes("both"):
                pipe.end()

    def pipes(self, direction: Direction) -> list[Pipe]:
        chosen = {"up": [self.up], "down": [self.down], "both": [self.up, self.down]}[direction]
        return [pipe for pipe in chosen if pipe is not None]

    async def run(self, target: tuple[str, int] | None, up: Faults, down: Faults) -> bool:
        """Carry until both directions ended or `end` was called; False when the target could not be reached."""
        tasks: list[asyncio.Task[None]] = []
        action: Action = "cut"
        try:
            if target is not None:
                self.target = await _connect(target)
                if self.target is None:
                    return False
                self.up = Pipe(self, self.client, self.target, up)
                self.down = Pipe(self, self.target, self.client, down)
                tasks = [pipe.start() for pipe in self.pipes("both")]
            action = await self._until_over(tasks)
        except asyncio.CancelledError:
            action = "reset"
            raise
        finally:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)  # _until_over has handled how each ended
            finally:  # also when the proxy is stopped at this moment
                for side in (self.client, self.target):
                    if side is not None:
                        close(side, reset=action == "reset")
        return True

    async def _until_over(self, tasks: list[asyncio.Task[None]]) -> Action:
        pending: set[asyncio.Future[None] | asyncio.Future[Action]] = {self._ending, *tasks}
        while not self._ending.done() and (not tasks or len(pending) > 1):
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for over in done - {self._ending}:
                error = None if over.cancelled() else over.exception()  # cancelled: half-closed on purpose
                if isinstance(error, OSError):  # one side was reset: reset the other
                    return "reset"
                if error is not None:
                    raise error
        return self._ending.result() if self._ending.done() else "cut"


async def _connect(target: tuple[str, int]) -> socket.socket | None:
    side = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET, socket.SOCK_STREAM)
    side.setblocking(False)
    side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await asyncio.get_running_loop().sock_connect(side, target)
    except OSError:  # TimeoutError too
        side.close()
        return None
    except BaseException:
        side.close()
        raise
    return side


def close(side: socket.socket, reset: bool) -> None:
    if reset:
        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    else:
        for _ in _unread(side):  # a close with unread bytes would send RST instead of FIN
            pass
    side.close()


def _unread(side: socket.socket) -> Iterator[bytes]:
    try:
        while data := side.recv(READ_BYTES):
            yield data
    except OSError:
        pass  # nothing more (BlockingIOError), or the peer reset it
