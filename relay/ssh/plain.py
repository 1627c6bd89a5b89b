"""The way in by asyncssh's own `create_server`: the only module that knows asyncssh's plain connection.

asyncssh makes its own SSHServerConnection for each client and cannot be told of another class. So the server logic that it is given does
one thing: it passes the socket on to a ClientConnection, before a byte is sent or read. All else knows ClientConnection alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from copy import copy

import asyncssh
from asyncssh.connection import SSHServerConnection

from relay.ssh.client_connection import ClientConnection, connection_factory


class Handover(asyncssh.SSHServer):
    """Server logic for `asyncssh.create_server`, which asks it nothing after `connection_made`."""

    def __init__(self, make: Callable[[asyncssh.SSHServerConnectionOptions], ClientConnection]) -> None:
        self._make = make

    def connection_made(self, conn: SSHServerConnection) -> None:
        transport = conn._transport
        assert transport is not None
        connection = self._make(conn._options)  # if this fails asyncssh still has the transport, and closes it
        conn._transport = None  # asyncssh sends its version after this, and drops what it sends without a transport
        conn._cancel_login_timer()
        transport.set_protocol(connection)
        try:
            connection.connection_made(transport)
        except BaseException:  # asyncssh has no transport any more that it could close
            transport.abort()
            raise


class Handovers:
    """A server_factory; `server_logic` makes what the relay's connections ask. Connections of one listener share their options."""

    def __init__(
        self, server_logic: Callable[[], asyncssh.SSHServer], attempts: int, kind: type[ClientConnection] = ClientConnection
    ) -> None:
        self._server_logic = server_logic
        self._attempts = attempts
        self._kind = kind
        self._given: asyncssh.SSHServerConnectionOptions | None = None  # to asyncssh.create_server, when `_factory` was made
        self._factory: Callable[[tuple[str, int] | None, float], ClientConnection] | None = None

    def __call__(self) -> Handover:
        return Handover(self._make)

    def _make(self, options: asyncssh.SSHServerConnectionOptions) -> ClientConnection:
        if self._factory is None or self._given is not options:
            self._given, own = options, copy(options)
            own.protocol_factory = self._server_logic
            self._factory = connection_factory(own, asyncio.get_running_loop(), self._attempts, self._kind)
        return self._factory(None, 0.0)
