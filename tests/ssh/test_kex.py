"""The agreement that the relay caches for each kind of client equals asyncssh's, and is checked as strictly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncssh
import pytest
from asyncssh.connection import SSHConnection
from asyncssh.constants import MSG_IGNORE
from asyncssh.packet import String

from relay.config import Config
from relay.ssh import kex, wire
from relay.ssh.algorithms import server_options
from relay.ssh.client_connection import ClientConnection, connection_factory
from relay.ssh.kex import COOKIE_END, Agreement
from tests.ssh.test_client_connection import KEY, Server
from tests.support.wait import wait_until_async


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[int, list[ClientConnection]]]:
    loop, made = asyncio.get_running_loop(), list[ClientConnection]()
    options = await asyncssh.SSHServerConnectionOptions.construct(
        server_factory=Server, config=None, **server_options(Config(upstreams={}), [KEY])
    )
    options.proxy_command = None
    make = connection_factory(options, loop, 6)

    def accept() -> ClientConnection:
        made.append(make(None, 0.0))
        return made[-1]

    listener = await loop.create_server(accept, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1], made
    finally:
        for one in made:
            one.abort()
        listener.close()
        await listener.wait_closed()


def connect(port: int, **options: Any) -> Any:
    return asyncssh.connect("127.0.0.1", port, username="git", known_hosts=None, config=None, agent_path=None, client_keys=[KEY], **options)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[SSHConnection]:
    """The server's connections whose client's KEXINIT asyncssh itself has parsed."""
    connections: list[SSHConnection] = []
    process = SSHConnection._process_kexinit

    async def note(self: SSHConnection, kind: int, number: int, packet: Any) -> None:
        if isinstance(self, ClientConnection):
            connections.append(self)
        await process(self, kind, number, packet)

    monkeypatch.setattr(SSHConnection, "_process_kexinit", note)
    return connections


def agreed(connection: ClientConnection) -> tuple[object, ...]:
    names = ("send_cipher", "recv_cipher", "send_mac", "recv_mac", "send_compression", "recv_compression")
    chosen = [connection.get_extra_info(name) for name in names]
    return *chosen, connection._server_host_key, connection._strict_kex, connection._ignore_first_kex


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kex_algs": ["curve25519-sha256"], "encryption_algs": ["aes128-gcm@openssh.com"]},
        {"kex_algs": ["mlkem768x25519-sha256"], "encryption_algs": ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"]},
    ],
)
async def test_a_second_client_of_a_kind_gets_the_same_algorithms(options: dict[str, Any], asked: list[SSHConnection]) -> None:
    async with serving() as (port, made):
        for _ in range(2):
            async with connect(port, **options):
                pass
        first, second = made
        assert asked == ([first] if wire.ENABLED else made)
        assert agreed(first) == agreed(second)
        assert second._session_id != first._session_id
        assert second._server_kexinit[COOKIE_END:] == first._server_kexinit[COOKIE_END:]
        assert second._server_kexinit[1:COOKIE_END] != first._server_kexinit[1:COOKIE_END], "the cookie is new each time"


async def test_a_client_of_another_kind_is_negotiated_with(asked: list[SSHConnection]) -> None:
    async with serving() as (port, made):
        for cipher in ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com"):
            async with connect(port, encryption_algs=[cipher]):
                assert made[-1].get_extra_info("recv_cipher") == cipher
        assert asked == made


async def test_a_kind_that_agrees_on_nothing_is_not_remembered(asked: list[SSHConnection]) -> None:
    async with serving() as (port, made):
        for _ in range(2):
            with pytest.raises(asyncssh.KeyExchangeFailed):
                await connect(port, kex_algs=["diffie-hellman-group14-sha1"])
        assert asked == made
        assert made[0]._once.agreements == {}


async def test_no_more_kinds_are_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch, asked: list[SSHConnection]) -> None:
    monkeypatch.setattr(kex, "KINDS_MOST", 1)
    async with serving() as (port, made):
        for cipher in ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-gcm@openssh.com"):
            async with connect(port, encryption_algs=[cipher]):
                pass
        assert len(made[0]._once.agreements) == 1
        assert asked == made


async def test_a_long_kexinit_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kex, "KIND_BYTES", 10)
    async with serving() as (port, made):
        async with connect(port):
            pass
        assert made[0]._once.agreements == {}


async def test_a_kind_that_is_known_keeps_to_the_strict_key_exchange() -> None:
    async with serving() as (port, made):
        async with connect(port):
            pass
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await reader.readline()
        writer.write(b"SSH-2.0-test\r\n" + plain(bytes((MSG_IGNORE,)) + String(b"before")) + plain(made[0]._client_kexinit))
        await wait_until_async(lambda: made[1]._transport is None)
        said = await reader.read()
        assert b"Strict key exchange violation" in said
        writer.close()


async def test_two_key_exchanges_at_once_are_refused() -> None:
    async with serving() as (port, made):
        async with connect(port):
            pass
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await reader.readline()
        writer.write(b"SSH-2.0-test\r\n" + 2 * plain(made[0]._client_kexinit))
        assert b"Key exchange already in progress" in await reader.read()
        writer.close()


async def test_keys_are_exchanged_again_with_a_kind_that_is_known(asked: list[SSHConnection]) -> None:
    async with serving() as (port, made), connect(port) as client:
        session = made[0]._session_id
        first = made[0]._recv_encryption
        client._send_kexinit()
        client._kexinit_sent = True
        await wait_until_async(lambda: made[0]._recv_encryption is not first and made[0]._kex_complete)
        assert made[0]._session_id == session
        with pytest.raises(asyncssh.ChannelOpenError):
            await client.run("anything")


def plain(payload: bytes) -> bytes:
    """An unencrypted packet (RFC 4253 section 6)."""
    padding = -(5 + len(payload)) % 8
    padding += 8 if padding < 4 else 0
    return (1 + len(payload) + padding).to_bytes(4, "big") + bytes((padding,)) + payload + bytes(padding)


def test_an_agreement_says_what_asyncssh_keeps_of_a_kexinit() -> None:
    kept = {"key_exchange", "host_key", "ciphers", "macs", "compressions", "extensions", "strict", "ignores_guess"}
    assert set(Agreement._fields) == kept
