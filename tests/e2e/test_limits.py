"""The limits for connections and logins, with real connections: grace, attempts, early drop, sources, sessions and penalties."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import asyncssh
import pytest

from tests.e2e.helpers import alice, audited, comes_in
from tests.support.keys import Key, make_key
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import connect, run
from tests.support.sshd import Sshd
from tests.support.stranger import offer, password, requests, stranger
from tests.support.wait import wait_until, wait_until_async


@pytest.fixture
def connections() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(relay: RelayProcess, stack: ExitStack, source: str = "127.0.0.1") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", relay.port), timeout=30, source_address=(source, 0))
    return stack.enter_context(client)


# -- login grace


@pytest.mark.parametrize("at_once", [0, 14, 19], ids=["version", "header", "packet"])
def test_a_byte_now_and_then_does_not_hold_a_place_longer_than_the_grace(
    at_once: int, sshd: Sshd, make_relay: Callable[..., RelayProcess], connections: ExitStack
) -> None:
    """The client sends a version line, a packet's header and the packet byte by byte."""
    relay = make_relay(sshd, config={"limits": {"login_grace_seconds": 1}})
    client = opened(relay, connections)
    assert comes_in(client)
    line = b"SSH-2.0-slow\r\n" + b"\0\0\x80\0\4" + bytes(30_000)
    client.sendall(line[:at_once])
    client.settimeout(0.05)
    began = time.monotonic()
    dripped = 0
    while not closed(client):
        assert time.monotonic() - began < 20, "it still holds its place"
        dripped += drip(client, line[at_once + dripped :][:1])
    assert dripped > 2, "it was closed for its slowness, not for what it sent"
    wait_until(lambda: relay.metric("relay_connections_total", outcome="grace") == 1)
    assert relay.metric("relay_connections_open") == 0
    (line_of_audit,) = audited(relay, 0, event="auth_failed")
    assert (line_of_audit["reason"], line_of_audit["address"]) == ("grace", "127.0.0.1")


def closed(client: socket.socket) -> bool:
    """Whether the relay closes the connection within a moment; reads and drops the bytes until then."""
    try:
        return client.recv(65536) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def drip(client: socket.socket, data: bytes) -> int:
    try:
        return client.send(data)
    except OSError:
        return 0  # `closed` will say so


def test_the_grace_ends_with_the_login(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"limits": {"login_grace_seconds": 1}})
    assert relay.ssh().run("git-upload-pack 'stub/sleep/2'").returncode == 0


# -- authentication attempts


def agent_of(folder: Path, strangers: int) -> list[Key]:
    return [make_key(folder, f"key{number}") for number in range(strangers)]


async def test_the_last_of_the_allowed_attempts_may_still_succeed(
    sshd: Sshd, make_relay: Callable[..., RelayProcess], tmp_path: Path
) -> None:
    relay = make_relay(sshd, config={"limits": {"auth_attempts": 4}})
    async with connect(relay.port, [*agent_of(tmp_path, 3), relay.key], relay.host_key_line, relay.user) as connection:
        assert (await run(connection, "git-upload-pack 'stub/exit/0'")).exit_status == 0
    assert relay.metric("relay_auth_failures_total", reason="unknown_key") == 3
    assert relay.metric("relay_auth_failures_total", reason="too_many") == 0


async def test_one_attempt_more_than_allowed_is_told_and_ends(sshd: Sshd, make_relay: Callable[..., RelayProcess], tmp_path: Path) -> None:
    relay = make_relay(sshd, config={"limits": {"auth_attempts": 3}})
    with pytest.raises(asyncssh.DisconnectError, match="Too many authentication failures"):
        async with connect(relay.port, [*agent_of(tmp_path, 3), relay.key], relay.host_key_line, relay.user):
            pass
    await wait_until_async(lambda: relay.metric("relay_connections_total", outcome="auth_failed") == 1)
    assert relay.metric("relay_auth_failures_total", reason="unknown_key") == 3
    assert relay.metric("relay_auth_failures_total", reason="too_many") == 1


