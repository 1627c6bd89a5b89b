"""Bytes that are not SSH, or SSH messages in the wrong order: the connection ends with the right outcome and few log lines, others live on.

test_buffers.py tests the memory of such connections, test_limits.py the limits of their time and attempts.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_OPEN_CONFIRMATION,
    MSG_CHANNEL_OPEN_FAILURE,
    MSG_CHANNEL_REQUEST,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_KEXINIT,
    MSG_NEWKEYS,
    MSG_SERVICE_REQUEST,
    MSG_USERAUTH_REQUEST,
    MSG_USERAUTH_SUCCESS,
)
from asyncssh.packet import Boolean, NameList, String, UInt32

from tests.e2e.helpers import alice
from tests.support.keys import make_key
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import run
from tests.support.stranger import Act, offer, stranger
from tests.support.wait import wait_until, wait_until_async

VERSION = b"SSH-2.0-odd\r\n"
LINES_MAX = 12  # log and audit lines together, for one connection that misbehaves
MIB = 1 << 20

Deed = Callable[[asyncssh.SSHClientConnection], Any]


class Watch:
    """The connections that ended since the object was made, by outcome, and how many lines were logged about them."""

    def __init__(self, relay: RelayProcess) -> None:
        wait_until(lambda: relay.metric("relay_connections_open") == 0, message="those before are gone")
        self._relay = relay
        self._outcomes = self._now()
        self._lines = self._said()

    def _now(self) -> Counter[str]:
        return Counter({sample.labels["outcome"]: int(sample.value) for sample in self._relay.metrics()["relay_connections_total"]})

    def _said(self) -> int:
        return len(self._relay.log_text().splitlines()) + len(self._relay.audit_lines())

    @property
    def lines(self) -> int:
        return self._said() - self._lines

    def outcomes(self) -> dict[str, int]:
        """The counts, once all connections have ended."""
        wait_until(lambda: self._relay.metric("relay_connections_open") == 0, message="the connection has ended")
        return dict(self._now() - self._outcomes)


def lives(relay: RelayProcess) -> None:
    assert relay.ssh().run("git-upload-pack 'stub/exit/5'").returncode == 5
    assert "Traceback" not in relay.log_text()


# -- before the keys are exchanged


def packet(payload: bytes) -> bytes:
    """RFC 4253 section 6, without encryption."""
    padding = -(5 + len(payload)) % 8 + 8
    return (1 + len(payload) + padding).to_bytes(4, "big") + bytes([padding]) + payload + bytes(padding)


def kexinit(kex: bytes = b"curve25519-sha256") -> bytes:
    lists = [[kex], [b"ssh-ed25519"], *[[b"aes128-gcm@openssh.com"]] * 2, *[[b"hmac-sha2-256"]] * 2, *[[b"none"]] * 2, [], []]
    return packet(bytes([MSG_KEXINIT]) + bytes(16) + b"".join(NameList(names) for names in lists) + bytes(5))


RAW = {
    "nothing": (b"", "probe"),
    "a version and nothing": (VERSION, "no_auth"),
    "random bytes": (random.Random(1).randbytes(100_000), "protocol"),
    "another protocol": (b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n", "protocol"),
    "another version": (b"SSH-1.5-old\r\n", "protocol"),
    "a version line without end": (b"SSH-2.0-" + b"x" * 100_000, "protocol"),
    "random bytes after the version": (VERSION + random.Random(2).randbytes(100_000), "protocol"),
    "a packet too large": (VERSION + b"\x7f\xff\xff\xff" + bytes(MIB), "protocol"),
    "a packet of no length": (VERSION + bytes(64), "protocol"),
    "a packet that is all padding": (VERSION + (16).to_bytes(4, "big") + b"\xff" + bytes(64), "protocol"),
    "a key exchange that cannot be": (VERSION + kexinit(b"diffie-hellman-group1-sha1") + bytes(64), "no_common_algorithm"),
    "a key exchange cut short": (VERSION + packet(bytes([MSG_KEXINIT]) + bytes(16) + UInt32(1 << 30)), "protocol"),
    "a key exchange of 32 zeros": (VERSION + kexinit() + packet(bytes([30]) + String(bytes(32))), "protocol"),
    "a key too short": (VERSION + kexinit() + packet(bytes([30]) + String(bytes(5))), "protocol"),
    "new keys before old ones": (VERSION + packet(bytes([MSG_NEWKEYS])), "protocol"),
    "authentication without keys": (VERSION + packet(bytes([MSG_USERAUTH_REQUEST]) + bytes(40)), "protocol"),
    "a channel without keys": (VERSION + packet(bytes([MSG_CHANNEL_OPEN]) + String(b"session") + bytes(12)), "protocol"),
    "one key exchange upon another": (VERSION + kexinit() * 1_000, "protocol"),
}


@pytest.mark.parametrize("name", list(RAW))
def test_a_stranger_who_does_not_speak_ssh(name: str, relay: RelayProcess) -> None:
    data, outcome = RAW[name]
    watch = Watch(relay)
    with socket.create_connection(("127.0.0.1", relay.port), timeout=30) as client:
        try:
            client.sendall(data)
            if outcome in ("no_auth", "probe"):
                client.shutdown(socket.SHUT_WR)
            while client.recv(1 << 16):
                pass
        except (ConnectionResetError, BrokenPipeError):
            pass  # the relay closed before it had read everything
    assert watch.outcomes() == {outcome: 1}
    assert watch.lines <= LINES_MAX
    lives(relay)


# -- with keys, before authentication


def sends(*packets: tuple[int, bytes], times: int = 1) -> Act:
    async def act(connection: asyncssh.SSHClientConnection) -> None:
        connection._auth_complete = True  # else asyncssh's client queues packets that may not be sent yet
        for kind, payload in packets * times:
            if connection._transport is None or connection._transport.is_closing():
                return
            connection.send_packet(kind, payload)

    return act


async def garbles(connection: asyncssh.SSHClientConnection) -> None:
    """The next packet's MAC is wrong by one bit."""
    send = connection._send

    def wrong(data: bytes) -> None:
        send(data[:-1] + bytes([data[-1] ^ 1]))

    connection._send = wrong  # type: ignore[method-assign]
    connection.send_packet(MSG_SERVICE_REQUEST, String(b"ssh-userauth"))


