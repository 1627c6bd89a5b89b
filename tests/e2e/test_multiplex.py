"""Many sessions on one connection: the real ssh's ControlMaster up to the limit, beyond it, and after it (RFC 4254 section 5.1)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest

from tests.e2e.helpers import alice, audited, streamed
from tests.support.gitrepo import commit, fsck, git, make_repo, rev_list, rev_parse, ssh_command
from tests.support.pattern import stub_sha256
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import SshClient, run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

LIMIT = 10  # limits.sessions_per_connection
NOT_ANEW = "ProxyCommand=false"  # a session that the master cannot open fails; else ssh would dial a new connection for it
CAT = "git-upload-pack 'stub/cat'"


def rejected(relay: RelayProcess) -> float:
    return relay.metric("relay_commands_rejected_total", reason="too_many")


def opened(relay: RelayProcess) -> float:
    return relay.metric("relay_sessions_open")


@contextmanager
def held(relay: RelayProcess, ssh: SshClient, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many sessions that echo their input until their stdin is closed."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(ssh.popen(CAT)) for _ in range(count)]
        wait_until(lambda: opened(relay) == count, message=f"{count} sessions are open")
        yield sessions


def test_ten_sessions_at_once(relay: RelayProcess) -> None:
    """Each carries different bytes both ways, without loss; all use one login."""
    logins = relay.metric("relay_auth_successes_total")
    since, refused = len(relay.audit_lines()), rejected(relay)
    sizes = [3_000_000 + 100_001 * number for number in range(LIMIT // 2)]
    inputs = [os.urandom(size) for size in sizes]
    with relay.ssh().control_master() as ssh, ExitStack() as stack:
        downs = [stack.enter_context(ssh.popen(f"git-upload-pack 'stub/mixed/{size}/{size % 7}'")) for size in sizes]
        ups = [stack.enter_context(ssh.popen("git-receive-pack 'stub/checksum'")) for _ in inputs]
        for up, data in zip(ups, inputs, strict=True):
            assert up.stdin is not None
            up.stdin.write(data)
        for size, down in zip(sizes, downs, strict=True):
            got = streamed(down)
            assert (got.returncode, got.length, got.sha256) == (size % 7, size, stub_sha256(size))
        for data, up in zip(inputs, ups, strict=True):
            out, err = up.communicate()
            assert (up.returncode, err) == (0, b"")
            assert out.decode() == f"{hashlib.sha256(data).hexdigest()} {len(data)}\n"
        lines = audited(relay, since, LIMIT, event="session")
    assert len({line["connection"] for line in lines}) == 1
    assert len({line["session"] for line in lines}) == LIMIT
    assert sorted(line["bytes_in"] for line in lines if line["service"] == "git-receive-pack") == sizes
    assert relay.metric("relay_auth_successes_total") == logins + 1
    assert rejected(relay) == refused


def test_the_eleventh(relay: RelayProcess) -> None:
    since, refused = len(relay.audit_lines()), rejected(relay)
    data = os.urandom(500_000)
    with relay.ssh().control_master() as ssh:
        with held(relay, ssh, LIMIT) as sessions:
            said = replace(ssh, options=(*ssh.options, NOT_ANEW)).run(CAT)
            assert said.returncode == 255
            assert b"Session open refused by peer" in said.stderr
            [line] = audited(relay, since, event="command_rejected")
            assert (line["reason"], line["result"], line["identity"]) == ("too_many", "client", "alice")
            assert line["detail"] == f"{LIMIT} sessions are open on this connection"
            assert rejected(relay) == refused + 1
            assert ssh.run(CAT, b"by another connection").stdout == b"by another connection"
            for session in sessions:  # the refusal does not disturb them
                out, err = session.communicate(data)
                assert (session.returncode, out, err) == (0, data, b"")
        wait_until(lambda: opened(relay) == 0, message="all are closed")
        for _ in range(LIMIT + 1):  # the limit does not count sessions that have ended
            assert ssh.run("git-upload-pack 'stub/exit/5'").returncode == 5
    assert rejected(relay) == refused + 2  # the second time ssh dialed a connection of its own


async def test_the_eleventh_is_told_why(relay: RelayProcess) -> None:
    async with alice(relay) as connection:
        sessions = [await connection.create_process(CAT, encoding=None) for _ in range(LIMIT)]
        for _ in range(3):
            with pytest.raises(asyncssh.ChannelOpenError, match="too many concurrent sessions") as refusal:
                await connection.create_process(CAT, encoding=None)
            assert refusal.value.code == asyncssh.OPEN_RESOURCE_SHORTAGE
        sessions[0].stdin.write_eof()
        await sessions[0].wait_closed()
        assert (await run(connection, CAT, b"in its place")).stdout == b"in its place"
        for session in sessions[1:]:
            session.stdin.write(b"still there")
            session.stdin.write_eof()
            assert await session.stdout.read() == b"still there"


async def test_one_after_the_other_at_the_limit(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    """The CHANNEL_CLOSE of one session and the CHANNEL_OPEN of the next may arrive in one TCP segment."""
    relay = make_relay(sshd, config={"limits": {"sessions_per_connection": 1}})
    async with alice(relay) as connection:
        for number in range(50):
            result = await run(connection, f"git-upload-pack 'stub/exit/{number}'")
            assert result.exit_status == number


def test_another_limit_counts_for_each_connection(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = make_relay(sshd, config={"limits": {"sessions_per_connection": 1}})
    with relay.ssh().control_master() as one, relay.ssh().control_master() as other:
        with held(relay, one, 1) as sessions:
            assert replace(one, options=(*one.options, NOT_ANEW)).run(CAT).returncode == 255
            assert other.run(CAT, b"mine").stdout == b"mine"
            assert sessions[0].communicate(b"mine")[0] == b"mine"
        wait_until(lambda: opened(relay) == 0, message="the place is free again")
        assert one.run(CAT, b"again").stdout == b"again"


async def test_a_session_that_is_aborted_leaves_the_others(relay: RelayProcess) -> None:
    since, data = len(relay.audit_lines()), os.urandom(2_000_000)
    async with alice(relay) as connection:
        aborted = await connection.create_process("git-upload-pack 'stub/emit/100000000'", encoding=None)
        others = [asyncio.ensure_future(run(connection, CAT, data)) for _ in range(3)]
        assert len(await aborted.stdout.readexactly(1_000_000)) == 1_000_000
        aborted.channel.abort()
        results = await asyncio.gather(*others)
        assert {(result.exit_status, result.stdout) for result in results} == {(0, data)}
        assert (await run(connection, CAT, data)).stdout == data
    [line] = await asyncio.to_thread(audited, relay, since, result="client")
    assert line["reason"] == "client_gone"


def test_the_exit_status_comes_after_the_close(relay: RelayProcess) -> None:
    """A master closes a channel once both sides have sent EOF; the git host's exit status may follow much later."""
    since = len(relay.audit_lines())
    with relay.ssh().control_master() as ssh:
        done = ssh.run("git-upload-pack 'stub/eof/1/7'")
        assert (done.returncode, done.stdout, done.stderr) == (7, b"eof\n", b"")
        [line] = audited(relay, since, event="session")
        assert (line["result"], line["exit_status"]) == ("exit", 7)
        wait_until(lambda: opened(relay) == 0, message="the channel is closed")
        assert ssh.run(CAT, b"and goes on").stdout == b"and goes on"


