"""A proxy in front of the test sshd that refuses addresses as OpenSSH does from 9.8 on (srclimit.c, PerSourcePenalties).

    async with Penalising(sshd) as front:  # connect to 127.0.0.1:front.port

A connection that ended without a login costs its address `noauth`, a login that failed `authfail` seconds; what is due adds up and runs
off. Above `least` the address is turned away until all of it has run off, with sshd's words in place of its version. What became of a
connection is read in sshd's log.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter
from types import TracebackType
from typing import Self

from tests.support.sshd import Sshd

NOTICE = b"Not allowed at this time\r\n"


class Penalising:
    """Its defaults are OpenSSH's, in seconds."""

    def __init__(self, sshd: Sshd, *, authfail: float = 5.0, noauth: float = 1.0, least: float = 15.0) -> None:
        self.port = 0
        self.ended: Counter[str] = Counter()  # connections by their end: accepted, authfail, noauth, and refused ones
        self._sshd = sshd
        self._costs = {"authfail": authfail, "noauth": noauth, "accepted": 0.0}
        self._least = least
        self._due: dict[str, float] = {}  # when an address's penalty ends
        self._active: set[str] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()
        if tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for _ in range(3):
            await asyncio.sleep(0)  # closed transports end

    def penalise(self, address: str, why: str) -> None:
        now = time.monotonic()
        until = self._due[address] = max(self._due.get(address, now), now) + self._costs[why]
        if until - now > self._least:
            self._active.add(address)

    def _turned_away(self, address: str) -> bool:
        if self._due.get(address, 0.0) <= time.monotonic():
            self._active.discard(address)
        return address in self._active

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._relay(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._tasks.discard(task)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("peername")[0]
        if self._turned_away(address):
            self.ended["turned away"] += 1
            writer.write(NOTICE)
            return
        mark = self._sshd.log_mark()
        up_reader, up_writer = await asyncio.open_connection(self._sshd.address, self._sshd.port)
        port = up_writer.get_extra_info("sockname")[1]
        up = asyncio.create_task(_copy(reader, up_writer))
        try:
            await _copy(up_reader, writer)  # until sshd has ended and logged it
        finally:
            up_writer.transport.abort()  # first: the task may be cancelled while this waits
            up.cancel()
            await asyncio.wait([up])
        said = self._sshd.log_text(mark)
        if re.search(rf"Accepted publickey .* port {port}\b", said):
            how = "accepted"
        elif re.search(rf"(Failed publickey|authenticating user|invalid user) .*port {port}\b", said):
            how = "authfail"
        else:
            how = "noauth"
        self.ended[how] += 1
        self.penalise(address, how)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