async def scribbles(connection: asyncssh.SSHClientConnection) -> None:
    assert isinstance(connection._transport, asyncio.Transport)
    connection._transport.write(random.Random(3).randbytes(100_000))


STRANGE: dict[str, tuple[Act, str]] = {
    "a MAC that is wrong": (garbles, "protocol"),
    "random bytes": (scribbles, "protocol"),
    "a packet too large": (sends((MSG_SERVICE_REQUEST, bytes(40_000))), "protocol"),
    "a channel": (sends((MSG_CHANNEL_OPEN, String(b"session") + bytes(12))), "protocol"),
    "its own success": (sends((MSG_USERAUTH_SUCCESS, b"")), "protocol"),
    "the connection at once": (sends((MSG_SERVICE_REQUEST, String(b"ssh-connection"))), "protocol"),
    "new keys": (sends((MSG_NEWKEYS, b"")), "protocol"),
    "a request cut short": (sends((MSG_USERAUTH_REQUEST, String(b"git") + UInt32(1 << 31))), "protocol"),
    "requests for a service": (sends((MSG_SERVICE_REQUEST, String(b"ssh-userauth")), times=10_000), "protocol"),
}


@pytest.mark.parametrize("name", list(STRANGE))
async def test_a_stranger_who_speaks_out_of_turn(name: str, relay: RelayProcess) -> None:
    act, outcome = STRANGE[name]
    watch = await asyncio.to_thread(Watch, relay)
    await stranger(relay, act)
    assert await asyncio.to_thread(watch.outcomes) == {outcome: 1}
    assert watch.lines <= LINES_MAX
    await asyncio.to_thread(lives, relay)


async def test_a_flood_of_keys_nobody_knows(relay: RelayProcess, tmp_path: Any) -> None:
    keys = [make_key(tmp_path, f"key{number}") for number in range(20)]
    watch = await asyncio.to_thread(Watch, relay)
    await stranger(relay, sends(*((MSG_USERAUTH_REQUEST, offer(key, relay.user)) for key in keys), times=100))
    assert await asyncio.to_thread(watch.outcomes) == {"auth_failed": 1}
    assert watch.lines <= LINES_MAX
    await asyncio.to_thread(lives, relay)


# -- after the login


NO_CHANNEL = UInt32(4_711)

DEEDS: dict[str, Deed] = {
    "a MAC that is wrong": garbles,
    "random bytes": scribbles,
    "a packet too large": sends((MSG_CHANNEL_DATA, bytes(300_000))),
    "one key exchange upon another": sends((MSG_KEXINIT, bytes(16) + b"".join(NameList([]) for _ in range(10)) + bytes(5)), times=1_000),
    "new keys": sends((MSG_NEWKEYS, b"")),
    "data for no channel": sends((MSG_CHANNEL_DATA, NO_CHANNEL + String(b"x"))),
    "a request for no channel": sends((MSG_CHANNEL_REQUEST, NO_CHANNEL + String(b"exec") + Boolean(True) + String(b"x"))),
    "the end of no channel": sends((MSG_CHANNEL_CLOSE, NO_CHANNEL)),
    "a channel nobody asked for": sends((MSG_CHANNEL_OPEN_CONFIRMATION, NO_CHANNEL + bytes(12))),
    "its own success": sends((MSG_USERAUTH_SUCCESS, b"")),
}