async def test_guessed_passwords_are_attempts_too(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"limits": {"auth_attempts": 2}})
    ended = await stranger(relay, requests(password(relay.user), 10))
    # the client still sends after the relay has closed, so it may get the reset before it reads the reason
    assert "Too many authentication failures" in str(ended) or isinstance(ended, OSError)
    await wait_until_async(lambda: relay.metric("relay_auth_failures_total", reason="too_many") == 1)


async def test_asking_again_and_again_whether_a_known_key_would_do_has_an_end(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    """An offer of a known public key is neither a proof nor a failure; the number of offers is limited all the same."""
    relay = make_relay(sshd)
    ended = await stranger(relay, requests(offer(relay.key, relay.user), 100))
    # if the relay has not read all that the stranger sent, the kernel's reset overtakes the relay's last message
    assert "Too many packets before authentication" in str(ended) or isinstance(ended, ConnectionResetError | BrokenPipeError), ended
    await wait_until_async(lambda: relay.metric("relay_connections_total", outcome="protocol") == 1)
    assert relay.metric("relay_auth_successes_total") == 0


# -- places


def test_strangers_have_a_bounded_number_of_places_with_random_early_drop(
    sshd: Sshd, make_relay: Callable[..., RelayProcess], connections: ExitStack
) -> None:
    relay = make_relay(sshd, config={"limits": {"unauthenticated_connections": 10, "connections_per_source": 1000}})
    clients = [opened(relay, connections) for _ in range(100)]
    inside = [client for client in clients if comes_in(client)]
    assert 5 <= len(inside) <= 10, "none is dropped below half, and there are no more than all"
    assert relay.metric("relay_connections_total", outcome="limited") == 100 - len(inside)
    assert relay.metric("relay_connections_open") == len(inside)
    assert relay.get("/ready")[0] == 200
    for client in inside:
        client.close()
    wait_until(lambda: relay.metric("relay_connections_open") == 0)
    assert relay.ssh().run("git-upload-pack 'stub/exit/0'").returncode == 0


async def test_those_who_logged_in_take_no_strangers_place(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"limits": {"unauthenticated_connections": 2, "connections_per_source": 1000}})
    async with alice(relay), alice(relay), alice(relay), alice(relay) as connection:
        assert (await run(connection, "git-upload-pack 'stub/exit/0'")).exit_status == 0


def test_a_source_has_a_bounded_number_of_connections(sshd: Sshd, make_relay: Callable[..., RelayProcess], connections: ExitStack) -> None:
    relay = make_relay(sshd, config={"limits": {"connections_per_source": 3}})
    first, second, third, fourth = (opened(relay, connections) for _ in range(4))
    assert [comes_in(client) for client in (first, second, third, fourth)] == [True, True, True, False]
    assert comes_in(opened(relay, connections, source="127.0.0.2"))
    first.close()
    wait_until(lambda: relay.metric("relay_connections_open") == 3)
    assert comes_in(opened(relay, connections))
    assert relay.metric("relay_connections_total", outcome="limited") == 1


def test_all_connections_together_are_bounded(sshd: Sshd, make_relay: Callable[..., RelayProcess], connections: ExitStack) -> None:
    relay = make_relay(sshd, config={"limits": {"connections": 2}})
    assert [comes_in(opened(relay, connections, f"127.0.0.{number}")) for number in (1, 2, 3)] == [True, True, False]


async def test_the_eleventh_session_is_told_why_and_the_ten_go_on(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd)
    async with alice(relay) as connection:
        running = [await connection.create_process("git-receive-pack 'stub/cat'", encoding=None) for _ in range(10)]
        for _ in range(2):
            with pytest.raises(asyncssh.ChannelOpenError, match="too many concurrent sessions"):
                await connection.create_process("git-receive-pack 'stub/cat'", encoding=None)
        for number, process in enumerate(running):
            process.stdin.write(b"%d" % number)
            process.stdin.write_eof()
            assert await process.stdout.read() == b"%d" % number
            assert (await process.wait()).exit_status == 0
        assert (await run(connection, "git-upload-pack 'stub/exit/4'")).exit_status == 4
    assert relay.metric("relay_commands_rejected_total", reason="too_many") == 2
    lines = audited(relay, 0, 2, event="command_rejected")
    assert {(line["reason"], line["detail"]) for line in lines} == {("too_many", "10 sessions are open on this connection")}


