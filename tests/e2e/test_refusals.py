"""Requests that the relay does not serve: each gets its documented text and status, reaches no git host, and the connection lives on."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncssh
import pytest
from asyncssh.packet import Boolean, String, UInt32

from tests.e2e.helpers import alice, audited
from tests.support.gitrepo import git, make_repo
from tests.support.pattern import stub_bytes
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import Result, run
from tests.support.sshd import Sshd

GREETING = b"Hi alice! You are authenticated. This host serves git only.\n"
NOT_FOUND = b"relay: repository not found, or you may not do this\n"
UNAVAILABLE = b"relay: the git host is unavailable, try again in a moment\n"
LOST = b"relay: the connection to the git host was lost, try again\n"


async def goes_on(connection: asyncssh.SSHClientConnection) -> None:
    """Asserts that the same connection still serves git."""
    assert await run(connection, "git-upload-pack 'stub/emit/1000'") == Result(stub_bytes(1000), b"", 0, None)


@contextmanager
def counted(relay: RelayProcess, reason: str, times: int = 1) -> Iterator[None]:
    """Asserts that commands_rejected_total{reason} grows by `times` in the block, with as many audit lines, and no other reason grows."""
    before, all_before, since = rejected(relay, reason=reason), rejected(relay), len(relay.audit_lines())
    yield
    lines = audited(relay, since, times, event="command_rejected", reason=reason)
    assert len(lines) == times
    assert rejected(relay, reason=reason) - before == times == rejected(relay) - all_before


def rejected(relay: RelayProcess, **labels: str) -> float:
    return relay.metric("relay_commands_rejected_total", **labels)


# -- requests that are not git's ---------------------------------------------------------------------------------------------


def test_a_shell_gets_the_greeting(relay: RelayProcess) -> None:
    done = relay.ssh().run(None)
    assert (done.returncode, done.stdout, done.stderr) == (0, GREETING, b"")


def test_a_terminal_is_refused_and_the_greeting_comes_all_the_same(relay: RelayProcess) -> None:
    arguments = [argument for argument in relay.ssh().arguments(None) if argument != "-T"]
    terminal, other = pty.openpty()
    try:
        done = subprocess.run(arguments, stdin=other, capture_output=True, timeout=30, check=False)
    finally:
        os.close(terminal)
        os.close(other)
    assert b"PTY allocation request failed" in done.stderr
    assert (done.returncode, done.stdout) == (0, GREETING)


@pytest.mark.parametrize(
    ("request_type", "fields"),
    [
        ("pty-req", [String("xterm"), UInt32(80), UInt32(24), UInt32(0), UInt32(0), String(b"\0")]),
        ("auth-agent-req@openssh.com", []),
        ("x11-req", [Boolean(False), String("MIT-MAGIC-COOKIE-1"), String("00" * 16), UInt32(0)]),
        ("env", [String("LANG"), String("C.UTF-8")]),
        ("env", [String("RELAY_IDENTITY"), String("root")]),
        ("env", [String("LD_PRELOAD"), String("/tmp/x.so")]),
        ("env", [String("GIT_PROTOCOL"), String("version=2\nX=1")]),
        ("subsystem", [String("sftp")]),
        ("exec", [String("git-upload-pack 'stub/emit/1'")]),  # a second command on the same channel
        ("shell", []),
        ("no-such-request@example.com", [String("anything")]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_channel_request_is_refused(relay: RelayProcess, request_type: str, fields: list[bytes]) -> None:
    async with alice(relay) as connection:
        process = await connection.create_process("git-upload-pack 'stub/half/1000'", encoding=None)
        async with asyncio.timeout(60):
            assert await process.channel._make_request(request_type.encode(), *fields) is False
            assert await process.stdout.readexactly(1000) == stub_bytes(1000)  # the session runs on, too
            process.stdin.write_eof()
            await process.wait_closed()
        assert process.exit_status == 0
        await goes_on(connection)


async def test_sessions_that_ask_first_for_what_is_refused(relay: RelayProcess) -> None:
    async with alice(relay) as connection:
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.create_process("git-upload-pack 'stub/emit/1'", term_type="xterm", encoding=None)
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.start_sftp_client()
        await goes_on(connection)


async def test_forwarding_is_refused_in_both_directions(relay: RelayProcess, sshd: Sshd, tmp_path: Path) -> None:
    async with alice(relay) as connection:
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_connection("127.0.0.1", sshd.port)
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_unix_connection(str(tmp_path / "socket"))
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", sshd.port)
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_path(str(tmp_path / "socket"), str(tmp_path / "other"))
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_tun()
        await goes_on(connection)


def test_the_real_ssh_is_refused_them_too(relay: RelayProcess, sshd: Sshd) -> None:
    done = relay.ssh("ExitOnForwardFailure=yes").run(None, b"", "-N", "-R", f"127.0.0.1:0:127.0.0.1:{sshd.port}")
    assert done.returncode == 255
    assert b"remote port forwarding failed" in done.stderr
    before = sshd.connections()
    done = relay.ssh().run(None, b"", "-W", f"127.0.0.1:{sshd.port}")
    assert done.returncode == 255
    assert b"open failed" in done.stderr
    assert sshd.connections() == before
    done = relay.ssh().run("sftp", b"", "-s")
    assert done.returncode == 255
    assert b"subsystem request failed" in done.stderr
    done = relay.ssh("ForwardAgent=yes", "ForwardX11=yes").run("git-upload-pack 'stub/env'")
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("ls", b"relay: only git commands are served here (got 'ls')\n"),
        ("ls -l /etc; id", b"relay: only git commands are served here (got 'ls')\n"),
        ("scp -t /tmp", b"relay: only git commands are served here (got 'scp')\n"),
    ],
)
def test_another_command(relay: RelayProcess, sshd: Sshd, command: str, said: bytes) -> None:
    before = len(sshd.commands())
    with counted(relay, "not_git"):
        done = relay.ssh().run(command)
    assert (done.returncode, done.stdout, done.stderr) == (128, b"", said)
    assert len(sshd.commands()) == before


@pytest.mark.parametrize(
    "command",
    [
        "git-upload-pack",
        "git-upload-pack 'a' 'b'",
        "git-upload-pack --strict 'a'",
        "git-upload-pack '../../etc'",
        "git-upload-pack '~root/x'",
        "git-receive-pack 'a'; id",
        "git-receive-pack '$(id)' `id`",
        "git-lfs-authenticate 'a' remove",
    ],
)
def test_a_git_command_that_is_none(relay: RelayProcess, sshd: Sshd, command: str) -> None:
    before = len(sshd.commands())
    with counted(relay, "malformed"):
        done = relay.ssh().run(command)
    assert (done.returncode, done.stdout) == (128, b"")
    assert done.stderr.startswith(b"relay: ") and done.stderr.count(b"\n") == 1
    assert len(sshd.commands()) == before


def test_a_command_that_is_not_utf8_is_answered_and_counted(relay: RelayProcess) -> None:
    with counted(relay, "malformed"):
        done = subprocess.run(
            [*map(os.fsencode, relay.ssh().arguments(None)), b"git-upload-pack 'caf\xe9'"], capture_output=True, timeout=30, check=False
        )
    assert (done.returncode, done.stdout) == (128, b"")
    assert done.stderr.startswith(b"relay: ")


# -- repositories that are not there, or not theirs --------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["git-upload-pack", "git-receive-pack", "git-upload-archive"])
def test_not_theirs_no_route_and_not_there_read_the_same(make_relay: Callable[..., RelayProcess], sshd: Sshd, service: str) -> None:
    make_repo(sshd.root / f"secret/{service}.git")
    relay = make_relay(
        sshd,
        access={"rule": [{"repositories": name, "who": ["alice"], "allow": "write"} for name in ("team/**", "lost/**")]},
        routes={
            "route": [
                {"repositories": name, "upstream": "main", "path": f"{sshd.root}/{{repository}}.git"} for name in ("team/**", "secret/**")
            ]
        },
    )
    answers = {}
    for case, name in (("not theirs", f"secret/{service}"), ("no route", "lost/app"), ("not there", "team/no-such")):
        with counted(relay, "denied"):
            done = relay.ssh().run(f"{service} '{name}.git'")
        answers[case] = (done.returncode, done.stdout, done.stderr)
    assert answers == dict.fromkeys(answers, (128, b"", NOT_FOUND))
    details = [line["detail"] for line in relay.audit_lines()]
    assert len(set(details)) == 3  # the audit lines differ


def test_git_shows_it_to_the_user(relay: RelayProcess, tmp_path: Path) -> None:
    env = relay.git_env(tmp_path / "home")
    done = git("clone", relay.url("no/such"), tmp_path / "work", env=env, check=False)
    assert done.returncode == 128
    assert NOT_FOUND in done.stderr


def test_who_may_read_may_not_write_and_who_may_write_may_read(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    rules = [
        {"repositories": "stub/emit/**", "who": ["alice"], "allow": "read"},
        {"repositories": "stub/exit/**", "who": ["@team"], "allow": "write"},
    ]
    relay = make_relay(sshd, access={"groups": {"team": ["alice"]}, "rule": rules})
    assert relay.ssh().run("git-upload-pack 'stub/emit/10'").returncode == 0
    assert relay.ssh().run("git-receive-pack 'stub/emit/10'").stderr == b"relay: you may read stub/emit/10, not write it\n"
    assert relay.ssh().run("git-upload-pack 'stub/exit/0'").returncode == 0
    assert relay.ssh().run("git-receive-pack 'stub/exit/0'").returncode == 0
    assert relay.ssh().run("git-upload-pack 'stub/signal/KILL'").stderr == NOT_FOUND


# -- the git host ------------------------------------------------------------------------------------------------------------


def test_a_git_host_that_is_down(make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    relay = make_relay(sshd)
    sshd.stop()
    done = relay.ssh().run("git-upload-pack 'stub/emit/1000'")
    assert (done.returncode, done.stdout, done.stderr) == (255, b"", UNAVAILABLE)
    [line] = audited(relay, 0, event="session")
    assert (line["result"], line["reason"], line["exit_status"]) == ("upstream", "dial", 255)
    sshd.start()
    done = relay.ssh().run("git-upload-pack 'stub/emit/1000'")
    assert (done.returncode, done.stdout) == (0, stub_bytes(1000))


def test_a_git_host_with_another_host_key(make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    pinned = sshd.host_key.fingerprint
    relay = make_relay(sshd)
    relay.wait_for_log("listening")
    sshd.stop()
    shown = sshd.new_host_key().fingerprint
    mark = sshd.log_mark()
    sshd.start()
    done = relay.ssh().run("git-upload-pack 'stub/emit/1000'")
    assert (done.returncode, done.stdout, done.stderr) == (255, b"", UNAVAILABLE)
    [line] = audited(relay, 0, event="session")
    assert (line["result"], line["reason"]) == ("upstream", "host_key")
    log = relay.log_text()
    assert shown in log and pinned in log and "HOST KEY MISMATCH" in log
    assert relay.metric("relay_upstream_dials_total", result="host_key") >= 1
    assert sshd.connections(mark) >= 1
    assert sshd.logins(mark) == 0 and "userauth" not in sshd.log_text(mark)  # the relay has not sent even a user name


def test_a_git_host_that_refuses_the_relays_key(make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    sshd.forbid(sshd.key.line)
    relay = make_relay(sshd)
    done = relay.ssh().run("git-upload-pack 'stub/emit/1000'")
    assert (done.returncode, done.stdout, done.stderr) == (255, b"", UNAVAILABLE)
    [line] = audited(relay, 0, event="session")
    assert (line["result"], line["reason"]) == ("upstream", "auth")


async def test_a_git_host_that_dies_in_the_middle(make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    relay = make_relay(sshd)
    async with alice(relay) as connection:
        process = await connection.create_process("git-upload-pack 'stub/half/1000000'", encoding=None)
        assert await process.stdout.readexactly(1_000_000) == stub_bytes(1_000_000)
        sshd.signal_sessions(signal.SIGKILL)
        stdout, stderr = await process.communicate()
        assert (stdout, stderr, process.exit_status) == (b"", LOST, 255)
        await goes_on(connection)
    [line, _] = await asyncio.to_thread(audited, relay, 0, 2, event="session")
    assert (line["result"], line["reason"], line["exit_status"]) == ("upstream", "lost", 255)


def test_a_git_host_that_dies_in_full_flow(make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    relay = make_relay(sshd)
    size = 2_000_000_000
    with relay.ssh().popen(f"git-upload-pack 'stub/emit/{size}'") as ssh:
        assert ssh.stdout is not None and ssh.stderr is not None
        first = ssh.stdout.read(20_000_000)
        assert first == stub_bytes(len(first))
        sshd.signal_sessions(signal.SIGKILL)
        rest = ssh.stdout.read()
        assert ssh.stderr.read() == LOST
        assert ssh.wait(30) == 255
    received = len(first) + len(rest)
    assert received < size
    assert rest == stub_bytes(received)[len(first) :]
    [line] = audited(relay, 0, event="session")
    assert line["bytes_out"] == received  # the client received all that the relay read


# -- variables ---------------------------------------------------------------------------------------------------------------


def test_only_git_protocol_passes(relay: RelayProcess, sshd: Sshd) -> None:
    since = len(relay.audit_lines())
    mine = '"RELAY_IDENTITY=root" "RELAY_KEY=none" "RELAY_CLIENT=10.0.0.1" "RELAY_SESSION=1" "RELAY_X=1"'
    client = relay.ssh(f'SetEnv="GIT_PROTOCOL=version=2" {mine}')
    done = client.run("git-upload-pack 'stub/env'")
    assert done.stdout.decode().splitlines() == ["GIT_PROTOCOL=version=2", "RELAY_IDENTITY=alice", f"RELAY_KEY={relay.key.fingerprint}"]
    assert sshd.commands()[-1].identity == "alice"
    told = client.run("git-upload-pack 'stub/env/all'").stdout.decode().split()
    session = audited(relay, since, 2, event="session")[1]["session"]
    names = (f"RELAY_KEY={relay.key.fingerprint}", "RELAY_IDENTITY=alice", "RELAY_CLIENT=127.0.0.1", f"RELAY_SESSION={session}")
    assert told == sorted(names)
