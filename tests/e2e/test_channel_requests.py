"""Requests that the relay does not serve, and channels that misbehave: answered, or closed alone; the connection lives on.

The real clients that send such requests: OpenSSH's SetEnv, PuTTY's winadj, keepalives of a library.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from asyncssh.channel import SSHClientChannel
from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_CHANNEL_FAILURE,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_REQUEST,
    MSG_CHANNEL_SUCCESS,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_REQUEST_SUCCESS,
)
from asyncssh.packet import Boolean, String, UInt32

from relay.ssh.client_connection import REQUESTS_BURST
from tests.e2e.helpers import alice, audited, streamed
from tests.support.gitrepo import fsck, make_big_repo, rev_parse
from tests.support.pattern import stub_sha256
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import SshClient, run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

CAT = "git-upload-pack 'stub/cat'"
STREAM_BYTES = 30_000_000
MIB = 1 << 20


def protocol_ends(relay: RelayProcess) -> float:
    return relay.metric("relay_connections_total", outcome="protocol")


@contextmanager
def neighbour(relay: RelayProcess, master: SshClient) -> Iterator[None]:
    """A session on the same connection that streams during the block; asserts that all its bytes arrive."""
    with master.popen(f"git-upload-pack 'stub/emit/{STREAM_BYTES}'") as stream:
        wait_until(lambda: relay.metric("relay_bytes_total", direction="out") > 0, message="it streams")
        yield
        got = streamed(stream)
    assert (got.returncode, got.length, got.sha256, got.stderr) == (0, STREAM_BYTES, stub_sha256(STREAM_BYTES), b"")


# -- OpenSSH's SetEnv

VARIABLES: dict[str, list[str]] = {
    "64": [f"V{number}={number}" for number in range(64)],
    "10,000": [f"V{number}={number}" for number in range(10_000)],
    "one of 35,001 bytes": ["BIG=" + "x" * 35_001],
    "one of 200 kB": ["BIG=" + "x" * 200_000],
}


def ssh_config(folder: Path, variables: list[str]) -> list[str]:
    """OpenSSH reads SetEnv from a file: one argument of a program has 128 kB at most."""
    file = folder / "config"
    file.write_text("Host *\n    SetEnv " + " ".join(variables) + "\n")
    return ["-F", str(file)]


@pytest.mark.parametrize("name", list(VARIABLES))
@pytest.mark.parametrize("multiplexed", [False, True], ids=["alone", "multiplexed"])
def test_variables_of_openssh(name: str, multiplexed: bool, relay: RelayProcess, tmp_path: Path) -> None:
    flags, before = ssh_config(tmp_path, VARIABLES[name]), protocol_ends(relay)
    with ExitStack() as stack:
        client = relay.ssh()
        if multiplexed:
            client = stack.enter_context(client.control_master())
            stack.enter_context(neighbour(relay, client))
        done = client.run(CAT, b"carried", *flags)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"carried", b"")
    assert protocol_ends(relay) == before


# -- PuTTY's winadj: with any forwarding, plink sends a request that wants a reply for each window that it opens


@pytest.mark.parametrize("option", ["-A", "-X", "-L", "-C"])
def test_plink_clones_much(option: str, relay: RelayProcess, sshd: Sshd, tmp_path: Path, git_env: dict[str, str]) -> None:
    name = f"plink/much{option}"
    bare = make_big_repo(sshd.root / f"{name}.git", 45)
    ppk = tmp_path / "key.ppk"
    subprocess.run(["puttygen", relay.key.private, "-O", "private", "-o", ppk], check=True, capture_output=True)
    with agent(tmp_path) as environment:
        options = [option, "0:127.0.0.1:9"] if option == "-L" else [option]
        plink = " ".join(["plink", "-batch", "-i", str(ppk), "-hostkey", relay.host_key.fingerprint, *options])
        env = git_env | environment | {"GIT_SSH_COMMAND": plink, "GIT_SSH_VARIANT": "plink", "DISPLAY": ":9"}
        before = protocol_ends(relay)
        work = tmp_path / "work"
        done = subprocess.run(["git", "clone", "-q", relay.url(name), work], env=env, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert rev_parse(work, git_env) == rev_parse(bare, git_env)
    fsck(work, git_env)
    assert protocol_ends(relay) == before


@contextmanager
def agent(folder: Path) -> Iterator[dict[str, str]]:
    """An ssh-agent: without one plink does not request agent forwarding."""
    socket = folder / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(socket.exists, message="the agent listens")
            yield {"SSH_AUTH_SOCK": str(socket)}
        finally:
            process.terminate()


# -- keepalives, as libraries send them: a request a second for ten hours


async def test_two_hours_of_keepalives(relay: RelayProcess) -> None:
    """7,200 channel requests and as many global requests, each sent when the one before is answered."""
    before = protocol_ends(relay)
    async with alice(relay) as connection:
        session = await connection.create_process(CAT, encoding=None)
        for _ in range(72):
            on_channel = [session.channel._make_request(b"keepalive@openssh.com") for _ in range(100)]
            on_connection = [connection._make_global_request(b"keepalive@openssh.com") for _ in range(100)]
            assert await asyncio.gather(*on_channel) == [False] * 100
            assert {kind for kind, _ in await asyncio.gather(*on_connection)} == {MSG_REQUEST_SUCCESS}
        session.stdin.write(b"still here")
        session.stdin.write_eof()
        assert await session.stdout.read() == b"still here"
        assert (await session.wait()).exit_status == 0
    assert protocol_ends(relay) == before


async def test_a_client_library_that_keeps_alive(relay: RelayProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    async with alice(relay, keepalive_interval=0.01, keepalive_count_max=1_000) as connection:
        session = await connection.create_process(CAT, encoding=None)
        answered = 0
        make = connection._make_global_request

        async def counted(*arguments: Any) -> Any:
            nonlocal answered
            answer = await make(*arguments)
            answered += 1
            return answer

        monkeypatch.setattr(connection, "_make_global_request", counted)
        await wait_until_async(lambda: answered >= 100, 60, "a hundred keepalives are answered")
        session.stdin.write_eof()
        assert (await session.wait()).exit_status == 0


# -- a flood


BATCH, BATCHES_AT_ONCE = 1_000, 3  # requests of a flood


async def request(channel: Any) -> bool | None:
    answer: bool | None = await channel._make_request(b"winadj@putty.projects.tartarus.org")
    return answer


async def test_a_flood_of_requests_is_read_slowly(relay: RelayProcess) -> None:
    """Beyond the burst the relay delays each request, serves other connections meanwhile, and buffers no more than one read.

    A slow machine sends slowly, so most requests want no reply, which costs the client little, and it sends until the relay says so. One in
    each batch wants one: few batches are on the way, or what is left would take the relay minutes.
    """
    rss, before = relay.rss(), protocol_ends(relay)
    async with alice(relay) as other, alice(relay) as connection:
        session = await connection.create_process(CAT, encoding=None)
        asked: list[asyncio.Future[bool | None]] = []
        async with asyncio.timeout(120):
            while "is read more slowly" not in relay.log_text():
                for _ in range(BATCH):
                    session.channel._send_request(b"flood@test")
                asked.append(asyncio.ensure_future(request(session.channel)))
                while sum(not one.done() for one in asked) > BATCHES_AT_ONCE and "is read more slowly" not in relay.log_text():
                    await asyncio.sleep(0.001)
        assert len(asked) * (BATCH + 1) > REQUESTS_BURST
        assert (await run(other, CAT, b"meanwhile")).stdout == b"meanwhile"
        assert await asyncio.gather(*asked) == [False] * len(asked)
        session.stdin.write(b"after all")
        session.stdin.write_eof()
        assert await session.stdout.read() == b"after all"
    assert relay.rss() - rss < 32 * MIB
    assert protocol_ends(relay) == before


# -- one channel that misbehaves

Deed = Callable[["Misbehaving"], Any]


class Misbehaving:
    """Sends packets on a channel of a live connection that its library would not send."""

    def __init__(self, connection: asyncssh.SSHClientConnection, channel: Any) -> None:
        self.connection, self.channel = connection, channel
        self.number = channel._send_chan
        # the client's own library must survive the relay's answers
        channel._process_response = lambda *_: None
        channel._packet_handlers = {**channel._packet_handlers, MSG_CHANNEL_SUCCESS: self._heard, MSG_CHANNEL_FAILURE: self._heard}

    def _heard(self, channel: Any, kind: int, number: int, packet: Any) -> None:
        pass

    def send(self, kind: int, payload: bytes = b"") -> None:
        self.connection.send_packet(kind, UInt32(self.number) + payload)

    def request(self, name: bytes, payload: bytes = b"", want_reply: bool = False) -> None:
        self.send(MSG_CHANNEL_REQUEST, String(name) + Boolean(want_reply) + payload)


def ends(misbehaving: Misbehaving) -> None:
    misbehaving.send(MSG_CHANNEL_EOF)


def overruns(misbehaving: Misbehaving) -> None:
    for _ in range(400):
        misbehaving.send(MSG_CHANNEL_DATA, String(bytes(32_000)))


DEEDS: dict[str, list[Deed]] = {
    "data after its EOF": [ends, lambda m: m.send(MSG_CHANNEL_DATA, String(b"late"))],
    "extended data": [lambda m: m.send(MSG_CHANNEL_EXTENDED_DATA, UInt32(1) + String(b"from a client"))],
    "extended data of no known type": [lambda m: m.send(MSG_CHANNEL_EXTENDED_DATA, UInt32(9) + String(b"x"))],
    "a window overrun": [overruns],
    "data that is no string": [lambda m: m.send(MSG_CHANNEL_DATA, UInt32(1 << 31) + b"x")],
    "a window adjust cut short": [lambda m: m.send(MSG_CHANNEL_WINDOW_ADJUST, b"\0")],
    "an EOF with something behind it": [lambda m: m.send(MSG_CHANNEL_EOF, b"x")],
    "a close with something behind it": [lambda m: m.send(MSG_CHANNEL_CLOSE, b"x")],
    "a request without a name": [lambda m: m.send(MSG_CHANNEL_REQUEST, b"\0\0")],
    "two EOFs": [ends, ends],
    "EOF, close, and then everything": [
        ends,
        lambda m: m.send(MSG_CHANNEL_CLOSE),
        lambda m: m.send(MSG_CHANNEL_CLOSE),
        lambda m: m.send(MSG_CHANNEL_DATA, String(b"x")),
        lambda m: m.send(MSG_CHANNEL_WINDOW_ADJUST, UInt32(1)),
        lambda m: m.request(b"env", String(b"LANG") + String(b"C"), want_reply=True),
    ],
    "an answer nobody waits for": [lambda m: m.send(MSG_CHANNEL_SUCCESS), lambda m: m.send(MSG_CHANNEL_FAILURE)],
    "a second exec": [lambda m: m.request(b"exec", String(b"git-upload-pack 'stub/exit/3'"), want_reply=True)],
    "a shell after the exec": [lambda m: m.request(b"shell", want_reply=True)],
    "an exec without a command": [lambda m: m.request(b"exec", want_reply=True)],
    "a request whose name is no ASCII": [lambda m: m.request("größer".encode(), want_reply=True)],
    "a terminal with broken modes": [lambda m: m.request(b"pty-req", String(b"xt\xe9rm") + bytes(16) + String(b"\1"), want_reply=True)],
    "an env cut short": [lambda m: m.request(b"env", String(b"GIT_PROTOCOL"), want_reply=True)],
    "a signal": [lambda m: m.request(b"signal", String(b"KILL"))],
    "an exit status": [lambda m: m.request(b"exit-status", UInt32(1))],
    "a message of no known number": [lambda m: m.send(110, b"x")],
}
GOES_ON = {  # the session runs on
    "two EOFs", "an answer nobody waits for", "a second exec", "a shell after the exec", "an exec without a command", "a signal",
    "a request whose name is no ASCII", "a terminal with broken modes", "an env cut short", "an exit status",
    "a message of no known number",
}  # fmt: skip


@pytest.fixture(scope="module")
def compatible(sshd: Sshd) -> Iterator[RelayProcess]:
    """A relay whose other ciphers use asyncssh's own packet code."""
    with RelayProcess(sshd, config={"algorithms": {"profile": "compatible"}}) as process:
        yield process


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"])
@pytest.mark.parametrize("name", list(DEEDS))
async def test_a_channel_that_misbehaves_is_alone(name: str, cipher: str, compatible: RelayProcess) -> None:
    """Another session of the same connection is not disturbed, and the connection serves on."""
    relay = compatible
    before, since = protocol_ends(relay), len(relay.audit_lines())
    async with alice(relay, encryption_algs=[cipher]) as connection:
        running = await connection.create_process(CAT, encoding=None)
        bad = await connection.create_process("git-receive-pack 'stub/cat'", encoding=None)
        misbehaving = Misbehaving(connection, bad.channel)
        # the echo is read from the start: unread, it would use up the window that the relay's message needs
        echo = None if name in GOES_ON else asyncio.ensure_future(bad.stdout.read())
        for deed in DEEDS[name]:
            deed(misbehaving)
        if name in GOES_ON:
            if name != "two EOFs":
                bad.stdin.write(b"goes on")
                bad.stdin.write_eof()
                assert await bad.stdout.read() == b"goes on"
            assert (await bad.wait()).exit_status == 0
        running.stdin.write(b"still here")
        running.stdin.write_eof()
        assert await running.stdout.read() == b"still here"
        assert (await running.wait()).exit_status == 0
        assert (await run(connection, CAT, b"anew")).stdout == b"anew"
        if name not in GOES_ON and "close" not in name:
            [line] = await asyncio.to_thread(audited, relay, since, service="git-receive-pack")
            assert (line["result"], line["reason"]) == ("client", "protocol"), line
            assert line["detail"]
            async with asyncio.timeout(30):
                assert b"relay: the client broke the SSH protocol" in await bad.stderr.read()
        if echo is not None:
            async with asyncio.timeout(30):
                await echo
    assert protocol_ends(relay) == before
    assert "Traceback" not in relay.log_text()


