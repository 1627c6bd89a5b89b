"""A dial of the test sshd that closes what it made, and an asyncssh server for what sshd never does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncssh
import pytest

from relay.upstream.libssh2 import Connection
from tests.support.sshd import Sshd
from tests.upstream.peers import Dial, login


@pytest.fixture
async def dial(sshd: Sshd) -> AsyncIterator[Dial]:
    """Dials the test sshd, or another port of this machine; closes what it made."""
    made: list[Connection] = []

    async def dial(port: int = 0, keepalive_seconds: float = 15, host: str = "", **changes: Any) -> Connection:
        made.append(await Connection.dial(host or sshd.address, port or sshd.port, login(sshd, **changes), keepalive_seconds))
        return made[-1]

    yield dial
    for connection in made:
        connection.close()
        connection.close()  # idempotent
        assert not connection.usable


class Strange(asyncssh.SSHServerSession[bytes]):
    """Does to a channel what the command says, and notes what it is told."""

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


@pytest.fixture
async def strange(sshd: Sshd) -> AsyncIterator[tuple[int, list[str]]]:
    """The port of a host with the test sshd's keys, and what its sessions were told."""
    told: list[str] = []

    class Server(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return True

        def public_key_auth_supported(self) -> bool:
            return True

        def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
            return True

        def session_requested(self) -> Strange:
            return Strange(told)

    acceptor = await asyncssh.create_server(
        Server, "127.0.0.1", 0, server_host_keys=[sshd.host_key.load()], encoding=None, line_editor=False, gss_host=None, config=None
    )
    yield acceptor.get_port(), told
    acceptor.close()
    await acceptor.wait_closed()
