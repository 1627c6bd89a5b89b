"""Clients that disconnect once they have the data, without waiting for the exit status: go-git, libgit2, dulwich, or scripted ones."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from relay.git.pktline import FLUSH_PKT, pkt_line
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
# exit statuses in the audit line; after an EOF the git host may end before the relay has read that the client is gone
EXITS: dict[str, tuple[int | None, ...]] = dict.fromkeys(WAYS, (None,)) | {"eof": (0,), "eof and close": (0, None)}
FETCH_V2 = pkt_line(b"command=ls-refs\n") + b"0001" + pkt_line(b"ref-prefix refs/heads/\n") + FLUSH_PKT


IDLE = 4  # idle connections before the first session


@dataclass
class Warm:
    """The module's relay and its counts at the start of one test."""

    relay: RelayProcess
    seen: int  # audit lines
    dialed: float  # connections to the git host
    gone: float  # of these, the ones closed during earlier tests

    def dials(self) -> float:
        return dials(self.relay) - self.dialed

    def sessions(self, count: int) -> list[dict[str, Any]]:
        return audited(self.relay, self.seen, count, event="session")

    def keeps_all(self) -> None:
        """Asserts that every dialed connection is idle: none was closed."""

        def kept() -> bool:
            return idle(self.relay) == dials(self.relay) - self.gone

        wait_until(kept, message="all connections to the git host are warm")


def dials(relay: RelayProcess) -> float:
    return relay.metric("relay_upstream_dials_total", result="ok")


def idle(relay: RelayProcess) -> float:
    return relay.metric("relay_upstream_connections", state="idle")


@pytest.fixture(scope="module")
def relay(sshd: Sshd) -> Iterator[RelayProcess]:
    with RelayProcess(sshd, config={"workers": 1, "upstreams": {"main": {"idle_seconds": 3600}}}) as process:
        yield process


@pytest.fixture
def warm(relay: RelayProcess) -> Warm:
    def rests() -> bool:
        open_ones = relay.metric("relay_upstream_connections")
        return relay.metric("relay_sessions_open") == 0 and IDLE <= idle(relay) == open_ones

    wait_until(rests, message="the pool is warm, and nobody is there")
    return Warm(relay, len(relay.audit_lines()), dials(relay), dials(relay) - idle(relay))


def test_lists_by_go_git_are_ok_and_need_no_login_at_the_host(warm: Warm, sshd: Sshd, tmp_path: Path) -> None:
    make_repo(sshd.root / "team" / "listed.git")
    try:
        ready = go_git(warm.relay, tmp_path / "home")
    except Missing as missing:
        pytest.skip(str(missing))
    ready.list(warm.relay.url("team/listed"), LISTS)
    lines = warm.sessions(LISTS)
    assert {(line["result"], line["reason"], line["kind"]) for line in lines} == {("ok", "ok", "list")}
    assert {line["exit_status"] for line in lines} <= {None, 0}
    warm.keeps_all()
    assert warm.dials() < 10 - IDLE


@pytest.mark.parametrize("client", LEAVING, ids=str)
def test_clones_and_pushes_are_ok_and_need_no_login_at_the_host(client: Client, warm: Warm, sshd: Sshd, tmp_path: Path) -> None:
    bare = make_repo(sshd.root / "team" / f"{client.name.replace(' ', '-')}.git")
    try:
        ready = client.at(warm.relay, tmp_path / "home")
    except Missing as missing:
        pytest.skip(str(missing))
    env, name = git_env(tmp_path / "local"), f"team/{bare.stem}"
    rounds = 2 if client.name == "JGit" else 5  # each start of a JVM takes seconds
    for number in range(rounds):
        work = tmp_path / f"work-{number}"
        ready.clone(warm.relay.url(name), work)
        pushed = commit(work, env, f"file-{number}", b"x" * 10_000 * number)
        ready.push(work, "main")
        assert rev_parse(bare, env, "main") == pushed
    lines = warm.sessions(2 * rounds)
    assert {(line["result"], line["reason"]) for line in lines} == {("ok", "ok")}, lines
    assert {line["exit_status"] for line in lines} <= {None, 0}
    warm.keeps_all()
    assert warm.dials() < 10 - IDLE
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
async def test_who_leaves_between_two_requests_is_ok(asked: str, way: str, warm: Warm, sshd: Sshd) -> None:
    if not (sshd.root / "team" / "app.git").exists():
        make_repo(sshd.root / "team" / "app.git")
    service, _, request = asked.partition(" ")
    async with alice(warm.relay) as connection:
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
    [line] = await asyncio.to_thread(warm.sessions, 1)
    assert (line["result"], line["reason"]) == ("ok", "ok")
    assert line["exit_status"] in EXITS[way]
    await asyncio.to_thread(warm.keeps_all)