async def test_an_exec_after_a_refused_subsystem_is_served(relay: RelayProcess) -> None:
    """RFC 4254 section 6.5: only one of these requests can succeed; the refused one did not count."""
    async with alice(relay) as connection:
        channel: Any = SSHClientChannel(connection, asyncio.get_running_loop(), "strict", None, "strict", 65_536, 32_768)
        await channel._open(b"session")
        channel._session = Hears()
        channel._recv_paused = False
        assert await channel._make_request(b"subsystem", String("sftp")) is False
        assert await channel._make_request(b"exec", String("git-upload-pack 'stub/exit/5'")) is True
        await channel._session.lost.wait()
        assert channel.get_exit_status() == 5


class Hears(asyncssh.SSHClientSession[bytes]):
    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


OPENS: dict[str, bytes] = {
    "of a kind nobody knows": String(b"tun@openssh.com") + UInt32(7) + UInt32(65_536) + UInt32(32_768),
    "to somewhere else": b"".join(
        (String(b"direct-tcpip"), UInt32(7), UInt32(65_536), UInt32(32_768), String(b"x"), UInt32(1), String(b"y"), UInt32(2))
    ),
    "to somewhere else, cut short": String(b"direct-tcpip") + UInt32(7) + UInt32(65_536) + UInt32(32_768) + b"\0",
    "with packets of no bytes": String(b"session") + UInt32(7) + UInt32(65_536) + UInt32(0),
    "with packets of one byte": String(b"session") + UInt32(7) + UInt32(65_536) + UInt32(1),
    "with something behind it": String(b"session") + UInt32(7) + UInt32(65_536) + UInt32(32_768) + b"x",
    "whose kind is no ASCII": String("sessiön".encode()) + UInt32(7) + UInt32(65_536) + UInt32(32_768),
}