def test_a_real_ssh_is_told_too(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"limits": {"sessions_per_connection": 1}})
    with relay.ssh().control_master() as master, master.popen("git-upload-pack 'stub/half/1'") as first:
        assert first.stdout is not None and first.stdout.read(1)
        done = subprocess.run(
            [*master.arguments("git-upload-pack 'stub/exit/0'", "-v")],
            capture_output=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert b"Session open refused by peer" in done.stderr  # then ssh dials a new connection
        first.communicate(timeout=60)
        wait_until(lambda: relay.metric("relay_sessions_open") == 0)
        assert master.run("git-upload-pack 'stub/exit/3'").returncode == 3


# -- penalties


def test_a_source_that_fails_to_log_in_is_kept_out(
    sshd: Sshd, make_relay: Callable[..., RelayProcess], key: Key, connections: ExitStack
) -> None:
    """The penalty of one failed login is below the least that refuses a source; that of two is above."""
    relay = make_relay(sshd, config={"limits": {"penalty_seconds": 12, "penalty_max_seconds": 100}})
    for failed in (1, 2):
        assert relay.ssh(key=key).run("git-upload-pack 'x'").returncode == 255
        wait_until(lambda count=failed: relay.metric("relay_connections_total", outcome="auth_failed") == count)  # type: ignore[misc]
    assert not comes_in(opened(relay, connections))
    assert relay.metric("relay_connections_total", outcome="limited") == 1
    assert comes_in(opened(relay, connections, source="127.0.0.2")), "others are not"


def test_a_penalty_passes(sshd: Sshd, make_relay: Callable[..., RelayProcess], key: Key) -> None:
    relay = make_relay(sshd, config={"limits": {"penalty_seconds": 1, "penalty_max_seconds": 1}})
    assert relay.ssh(key=key).run("git-upload-pack 'x'").returncode == 255
    wait_until(lambda: relay.ssh().run("git-upload-pack 'stub/exit/0'").returncode == 0, 30)


async def test_a_login_that_succeeds_in_the_end_is_no_failure(sshd: Sshd, make_relay: Callable[..., RelayProcess], tmp_path: Path) -> None:
    relay = make_relay(sshd, config={"limits": {"penalty_seconds": 100, "penalty_max_seconds": 100}})
    keys = [*agent_of(tmp_path, 3), relay.key]
    for _ in range(2):
        async with connect(relay.port, keys, relay.host_key_line, relay.user) as connection:
            assert (await run(connection, "git-upload-pack 'stub/exit/0'")).exit_status == 0
    assert relay.metric("relay_auth_failures_total", reason="unknown_key") == 6


async def test_a_connection_without_a_session_ends_and_makes_room(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    """A connection that has a session, or opens one now and then, stays."""
    relay = make_relay(sshd, config={"workers": 1, "limits": {"connections_per_source": 3, "connection_idle_seconds": 2}})
    async with alice(relay) as busy, alice(relay) as never, alice(relay) as once:
        assert (await run(once, "git-upload-pack 'stub/exit/0'")).exit_status == 0
        process = await busy.create_process("git-upload-pack 'stub/cat'", encoding=None)
        with pytest.raises((asyncssh.Error, OSError)):
            async with alice(relay):
                pass
        await wait_until_async(lambda: "127.0.0.1 has 3 connections open, no more are allowed from one source" in relay.log_text())
        await never.wait_closed()
        await once.wait_closed()
        await wait_until_async(lambda: relay.metric("relay_connections_total", outcome="idle") == 2)
        async with alice(relay) as another:
            assert (await run(another, "git-upload-pack 'stub/exit/0'")).exit_status == 0
        process.stdin.write(b"still here")
        process.stdin.write_eof()
        assert await process.stdout.read() == b"still here"
