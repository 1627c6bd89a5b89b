"""Connections accepted by `asyncssh.create_server` become the relay's own class before the first byte."""

from __future__ import annotations

import asyncio

import asyncssh
import pytest

from relay.config import Config
from relay.ssh.algorithms import server_options
from relay.ssh.client_connection import ClientConnection, LoginTimeout
from relay.ssh.plain import Handovers
from relay.ssh.trace import TracedConnection
from tests.ssh.test_client_connection import KEY, Server
from tests.support.wait import wait_until_async

OPTIONS = server_options(Config(upstreams={}), [KEY])


@pytest.mark.parametrize("kind", [ClientConnection, TracedConnection])
async def test_the_server_logic_sees_the_relays_connection_once(kind: type[ClientConnection]) -> None:
    servers: list[Server] = []

    def factory() -> Server:
        servers.append(Server())
        return servers[-1]

    async with await asyncssh.create_server(Handovers(factory, 6, kind), "127.0.0.1", 0, config=None, **OPTIONS) as acceptor:
        for count in (1, 2):
            async with asyncssh.connect("127.0.0.1", acceptor.get_port(), username="git", known_hosts=None, config=None, client_keys=[KEY]):
                assert len(servers) == count
                assert type(servers[-1].connection) is kind
                assert servers[-1].connection._auth_complete
        first, second = (server.connection for server in servers)
        assert isinstance(first, ClientConnection)
        assert isinstance(second, ClientConnection)
        assert kind is TracedConnection or first._once is second._once
        await wait_until_async(lambda: all(server.ended for server in servers))
        assert [len(server.ended) for server in servers] == [1, 1]


async def test_a_silent_client_is_ended_by_the_relays_login_timeout_alone() -> None:
    server = Server()
    options = {**OPTIONS, "login_timeout": 0.2}
    async with await asyncssh.create_server(Handovers(lambda: server, 6), "127.0.0.1", 0, config=None, **options) as acceptor:
        reader, writer = await asyncio.open_connection("127.0.0.1", acceptor.get_port())
        assert (await reader.readline()).startswith(b"SSH-2.0-")
        await wait_until_async(lambda: server.ended)
        assert [type(error) for error in server.ended] == [LoginTimeout]
        writer.close()


async def test_a_connection_that_cannot_be_made_is_closed() -> None:
    def fail() -> Server:
        raise RuntimeError("no server logic")

    class Broken(ClientConnection):
        def __init__(self, *arguments: object) -> None:
            raise RuntimeError("no connection")

    for handovers in (Handovers(Server, 6, Broken), Handovers(fail, 6)):
        async with await asyncssh.create_server(handovers, "127.0.0.1", 0, config=None, **OPTIONS) as acceptor:
            reader, writer = await asyncio.open_connection("127.0.0.1", acceptor.get_port())
            async with asyncio.timeout(10):
                assert b"SSH-" not in await reader.read()
            writer.close()