@pytest.mark.parametrize("name", list(OPENS))
async def test_a_channel_that_cannot_be_opened(name: str, relay: RelayProcess) -> None:
    """The relay refuses it (RFC 4254 section 5.1), and nothing else happens."""
    before = protocol_ends(relay)
    async with alice(relay) as connection:
        refused: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        running = await connection.create_process(CAT, encoding=None)
        connection._packet_handlers = {
            **connection._packet_handlers,
            92: lambda self, kind, number, packet: refused.set_result(packet.get_uint32()),
        }
        connection.send_packet(MSG_CHANNEL_OPEN, OPENS[name])
        async with asyncio.timeout(30):
            assert await refused == 7
        running.stdin.write_eof()
        assert (await running.wait()).exit_status == 0
    assert protocol_ends(relay) == before


GLOBAL: dict[str, bytes] = {
    "keepalive@openssh.com": b"",
    "keepalive@openssh.com with something behind it": b"x",
    "hostkeys-prove-00@openssh.com": String(b"no key of ours"),
    "hostkeys-prove-00@openssh.com cut short": b"\0\0",
    "tcpip-forward": String(b"") + UInt32(0),
    "cancel-tcpip-forward": String(b"") + UInt32(0),
    "streamlocal-forward@openssh.com": String(b"/tmp/x"),
    "no-more-sessions@openssh.com": b"",
    "größer": b"",
}


