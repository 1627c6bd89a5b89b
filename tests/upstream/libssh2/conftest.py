"""Fixtures: connections to the test sshd, closed after the test, and an asyncssh server for behaviour that sshd never shows."""

from __future__ import annotations

import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncssh
import pytest

from relay.upstream.libssh2 import Connection
from relay.upstream.libssh2.tcp import ioctl_int
from tests.support.sshd import Sshd
from tests.support.wait import wait_until
from tests.upstream.peers import Dial, login


@pytest.fixture
async def dial(sshd: Sshd) -> AsyncIterator[Dial]:
    """Dials the test sshd, or `to`, or another port of this machine; closes the connections after the test."""
    made: list[Connection] = []

    async def dial(port: int = 0, keepalive_seconds: float = 15, host: str = "", to: Sshd | None = None, **changes: Any) -> Connection:
        peer = to or sshd
        made.append(await Connection.dial(host or peer.address, port or peer.port, login(peer, **changes), keepalive_seconds))
        return made[-1]

    yield dial
    for connection in made:
        connection.close()
        connection.close()  # idempotent
        assert not connection.usable


class Strange(asyncssh.SSHServerSession[bytes]):
    """Does to its channel what the command says, and records its callbacks."""

    def __init__(self, told: list[str]) -> None:
        self._told = told
        self._command = ""

    def connection_made(self, chan: Any) -> None:
        self._chan = chan

    def exec_requested(self, command: str) -> bool:
        self._command = command
        return command != "refuse"

    def session_started(self) -> None:
        if self._command == "no exit":
            self._chan.write(b"partial")
            self._chan.close()
        elif self._command.startswith("status "):
            self._chan._send_request(b"exit-status", int(self._command.split()[1]).to_bytes(4, "big"))
            self._chan.close()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._told.append(f"{len(data)} bytes")

    def eof_received(self) -> bool:
        self._told.append("eof")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._told.append("lost" if exc else "closed")


class Late(asyncssh.SSHServerSession[bytes]):
    """Reads one piece of its input, and then none until `take`."""

    def __init__(self) -> None:
        self.received = 0
        self._taking = False

    def connection_made(self, chan: Any) -> None:
        self._chan = chan

    def exec_requested(self, command: str) -> bool:
        return True

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self.received += len(data)
        if not self._taking:
            self._chan.pause_reading()

    @property
    def full(self) -> bool:
        """Whether the client has used up the window."""
        return bool(self._chan._recv_window == 0)

    def say(self, words: bytes) -> None:
        self._chan.write(words)

    def take(self) -> None:
        """Opens the window again, once; returns when the adjust is in the socket of the other side."""
        self._taking = True
        self._chan.resume_reading()
        assert not self.full
        fd = self._chan.get_extra_info("socket").fileno()
        wait_until(lambda: ioctl_int(fd, termios.TIOCOUTQ) == 0)


@asynccontextmanager
async def hosting(sshd: Sshd, session: Callable[[], asyncssh.SSHServerSession[bytes]]) -> AsyncIterator[int]:
    """The port of a host by asyncssh with the test sshd's keys."""

    class Server(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return True

        def public_key_auth_supported(self) -> bool:
            return True

        def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
            return True

        def session_requested(self) -> asyncssh.SSHServerSession[bytes]:
            return session()

    acceptor = await asyncssh.create_server(
        Server, "127.0.0.1", 0, server_host_keys=[sshd.host_key.load()], encoding=None, line_editor=False, gss_host=None, config=None
    )
    yield acceptor.get_port()
    acceptor.close()
    await acceptor.wait_closed()


@pytest.fixture
async def strange(sshd: Sshd) -> AsyncIterator[tuple[int, list[str]]]:
    """The port of a host with the test sshd's keys, and the callbacks that its sessions recorded."""
    told: list[str] = []
    async with hosting(sshd, lambda: Strange(told)) as port:
        yield port, told


@pytest.fixture
async def late(sshd: Sshd) -> AsyncIterator[tuple[int, Late]]:
    """The port of a host with the test sshd's keys, and its one session."""
    session = Late()
    async with hosting(sshd, lambda: session) as port:
        yield port, session