def test_a_connection_that_goes_after_the_close(relay: RelayProcess) -> None:
    since = len(relay.audit_lines())
    with ExitStack() as stack:
        with relay.ssh().control_master() as ssh:
            session = stack.enter_context(ssh.popen("git-upload-pack 'stub/eof/1000/7'"))
            assert session.stdin is not None and session.stdout is not None
            session.stdin.close()
            assert session.stdout.readline() == b"eof\n"
        assert session.wait(30) == 255  # the master has ended
    [line] = audited(relay, since, event="session")
    assert (line["result"], line["reason"]) == ("client", "client_gone")


def test_git_on_one_connection(relay: RelayProcess, sshd: Sshd, git_env: dict[str, str]) -> None:
    """Clone, push and fetch with ControlPath set, several at a time."""
    home, repositories = Path(git_env["HOME"]), [f"multiplex/{number}" for number in range(4)]
    for name in repositories:
        make_repo(sshd.root / f"{name}.git", commits=5)
    logins = relay.metric("relay_auth_successes_total")
    with relay.ssh().control_master() as ssh, ExitStack() as stack:
        command = " ".join(ssh_command(ssh.key, ssh.known_hosts, *ssh.options)).replace('"', "")
        env = git_env | {"GIT_SSH_COMMAND": command}
        clones = [
            stack.enter_context(subprocess.Popen(["git", "clone", "-q", relay.url(name), name], cwd=home, env=env)) for name in repositories
        ]
        assert [clone.wait(60) for clone in clones] == [0] * len(clones)
        for name in repositories:
            work = home / name
            pushed = commit(work, env)
            git("push", "-q", "origin", "HEAD:main", cwd=work, env=env)
            git("fetch", "-q", "origin", cwd=work, env=env)
            assert rev_parse(work, env, "origin/main") == pushed
            fsck(work, env)
            assert rev_list(work, env) == rev_list(sshd.root / f"{name}.git", env)
    assert relay.metric("relay_auth_successes_total") == logins + 1
