"""A client that has exchanged keys and sends what the test wants before, or instead of, logging in.

async def guess(connection):
    for _ in range(3):
        connection.send_packet(MSG_USERAUTH_REQUEST, ...)

ended = await stranger(relay, guess)    # asyncssh's exception for the end of the connection
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncssh
from asyncssh.constants import MSG_USERAUTH_FAILURE, MSG_USERAUTH_REQUEST
from asyncssh.packet import Boolean, String

from tests.support.keys import Key
from tests.support.relay_process import RelayProcess

STRANGER_SECONDS = 60.0

Act = Callable[[asyncssh.SSHClientConnection], Awaitable[None]]


async def stranger(relay: RelayProcess, act: Act) -> Exception:
    """Connects, and runs `act` when it is the client's turn to offer a key; it offers none. Raises TimeoutError after STRANGER_SECONDS."""

    class Client(asyncssh.SSHClient):
        def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
            self.connection = conn

        async def public_key_auth_requested(self) -> None:
            _make_deaf(self.connection)
            await act(self.connection)
            await asyncio.get_running_loop().create_future()  # until the relay ends it

    try:
        async with asyncio.timeout(STRANGER_SECONDS):
            await asyncssh.connect(
                "127.0.0.1", relay.port, username=relay.user, known_hosts=None, client_factory=Client, agent_path=None, config=None
            )
    except TimeoutError:
        raise
    except (asyncssh.Error, OSError) as error:
        return error
    raise AssertionError("a stranger was let in")


class _Deaf:
    """Replaces asyncssh's authentication, which would react to answers to requests that it did not send."""

    def process_packet(self, *arguments: object) -> bool:
        return True

    def log_received_packet(self, *arguments: object) -> None:
        pass

    def cancel(self) -> None:
        pass


def _make_deaf(connection: asyncssh.SSHClientConnection) -> None:
    deaf: Any = _Deaf()
    connection._auth = deaf
    connection._packet_handlers = {**connection._packet_handlers, MSG_USERAUTH_FAILURE: lambda *arguments: None}


def offer(key: Key, user: str) -> bytes:
    """The payload of a MSG_USERAUTH_REQUEST that offers `key` without a signature (RFC 4252 section 7)."""
    public = key.load()
    fields = [String(user), String("ssh-connection"), String("publickey"), Boolean(False), String(public.algorithm)]
    return b"".join([*fields, String(public.public_data)])


def password(user: str) -> bytes:
    """The payload of a guessed password (RFC 4252 section 8)."""
    return b"".join([String(user), String("ssh-connection"), String("password"), Boolean(False), String("secret")])


def requests(payload: bytes, count: int) -> Act:
    """Sends so many authentication requests at once, without waiting for an answer."""

    async def act(connection: asyncssh.SSHClientConnection) -> None:
        for _ in range(count):
            connection.send_packet(MSG_USERAUTH_REQUEST, payload)

    return act
