"""An SSH server with the relay's own client connections that echoes its input, and a client for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncssh

from relay.config import Config, UpstreamSettings
from relay.ssh.algorithms import server_options
from relay.ssh.backpressure import Budget, Flow
from relay.ssh.channel import Channel
from relay.ssh.client_connection import ClientConnection


class Echo(asyncssh.SSHServerSession[bytes]):
    """Echoes its input on stdout and, for `err`, also on stderr."""

    def __init__(self) -> None:
        self.channel: Channel | None = None
        self.stderr = False

    def connection_made(self, chan: Channel) -> None:  # type: ignore[override]
        self.channel = chan

    def exec_requested(self, command: str) -> bool:
        assert self.channel is not None
        self.stderr = command == "err"
        self.channel.widen()  # as for a session that has a git host
        return True

    def data_received(self, data: bytes, datatype: int | None) -> None:
        assert self.channel is not None
        (self.channel.write_stderr if self.stderr else self.channel.write)(data)

    def eof_received(self) -> bool:
        assert self.channel is not None
        self.channel.write_eof()
        self.channel.exit(0)
        return True


class EchoServer(asyncssh.SSHServer):
    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        assert isinstance(conn, ClientConnection)
        self.connection = conn

    def begin_auth(self, username: str) -> bool:
        return False

    def session_requested(self) -> tuple[Channel, Echo]:
        return self.connection.channel_class(self.connection, Flow(Budget(1 << 30))), Echo()


@asynccontextmanager
async def echo(kind: type[ClientConnection] = ClientConnection, **options: Any) -> AsyncIterator[tuple[int, list[ClientConnection]]]:
    config = Config(upstreams={"main": UpstreamSettings(addresses=["127.0.0.1:1"])})
    key = asyncssh.generate_private_key("ssh-ed25519")
    built = await asyncssh.SSHServerConnectionOptions.construct(
        server_factory=EchoServer, config=None, **{**server_options(config, [key]), **options}
    )
    built.proxy_command = None
    loop = asyncio.get_running_loop()
    connections: list[ClientConnection] = []

    def accept() -> ClientConnection:
        connections.append(kind(loop, built))
        return connections[-1]

    server = await loop.create_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], connections
    finally:
        for connection in connections:
            connection.abort()
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def client(port: int, **options: Any) -> AsyncIterator[asyncssh.SSHClientConnection]:
    defaults: dict[str, Any] = {"username": "git", "known_hosts": None, "config": None, "client_keys": None}
    async with asyncssh.connect("127.0.0.1", port, **defaults, **options) as connection:
        yield connection