async def test_requests_of_the_whole_connection(relay: RelayProcess) -> None:
    """Each global request is sent many times, and each is answered."""
    async with alice(relay) as connection:
        running = await connection.create_process(CAT, encoding=None)
        for name, payload in GLOBAL.items():
            asked = [connection._make_global_request(name.partition(" ")[0].encode(), payload) for _ in range(100)]
            async with asyncio.timeout(30):
                kinds = {kind for kind, _ in await asyncio.gather(*asked)}
            assert kinds == {81 if name.startswith("keepalive") else 82}, name
        running.stdin.write_eof()
        assert (await running.wait()).exit_status == 0


# -- whether the relay or the client ended it


async def test_a_connection_that_the_relay_ends_is_not_a_client_that_left(relay: RelayProcess) -> None:
    """A protocol error of the transport ends its sessions; their audit lines say that the relay ended them, and why."""
    since = len(relay.audit_lines())
    async with alice(relay) as connection:
        await connection.create_process(CAT, encoding=None)
        await wait_until_async(lambda: asyncio.to_thread(lambda: relay.metric("relay_sessions_open") == 1), message="it is open")
        connection.send_packet(MSG_CHANNEL_DATA, UInt32(4_711) + String(b"x"))  # a channel that was never opened
        await connection.wait_closed()
    [line] = await asyncio.to_thread(audited, relay, since, event="session")
    assert (line["result"], line["reason"]) == ("client", "protocol")
    assert "4711" in line["detail"]
