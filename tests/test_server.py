"""One worker's server, in this process on uvloop: a drain at every moment of a connection's arrival."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import asyncssh
import psutil
import pytest
import uvloop

from relay.config.load import Loaded
from relay.errors import Unavailable
from relay.events import Observer
from relay.preflight import load_all
from relay.process.sockets import bind
from relay.server import Server
from relay.ssh.packets import PacketConnection
from relay.upstream.pool import Pool
from relay.upstream.switches import UpstreamSwitches
from relay.wiring import build
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import connect, run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async


@pytest.fixture
def relay(sshd: Sshd, tmp_path: Path) -> RelayProcess:
    """A relay that is never started: a folder with a complete configuration."""
    return RelayProcess(sshd, tmp_path / "relay", config={"limits": {"login_grace_seconds": 20}})


@asynccontextmanager
async def serving(loaded: Loaded) -> AsyncIterator[tuple[Server, socket.socket]]:
    """A server, and a second descriptor of its listening socket, like the supervisor's."""
    with bind("127.0.0.1", 0) as ours:
        server = build(loaded, Observer())
        await server.start([ours.dup()])
        try:
            yield server, ours
        finally:
            await server.drain(0)
            await server.stop()


def logged_in(relay: RelayProcess, listener: socket.socket) -> AbstractAsyncContextManager[asyncssh.SSHClientConnection]:
    return connect(listener.getsockname()[1], [relay.key], relay.host_key_line, user=relay.user)


def on_uvloop(test: Callable[[], Awaitable[None]]) -> None:
    """Runs the test to its end; asserts that no task is left."""

    async def whole() -> None:
        await test()
        left = {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}
        assert not left

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole())


@pytest.mark.parametrize("turns", range(6))
def test_a_connection_is_served_or_stays_in_the_backlog_however_shortly_before_it_came(turns: int, relay: RelayProcess) -> None:
    """`turns` of the loop between the client's connect and the drain: the connection is accepted, being accepted, or in the backlog."""

    async def test() -> None:
        async with serving(load_all(relay.config_file)) as (server, ours):
            with socket.create_connection(ours.getsockname()) as client:
                for _ in range(turns):
                    await asyncio.sleep(0)
                draining = asyncio.get_running_loop().create_task(server.drain(3600))
                reader, writer = await asyncio.open_connection(sock=client.dup())
                ours.setblocking(False)
                try:
                    accepted, _ = ours.accept()
                except BlockingIOError:
                    async with asyncio.timeout(60):
                        assert (await reader.readline()).startswith(b"SSH-2.0-")
                    assert not draining.done(), "the process would have ended before the client"
                else:
                    accepted.close()  # the server had not accepted it, so the next holder of the socket does
                writer.close()
            assert await draining == 0

    on_uvloop(test)


def test_a_drain_waits_for_a_client_that_has_just_logged_in_and_for_its_session(relay: RelayProcess) -> None:
    async def test() -> None:
        async with serving(load_all(relay.config_file)) as (server, ours):
            async with logged_in(relay, ours) as connection:
                draining = asyncio.get_running_loop().create_task(server.drain(3600))
                await asyncio.sleep(0.3)
                assert not draining.done()
                assert server.ready() == (False, "draining")
                assert (await run(connection, "git-upload-pack 'stub/emit/100/4'")).exit_status == 4
            assert await draining == 0

    on_uvloop(test)


def test_a_drain_ends_a_client_without_a_session(relay: RelayProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.server.DRAIN_IDLE_SECONDS", 0.2)

    async def test() -> None:
        async with serving(load_all(relay.config_file)) as (server, ours), logged_in(relay, ours) as connection:
            assert (await run(connection, "git-upload-pack 'stub/exit/0'")).exit_status == 0
            async with asyncio.timeout(60):
                assert await server.drain(3600) == 0
                await connection.wait_closed()

    on_uvloop(test)


@pytest.mark.parametrize("early", [False, True])
def test_a_drain_can_be_hurried(early: bool, relay: RelayProcess) -> None:
    """Also before the drain's first step, as in a worker that gets both messages at once."""

    async def test() -> None:
        async with serving(load_all(relay.config_file)) as (server, ours), logged_in(relay, ours) as connection:
            running = asyncio.get_running_loop().create_task(run(connection, "git-upload-pack 'stub/hang'"))
            while not any(session.record.route for one in server.live for session in one.sessions.values()):
                await asyncio.sleep(0.01)
            draining = asyncio.get_running_loop().create_task(server.drain(3600))
            if not early:
                await asyncio.sleep(0.1)
            server.hurry(0)
            async with asyncio.timeout(60):
                assert await draining == 1
                result = await running
            assert result.exit_status == 255
            assert b"the service is restarting" in result.stderr

    on_uvloop(test)


def test_stop_closes_everything(relay: RelayProcess) -> None:
    before = psutil.Process().num_fds()

    async def test() -> None:
        async with serving(load_all(relay.config_file)) as (server, ours):
            assert server.ready() == (True, "ready")
            clients = [socket.create_connection(ours.getsockname()) for _ in range(10)]
            while len(server.live) < len(clients):
                await asyncio.sleep(0.01)
        assert server.ready() == (False, "stopped")
        for client in clients:
            client.close()

    on_uvloop(test)
    on_uvloop(test)
    after = psutil.Process().num_fds()
    on_uvloop(test)
    assert psutil.Process().num_fds() <= after <= before + 4  # descriptors that the process opens once: the sockets that replace libssh2's


def test_an_accepted_socket_has_the_options_of_the_listening_one(relay: RelayProcess) -> None:
    """The relay sets no option on each connection: keepalive and TCP_NODELAY are inherited from the listening socket."""

    async def test() -> None:
        async with serving(load_all(relay.config_file)) as (server, ours), logged_in(relay, ours):
            [connection] = server.live
            assert isinstance(connection._connection, PacketConnection)
            accepted = connection._connection._socket.get_extra_info("socket")
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    on_uvloop(test)


def test_a_paused_upstream_is_no_reason_to_be_unready(relay: RelayProcess) -> None:
    async def test() -> None:
        async with serving(load_all(relay.config_file)) as (server, _):
            (pool,) = server.pools.values()
            assert isinstance(pool, Pool)
            await wait_until_async(lambda: pool.states["idle"] == 4, message="its dials are over, none changes what follows")
            for _ in range(3):
                pool.members[0].health.checked(Unavailable("refused"))
            assert server.ready() == (False, "no_upstream")
            server.set_switches({"main": UpstreamSwitches(paused=True), "elsewhere": UpstreamSwitches(paused=True)})
            assert pool.paused and server.ready() == (True, "ready")
            server.set_switches({})
            assert not pool.paused and server.ready() == (False, "no_upstream")

    on_uvloop(test)
