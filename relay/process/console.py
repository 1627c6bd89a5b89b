"""The operators' Unix socket, for `relay sessions`, `relay upstreams` and `relay packs`. Only root and the relay's user may connect."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from relay.process import messages
from relay.tasks import Tasks

_BACKLOG = 16

_log = logging.getLogger("relay.console")


class Operator(NamedTuple):
    """Who asks, by SO_PEERCRED (unix(7)). With sudo that is root."""

    uid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (uid {self.uid})"


Question = messages.AskWorker | messages.Switch | messages.PacksRemoved


class Console:
    """Listens on `path`; `answer` returns the body of the answer to an operator's question."""

    def __init__(self, path: Path, answer: Callable[[Question, Operator], Awaitable[Any]]) -> None:
        self.path = path
        self._answer = answer
        self._server: asyncio.AbstractServer | None = None
        self._inode = 0
        self._tasks = Tasks()

    async def open(self) -> None:
        """Listens; replaces a socket file that a killed relay left. Raises OSError, also when another relay listens there."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if _listened_on(self.path):
                raise OSError("another relay listens there")
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            sock.bind(str(self.path))
            self.path.chmod(0o600)  # before listen(), so that at no moment others can connect
            self._inode = self.path.stat().st_ino
            sock.listen(_BACKLOG)
            self._server = await asyncio.start_unix_server(self._connected, sock=sock)
        except BaseException:  # including a cancellation
            sock.close()
            raise

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        self._server = None
        await self._tasks.cancel()
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:  # else it is another relay's socket by now
                self.path.unlink()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.start(self._serve(reader, writer), "operator")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            uid = _uid(writer.get_extra_info("socket"))
            if uid not in (os.geteuid(), 0):
                _log.warning("refused: another user than the relay's opened %s", self.path)
                return
            operator = Operator(uid, _name(uid))
            while isinstance(message := await messages.read(reader), Question):
                answer = await self._answer(message, operator)
                messages.write(writer, messages.Answer(message.number, messages.raw(answer)))
                await writer.drain()
        except (ValueError, ConnectionError) as error:
            _log.warning("%s: %s", self.path, error)
        finally:
            writer.close()


def _listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True  # somebody listens, but the backlog is full
        except OSError:
            return False
        return True


def _uid(sock: Any) -> int:
    """The peer's user by SO_PEERCRED (unix(7)): three integers, pid, uid, gid."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder)


def _name(uid: int) -> str:
    """The user's name; a container's user often has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return "?"
