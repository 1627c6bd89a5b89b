"""Clients that leave when they have what they came for, without waiting for the exit status: go-git, libgit2, dulwich, or played."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import asyncssh
import pytest

from relay.pktline import FLUSH_PKT, pkt_line
from tests.e2e.helpers import alice, audited
from tests.support.clients import CLIENTS, Client, Missing, go_git
from tests.support.gitrepo import commit, fsck, git, git_env, make_repo, refs, rev_parse
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

LEAVING = [client for client in CLIENTS if not client.waits]
LISTS = 40
ZERO = "0" * 40
# each leaves a client's channel or connection in another way
WAYS = ("eof", "close", "eof and close", "disconnect", "reset")
FETCH_V2 = pkt_line(b"command=ls-refs\n") + b"0001" + pkt_line(b"ref-prefix refs/heads/\n") + FLUSH_PKT


def dials(relay: RelayProcess) -> float:
    return relay.metric("relay_upstream_dials_total", result="ok")


def keeps_all(relay: RelayProcess) -> None:
    """Every connection that was ever dialed is idle: none was thrown away."""

    def kept() -> bool:
        return relay.metric("relay_upstream_connections", state="idle") == dials(relay)

    wait_until(kept, message="all connections to the git host are warm")


@pytest.fixture
def fresh(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> RelayProcess:
    relay = make_relay(sshd, config={"workers": 1})
    wait_until(lambda: relay.metric("relay_upstream_connections", state="idle") == 4, message="the pool is warm")
    return relay


def test_lists_by_go_git_are_ok_and_need_no_login_at_the_host(fresh: RelayProcess, sshd: Sshd, tmp_path: Path) -> None:
    make_repo(sshd.root / "team" / "listed.git")
    try:
        ready = go_git(fresh, tmp_path / "home")
    except Missing as missing:
        pytest.skip(str(missing))
    ready.list(fresh.url("team/listed"), LISTS)
    lines = audited(fresh, 0, LISTS, event="session")
    assert {(line["result"], line["reason"], line["kind"]) for line in lines} == {("ok", "ok", "list")}
    assert {line["exit_status"] for line in lines} <= {None, 0}
    keeps_all(fresh)
    assert dials(fresh) < 10


@pytest.mark.parametrize("client", LEAVING, ids=str)
def test_clones_and_pushes_are_ok_and_need_no_login_at_the_host(client: Client, fresh: RelayProcess, sshd: Sshd, tmp_path: Path) -> None:
    bare = make_repo(sshd.root / "team" / f"{client.name.replace(' ', '-')}.git")
    try:
        ready = client.at(fresh, tmp_path / "home")
    except Missing as missing:
        pytest.skip(str(missing))
    env, name = git_env(tmp_path / "local"), f"team/{bare.stem}"
    for number in range(5):
        work = tmp_path / f"work-{number}"
        ready.clone(fresh.url(name), work)
        pushed = commit(work, env, f"file-{number}", b"x" * 10_000 * number)
        ready.push(work, "main")
        assert rev_parse(bare, env, "main") == pushed
    lines = audited(fresh, 0, 10, event="session")
    assert {(line["result"], line["reason"]) for line in lines} == {("ok", "ok")}, lines
    assert {line["exit_status"] for line in lines} <= {None, 0}
    keeps_all(fresh)
    assert dials(fresh) < 10
    fsck(bare, env)


async def leave(process: asyncssh.SSHClientProcess[bytes], connection: asyncssh.SSHClientConnection, way: str) -> None:
    if "eof" in way:
        process.stdin.write_eof()
    if "close" in way:
        process.channel.abort()
    elif way == "disconnect":
        connection.close()
    elif way == "reset":
        connection.abort()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("asked", ["upload-pack", "upload-pack v2", "upload-pack v2 ls-refs", "receive-pack"])
async def test_who_leaves_between_two_requests_is_ok(asked: str, way: str, fresh: RelayProcess, sshd: Sshd) -> None:
    if not (sshd.root / "team" / "app.git").exists():
        make_repo(sshd.root / "team" / "app.git")
    service, _, request = asked.partition(" ")
    async with alice(fresh) as connection:
        env = {"GIT_PROTOCOL": "version=2"} if request else {}
        process = await connection.create_process(f"git-{service} 'team/app'", encoding=None, env=env)
        await process.stdout.readuntil(FLUSH_PKT)
        if request.endswith("ls-refs"):
            process.stdin.write(FETCH_V2)
            await process.stdout.readuntil(FLUSH_PKT)
        await leave(process, connection, way)
        if way == "eof":
            await process.wait_closed()
            assert process.exit_status == 0
    [line] = await asyncio.to_thread(audited, fresh, 0, 1, event="session")
    assert (line["result"], line["reason"]) == ("ok", "ok")
    assert line["exit_status"] == (0 if way == "eof" else None)
    await asyncio.to_thread(keeps_all, fresh)


async def pushing(connection: asyncssh.SSHClientConnection, name: str, old: str, new: str, caps: bytes) -> asyncssh.SSHClientProcess[bytes]:
    """A push that deletes, or moves a ref to a commit that is there, needs a pack of nothing or none at all."""
    process = await connection.create_process(f"git-receive-pack '{name}'", encoding=None)
    await process.stdout.readuntil(FLUSH_PKT)
    process.stdin.write(pkt_line(f"{old} {new} refs/heads/side\0".encode() + caps) + FLUSH_PKT)
    return process


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("caps", [b"report-status", b"report-status-v2 side-band-64k"])
async def test_who_leaves_with_the_report_of_a_push_is_ok_and_hooks_run_to_their_end(
    way: str, caps: bytes, fresh: RelayProcess, sshd: Sshd, tmp_path: Path
) -> None:
    """The hook goes on when the client has left, and says something that nobody reads any more."""
    bare = make_repo(sshd.root / "team" / f"hooked-{tmp_path.name}.git")
    head = rev_parse(bare, git_env(tmp_path / "local"), "main")
    git("branch", "side", head, cwd=bare, env=git_env(tmp_path / "local"))
    (go, done), hook = (tmp_path / "go", tmp_path / "done"), bare / "hooks" / "post-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\nwhile ! [ -e {go} ]; do sleep 0.05; done\nhead -c 200000 /dev/zero | tr '\\0' x\ntouch {done}\n")
    hook.chmod(0o755)
    async with alice(fresh) as connection:
        process = await pushing(connection, f"team/{bare.stem}", head, ZERO, caps)
        said = b""
        while b"ok refs/heads/side\n0000" not in said:
            said += await process.stdout.readexactly(1)
        await leave(process, connection, way)
        if way == "eof":
            go.touch()
            await process.wait_closed()
    go.touch()
    await wait_until_async(done.exists, message="the hook has ended")
    [line] = await asyncio.to_thread(audited, fresh, 0, 1, event="session")
    assert (line["result"], line["reason"], line["kind"]) == ("ok", "ok", "push")
    assert line["exit_status"] == (0 if way == "eof" else None)
    await asyncio.to_thread(keeps_all, fresh)


@pytest.mark.parametrize("way", ["close", "disconnect", "reset"])
async def test_who_leaves_before_the_report_of_a_push_has_left_too_early(way: str, fresh: RelayProcess, sshd: Sshd, tmp_path: Path) -> None:
    bare = make_repo(sshd.root / "team" / f"early-{tmp_path.name}.git")
    head = rev_parse(bare, git_env(tmp_path / "local"), "main")
    async with alice(fresh) as connection:
        process = await pushing(connection, f"team/{bare.stem}", ZERO, head, b"report-status")  # and no pack, which must follow
        await wait_until_async(lambda: fresh.metric("relay_bytes_total", direction="in") > 0)
        await leave(process, connection, way)
    [line] = await asyncio.to_thread(audited, fresh, 0, 1, event="session")
    assert (line["result"], line["reason"], line["exit_status"]) == ("client", "client_gone", None)
    await wait_until_async(lambda: sshd.signal_commands(0) == 0, message="the git host's receive-pack has ended")
    assert "refs/heads/side" not in refs(bare, git_env(tmp_path / "local"))


async def test_who_leaves_in_the_middle_of_an_answer_has_left_too_early(fresh: RelayProcess, sshd: Sshd) -> None:
    async with alice(fresh) as connection:
        process = await connection.create_process("git-upload-pack 'stub/emit/100000000'", encoding=None)
        await process.stdout.readexactly(1_000_000)
        process.channel.abort()
    [line] = await asyncio.to_thread(audited, fresh, 0, 1, event="session")
    assert (line["result"], line["reason"], line["exit_status"]) == ("client", "client_gone", None)


async def test_a_worker_that_drains_waits_for_a_hook_whose_client_has_left(
    make_relay: Callable[..., RelayProcess], sshd: Sshd, tmp_path: Path
) -> None:
    relay = make_relay(sshd, config={"workers": 1, "limits": {"drain_seconds": 3600}})
    bare = make_repo(sshd.root / "team" / f"drained-{tmp_path.name}.git")
    head = rev_parse(bare, git_env(tmp_path / "local"), "main")
    git("branch", "side", head, cwd=bare, env=git_env(tmp_path / "local"))
    (go, done), hook = (tmp_path / "go", tmp_path / "done"), bare / "hooks" / "post-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\nwhile ! [ -e {go} ]; do sleep 0.05; done\ntouch {done}\n")
    hook.chmod(0o755)
    async with alice(relay) as connection:
        process = await pushing(connection, f"team/{bare.stem}", head, ZERO, b"report-status")
        await process.stdout.readuntil(b"ok refs/heads/side\n0000")
    relay.signal(signal.SIGTERM)
    await wait_until_async(lambda: relay.get("/ready")[0] == 503)
    go.touch()
    assert await asyncio.to_thread(relay.wait) == 0
    assert done.exists()
    [line] = audited(relay, 0, 1, event="session")
    assert (line["result"], line["reason"]) == ("ok", "ok")
