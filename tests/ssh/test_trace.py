"""The SSH trace of level debug: what it shows of a connection, what it leaves out, and no cost at any other level."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from asyncssh.constants import MSG_CHANNEL_REQUEST, MSG_DISCONNECT, MSG_USERAUTH_REQUEST
from asyncssh.logging import SSHLogger
from asyncssh.packet import Boolean, Byte, String, UInt32

from relay.config import Config, LogSettings
from relay.server import connection_class
from relay.ssh import trace, wire
from relay.ssh.channel import Channel
from relay.ssh.client_connection import ClientConnection
from relay.ssh.quiet import QUIET
from relay.ssh.trace import TracedConnection, described
from tests.support.echo import client, echo
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

PASSWORD = String("git") + String("ssh-connection") + String("password") + Boolean(False) + String("hunter2")


@pytest.mark.parametrize("way", ["direct", "asyncssh"])
async def test_it_shows_each_message_and_the_algorithms(
    way: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "ENABLED", way == "direct")
    with caplog.at_level(logging.DEBUG, "asyncssh"):
        async with echo(TracedConnection) as (port, connections):
            for _ in range(2):  # the trace also shows a cached key exchange
                async with client(port) as connection:
                    done = await connection.run("out", input=b"the content of a file", encoding=None)
                    assert done.stdout == b"the content of a file"
            addresses = [f"{one._peer_addr}:{one._peer_port}" for one in connections]
    assert len(addresses) == 2
    for address in addresses:
        told = [record.getMessage() for record in caplog.records if f"[{address}" in record.getMessage()]
        text = "\n".join(told)
        for part in (
            "accepted",
            "received MSG_KEXINIT (20)",
            "sent MSG_KEXINIT (20)",
            "Encryption alg: aes256-gcm@openssh.com",
            "received MSG_USERAUTH_REQUEST (50)",
            "user git, method none",
            "sent MSG_USERAUTH_SUCCESS (52)",
            "received MSG_CHANNEL_OPEN (90)",
            "received MSG_CHANNEL_REQUEST (98)",
            "exec, wants a reply",
            "sent MSG_CHANNEL_SUCCESS (99)",
            "sent MSG_CHANNEL_CLOSE (97)",
            "ends: ",
        ):
            assert part in text, (part, text)
        assert text.count("received MSG_KEXINIT") == 1
        assert "the content" not in text
        assert "MSG_CHANNEL_DATA" not in text
        assert "MSG_IGNORE" not in text


@pytest.mark.parametrize("way", ["direct", "asyncssh"])
async def test_at_other_levels_nothing_is_formatted(way: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "ENABLED", way == "direct")
    logged: list[object] = []
    log = SSHLogger.log

    def note(self: SSHLogger, level: int, message: object, *arguments: Any, **named: Any) -> None:
        if "127.0.0.1" not in self._context and "conn=" not in self._context:  # records of the server, not of the client
            logged.append(message)
        log(self, level, message, *arguments, **named)

    def fail(*arguments: object) -> str:
        raise AssertionError("a message was described")

    monkeypatch.setattr(trace, "described", fail)
    with caplog.at_level(logging.DEBUG, "asyncssh"):  # even if a handler takes debug records
        async with echo() as (port, _), client(port) as connection:
            monkeypatch.setattr(SSHLogger, "log", note)
            await connection.run("out", input=b"x", encoding=None)
    assert logged == []


def test_only_debug_chooses_it() -> None:
    for level in ("info", "warning", "error"):
        assert connection_class(Config(upstreams={}, log=LogSettings(level=level))) is ClientConnection
    assert connection_class(Config(upstreams={}, log=LogSettings(level="debug"))) is TracedConnection
    for kind in (ClientConnection, Channel):
        assert kind.logger is QUIET
        assert kind.log_sent_packet is kind.log_received_packet is QUIET.log


@pytest.mark.parametrize(
    ("kind", "fields", "text"),
    [
        (
            MSG_USERAUTH_REQUEST,
            String("git") + String("ssh-connection") + String("password") + Boolean(False) + String("hunter2"),
            "user git, method password",
        ),
        (MSG_CHANNEL_REQUEST, UInt32(3) + String("env") + Boolean(False) + String("A") + String("secret"), "channel 3, env"),
        (MSG_DISCONNECT, UInt32(11) + String("by\x1b[2J") + String(""), r"code 11: by"),
        (MSG_CHANNEL_REQUEST, UInt32(3) + b"\0\0", "channel 3, malformed"),
        (192, b"", "message (192), 1 byte"),
    ],
)
def test_names_are_shown_and_contents_are_not(kind: int, fields: bytes, text: str) -> None:
    told = described(kind, Byte(kind) + fields)
    assert text in told
    assert "hunter2" not in told
    assert "secret" not in told
    assert told.isprintable()


def test_a_relay_at_debug_traces_the_real_ssh(sshd: Sshd) -> None:
    with RelayProcess(sshd, config={"log": {"level": "debug"}}) as relay:
        assert relay.ssh().run("git-upload-pack 'team/none.git'").returncode != 0
        wait_until(lambda: "ends: " in relay.log_text(), message="the connection ends")
        for part in ("received MSG_KEXINIT", "Encryption alg: aes", "signed", "MSG_USERAUTH_SUCCESS", "exec, wants a reply"):
            assert part in relay.log_text()