@pytest.mark.parametrize("name", list(DEEDS))
async def test_a_client_who_speaks_out_of_turn(name: str, relay: RelayProcess) -> None:
    """Another connection's session that runs meanwhile is not disturbed."""
    watch = await asyncio.to_thread(Watch, relay)
    async with alice(relay) as neighbour:
        running = await neighbour.create_process("git-receive-pack 'stub/cat'", encoding=None)
        async with alice(relay) as connection:
            await DEEDS[name](connection)
            async with asyncio.timeout(60):
                await connection.wait_closed()
        await wait_until_async(lambda: asyncio.to_thread(lambda: relay.metric("relay_connections_open") == 1), message="it ended")
        running.stdin.write(b"still here")
        running.stdin.write_eof()
        assert await running.stdout.read() == b"still here"
    assert await asyncio.to_thread(watch.outcomes) == {"protocol": 1, "ok": 1}
    assert watch.lines <= LINES_MAX
    await asyncio.to_thread(lives, relay)


async def test_two_commands_on_one_channel(relay: RelayProcess) -> None:
    """The relay refuses the second, the first runs on (RFC 4254 section 6.5: only one of these requests can succeed per channel)."""
    async with alice(relay) as connection:
        process = await connection.create_process("git-receive-pack 'stub/cat'", encoding=None)
        channel = process.channel
        refused = await channel._make_request(b"exec", String(b"git-receive-pack 'stub/exit/3'"))
        assert refused is False
        process.stdin.write(b"first")
        process.stdin.write_eof()
        assert await process.stdout.read() == b"first"
        assert (await process.wait()).exit_status == 0


async def test_a_window_beyond_all(relay: RelayProcess) -> None:
    """More than 2^32 - 1 bytes must not be granted (RFC 4254 section 5.2); here it grants no more than before, and breaks nothing."""
    async with alice(relay) as connection:
        process = await connection.create_process("git-receive-pack 'stub/cat'", encoding=None)
        for _ in range(3):
            process.channel.send_packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(0xFFFFFFFF))
        process.stdin.write(bytes(MIB))
        process.stdin.write_eof()
        assert await process.stdout.read() == bytes(MIB)
        assert (await process.wait()).exit_status == 0


async def test_authentication_once_more_is_not_heard(relay: RelayProcess) -> None:
    """RFC 4252 section 5.1: further requests after the success should be silently ignored."""
    async with alice(relay) as connection:
        await sends((MSG_USERAUTH_REQUEST, offer(relay.key, "root")), times=100)(connection)
        assert (await run(connection, "git-upload-pack 'stub/exit/4'")).exit_status == 4


async def test_ten_thousand_channels(relay: RelayProcess) -> None:
    """Each beyond the tenth is refused; the log lines about them are bounded, and the ten sessions work on."""
    count, refusals = 10_000, 0

    def refused(*arguments: object) -> None:
        nonlocal refusals
        refusals += 1

    watch = await asyncio.to_thread(Watch, relay)
    rss = relay.rss()
    async with alice(relay) as connection:
        running = [await connection.create_process("git-receive-pack 'stub/cat'", encoding=None) for _ in range(10)]
        connection._packet_handlers = {**connection._packet_handlers, MSG_CHANNEL_OPEN_FAILURE: refused}
        for number in range(count):
            connection.send_packet(MSG_CHANNEL_OPEN, String(b"session"), UInt32(1_000 + number), UInt32(65_536), UInt32(32_768))
        await wait_until_async(lambda: refusals == count, 60, "each is answered")
        assert relay.rss() - rss < 32 * MIB
        for number, process in enumerate(running):
            process.stdin.write(b"%d" % number)
            process.stdin.write_eof()
            assert await process.stdout.read() == b"%d" % number
            assert (await process.wait()).exit_status == 0
    assert await asyncio.to_thread(watch.outcomes) == {"ok": 1}
    assert watch.lines <= len(running) + LINES_MAX, "one line of audit for each session, and few about all that were refused"
    told = [line["times"] for line in relay.audit_lines()[-len(running) - LINES_MAX :] if line.get("reason") == "too_many"]
    assert sum(told) == count
    await asyncio.to_thread(lives, relay)
