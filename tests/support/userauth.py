"""An SSH client that authenticates request by request (RFC 4252), so that a test can send false requests.

async def script(client: Scripted) -> None:
    assert await client.offer(bob) == "ok"          # "ok": PK_OK, "failure"; a success ends the script
    await client.prove(alice, signer=mallory)       # a signature by another key
async with alice(relay, client_factory=lambda: Scripted(script)) as connection: ...
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import asyncssh
from asyncssh.auth import MSG_USERAUTH_PK_OK
from asyncssh.packet import Boolean, String

from tests.support.keys import Key, SoftwareSecurityKey


class ScriptOverError(asyncssh.DisconnectError):
    """The script returned before any request of it succeeded."""

    def __init__(self) -> None:
        super().__init__(asyncssh.DISC_BY_APPLICATION, "the script is over")


class Scripted(asyncssh.SSHClient):
    """Sends the requests of `script`; logged in once one of them succeeds, else it ends with ScriptOverError."""

    def __init__(self, script: Callable[[Scripted], Awaitable[None]]) -> None:
        self._script = script
        self._replies: asyncio.Queue[str] = asyncio.Queue()
        self._connection: Any = None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self._connection = conn

    async def public_key_auth_requested(self) -> None:
        connection = self._connection
        connection._auth._packet_handlers = {MSG_USERAUTH_PK_OK: lambda *_: self._replies.put_nowait("ok")}
        connection.try_next_auth = lambda **_: self._replies.put_nowait("failure")
        await self._script(self)
        raise ScriptOverError

    @property
    def methods(self) -> list[str]:
        """The methods that can continue, from the last USERAUTH_FAILURE."""
        return [method.decode() for method in self._connection._auth_methods]

    def be(self, user: str) -> None:
        """Sets the user name of the following requests."""
        self._connection._username = user

    async def reply(self) -> str:
        return await self._replies.get()

    async def send(self, method: str, *fields: bytes, signer: Any = None) -> None:
        await self._connection.send_userauth_request(method.encode(), *fields, key=signer)

    async def send_offer(self, key: Key | SoftwareSecurityKey) -> None:
        algorithm, blob = _public(key)
        await self.send("publickey", Boolean(False), String(algorithm), String(blob))

    async def send_proof(self, key: Key, signer: Key | None = None, algorithm: str = "") -> None:
        """A signature by `signer`, which is `key` unless another is given, over a request that names `key`."""
        own, blob = _public(key)
        private, name = (signer or key).load(), algorithm.encode() or own
        sign = SimpleNamespace(sign=lambda data: private.sign(data, name if signer is None else private.sig_algorithms[0]))
        await self.send("publickey", Boolean(True), String(name), String(blob), signer=sign)

    async def offer(self, key: Key | SoftwareSecurityKey) -> str:
        await self.send_offer(key)
        return await self.reply()

    async def prove(self, key: Key, signer: Key | None = None, algorithm: str = "") -> str:
        await self.send_proof(key, signer, algorithm)
        return await self.reply()


def _public(key: Key | SoftwareSecurityKey) -> tuple[bytes, bytes]:
    """The signature algorithm that a client would name first, and the key blob."""
    if isinstance(key, SoftwareSecurityKey):
        return key.sig_algorithm, key.public_data
    loaded = key.load()
    return loaded.sig_algorithms[0], loaded.public_data
