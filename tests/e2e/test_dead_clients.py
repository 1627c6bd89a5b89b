"""Clients that died while their connection stays open, or that do not read: the relay notices, reports and closes them."""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncssh
import pytest

from tests.e2e.helpers import audited
from tests.support.faultproxy import ThreadedFaultProxy
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import SshClient
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

KEEPALIVE = {"limits": {"keepalive_seconds": 0.2}}
LONG = 3600


def test_a_client_that_was_stopped_is_noticed(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config=KEEPALIVE)
    with relay.ssh().popen("git-upload-pack 'stub/hang'") as client:
        wait_until(lambda: relay.metric("relay_sessions_open") == 1)
        client.send_signal(signal.SIGSTOP)
        (line,) = audited(relay, 0, event="session")
        client.kill()
        client.communicate()
    assert (line["result"], line["reason"]) == ("client", "client_gone")
    assert "not responding to keepalive" in line["detail"]
    wait_until(lambda: relay.metric("relay_connections_total", outcome="lost") == 1)
    wait_until(lambda: relay.metric("relay_upstream_connections", state="leased") == 0)


def test_a_client_behind_a_link_that_went_silent_is_noticed(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config=KEEPALIVE)
    with ThreadedFaultProxy("127.0.0.1", relay.port) as link:
        relay.known_hosts.write_text(f"[127.0.0.1]:{link.port} {relay.host_key_line}\n")
        with SshClient(link.port, relay.key.private, relay.known_hosts, relay.user).popen("git-receive-pack 'stub/half/10'") as client:
            assert client.stdout is not None and client.stdout.read(10)
            link.do(lambda p: p.stall())
            (line,) = audited(relay, 0, event="session")
            client.kill()
            client.communicate()
    assert (line["result"], line["reason"]) == ("client", "client_gone")
    wait_until(lambda: relay.metric("relay_connections_open") == 0)


def test_a_client_that_is_only_quiet_answers_and_stays(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config=KEEPALIVE)
    done = relay.ssh().run("git-upload-pack 'stub/slowstart/3/10'")
    assert (done.returncode, len(done.stdout)) == (0, 10)


def test_keepalives_can_be_turned_off(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"limits": {"keepalive_seconds": 0}})
    assert relay.ssh().run("git-upload-pack 'stub/sleep/1'").returncode == 0


# -- clients that do not read


@asynccontextmanager
async def narrow(relay: RelayProcess) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A connection of alice with the smallest socket buffers."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", relay.port))
    options = {"username": relay.user, "client_keys": [relay.key.load()], "known_hosts": None, "agent_path": None, "config": None}
    async with asyncssh.connect(sock=sock, **options) as connection:
        yield connection
        connection.abort()


@pytest.mark.parametrize("window", [1 << 20, 1 << 31], ids=["window", "socket"])
async def test_the_last_bytes_of_a_session_that_are_not_read_are_no_success(
    window: int, sshd: Sshd, make_relay: Callable[..., RelayProcess]
) -> None:
    """The git host has ended with 0; the rest of its output waits for the client's window, or for its socket."""
    relay = make_relay(sshd, config={"limits": {"stall_seconds": 1, "keepalive_seconds": LONG}})
    async with narrow(relay) as connection:
        size = window + 20_000 if window < 1 << 31 else 5_000_000
        process = await connection.create_process(f"git-upload-pack 'stub/emit/{size}'", encoding=None, window=window)
        process.channel.pause_reading()
        if window == 1 << 31:
            connection._transport.pause_reading()  # type: ignore[union-attr]
        await wait_until_async(lambda: relay.audit_lines())
        (line,) = relay.audit_lines()
        assert (line["result"], line["reason"], line["exit_status"]) == ("client", "stalled", 255)


async def test_a_connection_whose_client_reads_nothing_goes_with_its_last_session(
    sshd: Sshd, make_relay: Callable[..., RelayProcess]
) -> None:
    relay = make_relay(sshd, config={"limits": {"stall_seconds": 1, "keepalive_seconds": LONG}})
    async with narrow(relay) as connection:
        await connection.create_process("git-upload-pack 'stub/emit/50000000'", encoding=None, window=1 << 31)
        connection._transport.pause_reading()  # type: ignore[union-attr]
        await wait_until_async(lambda: relay.metric("relay_connections_total", outcome="lost") == 1)
        assert relay.metric("relay_connections_open") == 0
        (line,) = relay.audit_lines()
        assert (line["result"], line["reason"]) == ("client", "stalled")


async def test_a_client_that_reads_its_last_bytes_late_has_them_all(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"limits": {"stall_seconds": 20}})
    async with narrow(relay) as connection:
        process = await connection.create_process("git-upload-pack 'stub/emit/5000000/7'", encoding=None, window=1 << 31)
        transport = connection._transport
        assert transport is not None
        transport.pause_reading()
        await wait_until_async(lambda: relay.metric("relay_bytes_total", direction="out") > 100_000)
        transport.resume_reading()
        assert len(await process.stdout.read()) == 5_000_000
        assert (await process.wait()).exit_status == 7
    (line,) = audited(relay, 0, event="session")
    assert (line["result"], line["exit_status"]) == ("exit", 7)