async def read_to_flush(process: asyncssh.SSHClientProcess[bytes]) -> None:
    while (length := int(await process.stdout.readexactly(4), 16)) > 0:
        await process.stdout.readexactly(length - 4)


@pytest.mark.parametrize("way", WAYS)
async def test_who_leaves_with_a_whole_archive_is_ok(way: str, warm: Warm, sshd: Sshd) -> None:
    if not (sshd.root / "team" / "app.git").exists():
        make_repo(sshd.root / "team" / "app.git")
    async with alice(warm.relay) as connection:
        process = await connection.create_process("git-upload-archive 'team/app'", encoding=None)
        process.stdin.write(pkt_line(b"argument --format=tar") + pkt_line(b"argument HEAD") + FLUSH_PKT)
        for _ in ("ACK", "the archive"):
            await read_to_flush(process)
        await leave(process, connection, way)
        if way == "eof":
            await process.wait_closed()
            assert process.exit_status == 0
    [line] = await asyncio.to_thread(warm.sessions, 1)
    assert (line["result"], line["reason"]) == ("ok", "ok")
    assert line["exit_status"] in (0, None)  # the git host ends by itself, perhaps before the relay has read that the client is gone
    await asyncio.to_thread(warm.keeps_all)


async def pushing(connection: asyncssh.SSHClientConnection, name: str, old: str, new: str, caps: bytes) -> asyncssh.SSHClientProcess[bytes]:
    """A push that deletes a ref, or moves it to a commit that the git host has, needs an empty pack or none."""
    process = await connection.create_process(f"git-receive-pack '{name}'", encoding=None)
    await process.stdout.readuntil(FLUSH_PKT)
    process.stdin.write(pkt_line(f"{old} {new} refs/heads/side\0".encode() + caps) + FLUSH_PKT)
    return process


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("caps", [b"report-status", b"report-status-v2 side-band-64k"])
async def test_who_leaves_with_the_report_of_a_push_is_ok_and_hooks_run_to_their_end(
    way: str, caps: bytes, warm: Warm, sshd: Sshd, tmp_path: Path
) -> None:
    """The hook runs on after the client has left, and prints output that no client reads."""
    bare = make_repo(sshd.root / "team" / f"hooked-{tmp_path.name}.git")
    head = rev_parse(bare, git_env(tmp_path / "local"), "main")
    git("branch", "side", head, cwd=bare, env=git_env(tmp_path / "local"))
    (go, done), hook = (tmp_path / "go", tmp_path / "done"), bare / "hooks" / "post-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\nwhile ! [ -e {go} ]; do sleep 0.05; done\nhead -c 200000 /dev/zero | tr '\\0' x\ntouch {done}\n")
    hook.chmod(0o755)
    async with alice(warm.relay) as connection:
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
    [line] = await asyncio.to_thread(warm.sessions, 1)
    assert (line["result"], line["reason"], line["kind"]) == ("ok", "ok", "push")
    assert line["exit_status"] in ((0,) if way == "eof" else (0, None))  # depends on whether the hook ends before the relay knows
    await asyncio.to_thread(warm.keeps_all)


@pytest.mark.parametrize("way", ["close", "disconnect", "reset"])
async def test_who_leaves_before_the_report_of_a_push_has_left_too_early(way: str, warm: Warm, sshd: Sshd, tmp_path: Path) -> None:
    bare = make_repo(sshd.root / "team" / f"early-{tmp_path.name}.git")
    head = rev_parse(bare, git_env(tmp_path / "local"), "main")
    before = warm.relay.metric("relay_bytes_total", direction="in")
    async with alice(warm.relay) as connection:
        process = await pushing(connection, f"team/{bare.stem}", ZERO, head, b"report-status")  # and no pack, which must follow
        await wait_until_async(lambda: warm.relay.metric("relay_bytes_total", direction="in") > before)
        await leave(process, connection, way)
    [line] = await asyncio.to_thread(warm.sessions, 1)
    assert (line["result"], line["reason"], line["exit_status"]) == ("client", "client_gone", None)
    await wait_until_async(lambda: sshd.signal_commands(0) == 0, message="the git host's receive-pack has ended")
    assert "refs/heads/side" not in refs(bare, git_env(tmp_path / "local"))


async def test_who_leaves_in_the_middle_of_an_answer_has_left_too_early(warm: Warm, sshd: Sshd) -> None:
    async with alice(warm.relay) as connection:
        process = await connection.create_process("git-upload-pack 'stub/emit/100000000'", encoding=None)
        await process.stdout.readexactly(1_000_000)
        process.channel.abort()
    [line] = await asyncio.to_thread(warm.sessions, 1)
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
