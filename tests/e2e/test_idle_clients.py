"""Clients that owe the git host the next message and send nothing: the relay ends their sessions, sooner when others wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from relay.git.pktline import FLUSH_PKT, pkt_line
from tests.e2e.helpers import alice, audited
from tests.support.gitrepo import git_env, make_repo, rev_parse
from tests.support.keys import Key, make_key
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

FEW = 3  # connections to the git host
BUSY_SECONDS = 0.5
ACCESS = {"rule": [{"repositories": "**", "who": ["alice", "mallory"], "allow": "write"}]}
LONG = "relay: the session was idle for too long, try again"
BUSY = "relay: the session was idle while others waited for the git host, try again"
V2 = {"GIT_PROTOCOL": "version=2"}
LS_REFS = pkt_line(b"command=ls-refs\n") + FLUSH_PKT


def want(head: str) -> bytes:
    return pkt_line(f"want {head} multi_ack_detailed\n".encode()) + FLUSH_PKT


# what a client sends after the git host's first flush-pkt, its last bytes: service, environment, bytes, the git host's answer
SILENCES: dict[str, tuple[str, dict[str, str], Callable[[str], bytes], bytes]] = {
    "after the refs": ("upload-pack", {}, lambda head: b"", b""),
    "after the refs of a push": ("receive-pack", {}, lambda head: b"", b""),
    "after what version 2 can do": ("upload-pack", V2, lambda head: b"", b""),
    "after an answer of version 2": ("upload-pack", V2, lambda head: LS_REFS, FLUSH_PKT),
    "within a length": ("upload-pack", {}, lambda head: b"00", b""),
    "within a packet": ("upload-pack", {}, lambda head: want(head)[:20], b""),
    "within a packet that ends as a flush-pkt does": ("upload-pack", {}, lambda head: b"0040want 0000", b""),
    "before the end of its wants": ("upload-pack", {}, lambda head: want(head)[:-4], b""),
    "before the end of a request of version 2": ("upload-pack", V2, lambda head: LS_REFS[:-4] + b"0001", b""),
    "after a NAK": ("upload-pack", {}, lambda head: want(head) + pkt_line(b"have " + b"1" * 40 + b"\n") + FLUSH_PKT, b"NAK\n"),
    "within the commands of a push": ("receive-pack", {}, lambda head: pkt_line(f"{head} {'0' * 40} refs/heads/x\0".encode()), b""),
}


@pytest.fixture(scope="module")
def mallory(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("keys"), "mallory")


Started = Callable[..., RelayProcess]


@pytest.fixture(scope="module")
def started(sshd: Sshd, mallory: Key) -> Iterator[Started]:
    """A relay with these limits and no client connected; tests with the same limits share it."""
    upstream = {"connections_max": FEW, "idle_connections": 0, "connect_seconds": 60}
    relays: dict[str, RelayProcess] = {}

    with ExitStack() as stack:

        def with_limits(**limits: float) -> RelayProcess:
            if (name := str(limits)) not in relays:
                config = {"workers": 1, "limits": limits, "upstreams": {"main": upstream}}
                relay = relays[name] = stack.enter_context(RelayProcess(sshd, config=config, access=ACCESS))
                relay.add_key("mallory", mallory.line)
                wait_until(lambda: relay.ssh(key=mallory).run(None).returncode == 0, message="the new key is read")
            relay = relays[name]

            def rests() -> bool:
                busy = relay.metric("relay_upstream_connections") - relay.metric("relay_upstream_connections", state="idle")
                return busy == relay.metric("relay_connections_open") == relay.metric("relay_sessions_open") == 0

            wait_until(rests, message="nobody is there")
            return relay

        yield with_limits


async def silent(connection: asyncssh.SSHClientConnection, what: str, head: str) -> asyncssh.SSHClientProcess[bytes]:
    service, env, says, until = SILENCES[what]
    process: asyncssh.SSHClientProcess[Any] = await connection.create_process(f"git-{service} 'team/app'", encoding=None, env=env)
    await process.stdout.readuntil(FLUSH_PKT)
    process.stdin.write(says(head))
    if until:
        await process.stdout.readuntil(until)
    return process


def ended(relay: RelayProcess, reason: str) -> float:
    return relay.metric("relay_sessions_idle_total", reason=reason)


def repository(sshd: Sshd, tmp_path: Path) -> str:
    bare = sshd.root / "team" / "app.git"
    if not bare.exists():
        make_repo(bare)
    return rev_parse(bare, git_env(tmp_path / "local"), "main")


@pytest.mark.parametrize("what", SILENCES)
async def test_who_says_nothing_gives_way_to_who_stands_in_line(
    what: str, started: Started, sshd: Sshd, mallory: Key, tmp_path: Path
) -> None:
    relay, head = started(client_idle_busy_seconds=BUSY_SECONDS), repository(sshd, tmp_path)
    seen, before = len(relay.audit_lines()), ended(relay, "client_idle_busy")
    async with alice(relay, mallory) as many, alice(relay) as connection:
        holders = [await silent(many, what, head) for _ in range(FEW)]
        result = await run(connection, "git-upload-pack 'team/app'", FLUSH_PKT)
        assert (result.exit_status, result.stderr) == (0, b"")
        [line] = await asyncio.to_thread(audited, relay, seen, 1, event="session", reason="client_idle_busy")  # no more than were needed
        assert (line["identity"], line["result"], line["exit_status"]) == ("mallory", "client", 255)
        assert ended(relay, "client_idle_busy") == before + 1
        errors = await holders[0].stderr.read()  # the client that was silent for longest
        assert errors.decode().strip() == BUSY
        assert all(holder.exit_status is None for holder in holders[1:])


@pytest.mark.parametrize("what", SILENCES)
async def test_who_says_nothing_for_very_long_ends_by_itself(what: str, started: Started, sshd: Sshd, mallory: Key, tmp_path: Path) -> None:
    relay, head = started(client_idle_seconds=0.5), repository(sshd, tmp_path)
    before = ended(relay, "client_idle")
    async with alice(relay) as connection:
        process = await silent(connection, what, head)
        assert (await process.stderr.read()).decode().strip() == LONG
        await process.wait_closed()
        assert process.exit_status == 255
    assert ended(relay, "client_idle") == before + 1


@pytest.mark.parametrize("what", SILENCES)
async def test_nobody_is_hurried_while_connections_are_free(what: str, started: Started, sshd: Sshd, mallory: Key, tmp_path: Path) -> None:
    relay, head = started(client_idle_busy_seconds=0.01), repository(sshd, tmp_path)
    async with alice(relay) as connection:
        process = await silent(connection, what, head)
        for _ in range(5):
            assert (await run(connection, "git-upload-pack 'team/app'", FLUSH_PKT)).exit_status == 0
        assert process.exit_status is None and not process.channel.is_closing()


@pytest.mark.parametrize("command", ["git-upload-pack 'stub/hang'", "git-upload-pack 'stub/half/10'", "hook", "pack"])
async def test_a_git_host_that_may_owe_something_is_waited_for(
    command: str, started: Started, sshd: Sshd, mallory: Key, tmp_path: Path
) -> None:
    """The git host computes, runs a hook or reads a pack: other sessions wait, and this session goes on."""
    relay = started(client_idle_busy_seconds=0.01, client_idle_seconds=0.5)
    bare = make_repo(sshd.root / "team" / f"{tmp_path.name}.git")
    head, zero, hook = rev_parse(bare, git_env(tmp_path / "local"), "main"), "0" * 40, bare / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\nwhile ! [ -e {tmp_path}/go ]; do sleep 0.05; done\n")
    hook.chmod(0o755)
    async with alice(relay, mallory) as many, alice(relay) as connection:
        holders: list[asyncssh.SSHClientProcess[bytes]] = []
        for number in range(FEW):
            push = command in ("hook", "pack")
            line = f"git-receive-pack 'team/{bare.stem}'" if push else command
            process = await many.create_process(line, encoding=None)
            if push:
                await process.stdout.readuntil(FLUSH_PKT)
                old, new = (zero, head) if command == "pack" else (head, zero)
                process.stdin.write(
                    pkt_line(f"{old} {new} refs/heads/{'main' if old == head else number}\0report-status".encode()) + FLUSH_PKT
                )
            holders.append(process)
        if command == "hook":
            await wait_until_async(lambda: (tmp_path / "begun").exists())
        waiting = asyncio.ensure_future(run(connection, f"git-upload-pack 'team/{bare.stem}'", FLUSH_PKT))
        await wait_until_async(lambda: relay.metric("relay_upstream_waiting", upstream="main") == 1)
        await asyncio.sleep(1.5)  # longer than several checks and limits
        assert relay.metric("relay_upstream_waiting", upstream="main") == 1
        assert all(holder.exit_status is None and not holder.channel.is_closing() for holder in holders)
        (tmp_path / "go").touch()
        holders[0].channel.abort()
        assert (await waiting).exit_status == 0
