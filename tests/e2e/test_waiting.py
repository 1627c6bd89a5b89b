"""Sessions that wait for a git host: their order, the messages they get meanwhile, and a lone host that restarts under load."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from benchmarks.fetch_v2 import fetch
from tests.e2e.helpers import alice, audited
from tests.support.gitrepo import GitError, git, make_repo
from tests.support.keys import Key, make_key
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import Result, run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

EMITTED = "git-upload-pack 'stub/emit/1000'"
BUSY = b"relay: all connections to the git host are in use, try again in a moment\n"
YOURS = b"relay: too many of your sessions run or wait already, try again when some have ended\n"
HERE = b"relay: too many sessions use this repository already, try again in a moment\n"


@pytest.fixture
def sshd(make_sshd: Callable[..., Sshd]) -> Sshd:
    """A git host for this test only, because the test counts lines of its log."""
    return make_sshd()


@pytest.fixture
def people(tmp_path: Path) -> dict[str, Key]:
    return {name: make_key(tmp_path, name) for name in ("robot", "bob")}


@pytest.fixture
def started(make_relay: Callable[..., RelayProcess], sshd: Sshd, people: dict[str, Key]) -> Callable[..., RelayProcess]:
    """A relay with these limits and settings of its upstream, and the keys of alice and `people`."""

    def start(limits: dict[str, Any] | None = None, **upstream: Any) -> RelayProcess:
        limits = {"sessions_per_connection": 1000, **(limits or {})}
        rules = {"rule": [{"repositories": "**", "who": ["*"], "allow": "write"}]}
        relay = make_relay(sshd, config={"limits": limits, "upstreams": {"main": upstream}}, access=rules)
        for name, key in people.items():
            relay.add_key(name, key.line)
        for key in people.values():
            wait_until(lambda: relay.ssh(key=key).run(None).returncode == 0, message="the new key is read")  # noqa: B023
        return relay

    return start


async def waiting(relay: RelayProcess, count: int) -> None:
    await wait_until_async(lambda: asyncio.to_thread(lambda: relay.metric("relay_upstream_waiting", upstream="main") == count))


@asynccontextmanager
async def holding(connection: asyncssh.SSHClientConnection, count: int) -> AsyncIterator[list[asyncssh.SSHClientProcess[bytes]]]:
    """So many sessions that have a connection to the git host each; they succeed at the end of the block or before."""
    held = []
    for _ in range(count):
        process = await connection.create_process("git-upload-pack 'stub/half/10'", encoding=None)
        assert await process.stdout.readexactly(10)
        held.append(process)
    yield held
    for process in held:
        process.stdin.write_eof()
        await process.wait_closed()
        assert process.exit_status == 0


async def test_an_identity_with_a_hundred_sessions_delays_another_by_one_turn(
    started: Callable[..., RelayProcess], sshd: Sshd, people: dict[str, Key]
) -> None:
    relay = await asyncio.to_thread(started, connections_max=8, idle_connections=0, connect_seconds=60)
    async with alice(relay) as her, alice(relay, people["robot"]) as robot, alice(relay, people["bob"]) as bob:
        async with holding(robot, 8):
            crowd = [asyncio.ensure_future(run(robot, EMITTED)) for _ in range(100)]
            await waiting(relay, 100)
            mark = len(sshd.commands())
            others = []
            for number, one in enumerate((her, bob, her)):
                others.append(asyncio.ensure_future(run(one, EMITTED)))
                await waiting(relay, 101 + number)
        assert {done.exit_status for done in await asyncio.gather(*crowd, *others)} == {0}
    turns = [command.identity for command in sshd.commands()[mark:]]
    assert len(turns) == 103
    # eight sessions run at once, so those of one round may begin in another order
    assert Counter(turns[:16])["alice"] == 2 and Counter(turns[:16])["bob"] == 1
    assert relay.metric("relay_upstream_wait_seconds_count", upstream="main", reason="upstream") == 103
    lines = await asyncio.to_thread(audited, relay, 0, 103 + 8, event="session", result="ok")
    assert sum(line["waited_seconds"] > 0 for line in lines) == 103
    assert sshd.logins() == 8


async def test_five_hundred_clones_of_one_identity_let_another_in_between(
    started: Callable[..., RelayProcess], sshd: Sshd, people: dict[str, Key], tmp_path: Path
) -> None:
    """Clones by git-upload-pack, whose packs are thrown away. First come, first served would put each `ls-remote` behind hundreds."""
    make_repo(sshd.root / "team/app.git")
    relay = await asyncio.to_thread(started, connections_max=8, idle_connections=8, connect_seconds=600)
    env = relay.git_env(tmp_path / "home")
    async with alice(relay, people["robot"]) as robot:
        crowd = [asyncio.ensure_future(fetch(robot, "git-upload-pack 'team/app'")) for _ in range(500)]
        await wait_until_async(lambda: asyncio.to_thread(lambda: relay.metric("relay_upstream_waiting", upstream="main") > 300))
        for _ in range(3):
            mark = len(sshd.commands())
            await asyncio.to_thread(git, "ls-remote", relay.url("team/app"), env=env)
            turns = [command.identity for command in sshd.commands()[mark:]]
            assert turns.index("alice") < 60 and not all(one.done() for one in crowd), "it took part in the first turns"
        fetched = await asyncio.gather(*crowd)
    assert len(fetched) == 500 and min(one.size for one in fetched) > 0
    lines = await asyncio.to_thread(audited, relay, 0, 503, event="session", service="git-upload-pack")
    assert {line["result"] for line in lines} == {"ok"} and sshd.logins() == 8


async def test_who_waits_reads_its_place_once_and_is_served(started: Callable[..., RelayProcess], people: dict[str, Key]) -> None:
    relay = await asyncio.to_thread(started, connections_max=1, idle_connections=0, connect_seconds=60, notice_seconds=0.05)
    async with alice(relay) as her, alice(relay, people["robot"]) as robot, holding(robot, 1) as [holder]:
        first = await robot.create_process(EMITTED, encoding=None)
        assert await first.stderr.readline() == b"relay: waiting for the git host, in line before you: 0\n"
        second = await her.create_process(EMITTED, encoding=None)
        assert await second.stderr.readline() == b"relay: waiting for the git host, in line before you: 1\n"
        holder.stdin.write_eof()
        for process in (first, second):
            assert (len(await process.stdout.read()), await process.stderr.read()) == (1000, b"")
            await process.wait_closed()
            assert process.exit_status == 0


@pytest.mark.parametrize(
    ("limits", "reason", "said", "notice"),
    [
        ({"waiting": 0}, "upstream", BUSY, b""),
        ({"leases_per_identity": 1}, "identity", YOURS, b"relay: waiting, as many of your sessions use the git host as may at once\n"),
        ({"leases_per_repository": 1}, "repository", HERE, b"relay: waiting, as many sessions use this repository as may at once\n"),
    ],
    ids=["upstream", "identity", "repository"],
)
async def test_who_is_refused_reads_why_and_the_git_host_is_not_to_blame(
    started: Callable[..., RelayProcess], limits: dict[str, int], reason: str, said: bytes, notice: bytes
) -> None:
    many = 1 if reason == "upstream" else 8
    relay = await asyncio.to_thread(started, limits, connections_max=many, idle_connections=0, connect_seconds=1, notice_seconds=0.05)
    async with alice(relay) as connection, holding(connection, 1):
        assert await run(connection, "git-upload-pack 'stub/half/10'") == Result(b"", notice + said, 255, None)
    [line] = await asyncio.to_thread(audited, relay, 0, event="command_rejected")
    assert (line["result"], line["reason"], line["upstream"], line["host"]) == ("policy", reason, "main", "")
    assert relay.metric("relay_commands_rejected_total", reason=reason) == 1
    assert relay.metric("relay_upstream_up", upstream="main") == 1
    assert relay.metric("relay_upstream_dials_total", upstream="main", result="timeout") == 0


async def test_the_newcomer_finds_room_in_a_line_that_another_has_filled(
    started: Callable[..., RelayProcess], people: dict[str, Key]
) -> None:
    relay = await asyncio.to_thread(started, {"waiting": 3}, connections_max=1, idle_connections=0, connect_seconds=60)
    async with alice(relay) as her, alice(relay, people["robot"]) as robot:
        async with holding(robot, 1):
            crowd = [asyncio.ensure_future(run(robot, EMITTED)) for _ in range(3)]
            await waiting(relay, 3)
            assert (await run(robot, EMITTED)).stderr == YOURS
            mine = asyncio.ensure_future(run(her, EMITTED))
            await wait_until_async(lambda: any(one.done() for one in crowd))
        assert (await mine).exit_status == 0
        assert Counter((one.exit_status, one.stderr) for one in await asyncio.gather(*crowd)) == {(0, b""): 2, (255, YOURS): 1}


async def test_sessions_that_come_while_a_lone_host_is_stopped_are_served_when_it_is_back(
    started: Callable[..., RelayProcess], sshd: Sshd
) -> None:
    relay = await asyncio.to_thread(started, connections_max=8, idle_connections=1, wait_seconds=60, notice_seconds=0.05)
    await wait_until_async(lambda: asyncio.to_thread(lambda: relay.metric("relay_upstream_connections", state="idle") == 1))
    await asyncio.to_thread(sshd.stop)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(alice(relay)) for _ in range(4)]
        processes = [await client.create_process(EMITTED, encoding=None) for client in clients for _ in range(5)]
        for process in processes:
            notice = await process.stderr.readline()
            assert notice.startswith(b"relay: the git host does not answer, it may be restarting; waiting up to ")
        await asyncio.to_thread(sshd.start)
        for process in processes:
            assert (len(await process.stdout.read()), await process.stderr.read()) == (1000, b"")
            await process.wait_closed()
            assert process.exit_status == 0
    assert relay.metric("relay_upstream_wait_seconds_count", upstream="main", reason="away") >= 20
    assert {line["result"] for line in await asyncio.to_thread(audited, relay, 0, 20, event="session")} == {"ok"}


async def test_a_host_that_is_not_back_in_time_is_unavailable(started: Callable[..., RelayProcess], sshd: Sshd) -> None:
    relay = await asyncio.to_thread(started, idle_connections=0, wait_seconds=1)
    await asyncio.to_thread(sshd.stop)
    async with alice(relay) as connection:
        assert await run(connection, EMITTED) == Result(b"", b"relay: the git host is unavailable, try again in a moment\n", 255, None)
    [line] = await asyncio.to_thread(audited, relay, 0, event="session", upstream="main")
    assert (line["result"], line["reason"]) == ("upstream", "dial")
    assert line["waited_seconds"] > 0


@pytest.mark.parametrize(("killed", "warm"), [("listener", 0), ("listener", 2), ("everything", 2)])
async def test_the_restart_of_a_lone_host_s_sshd_costs_nobody_an_error(
    started: Callable[..., RelayProcess], sshd: Sshd, tmp_path: Path, killed: str, warm: int
) -> None:
    """As with `systemctl restart ssh` on Debian: the listener is closed for a while, running sessions go on. Or the whole host restarts."""
    make_repo(sshd.root / "team/app.git")
    # no connection stays idle beyond the warm ones
    relay = await asyncio.to_thread(started, idle_connections=warm, idle_seconds=0.001, wait_seconds=60)
    over, done, failed = asyncio.Event(), Counter[str](), list[str]()

    async def lists(name: str) -> None:
        while not over.is_set():
            try:
                await asyncio.to_thread(git, "ls-remote", relay.url("team/app"), env=relay.git_env(tmp_path / name))
            except GitError as error:
                failed.append(str(error))
            done[name] += 1

    loops = [asyncio.create_task(lists(f"client{number}")) for number in range(4)]

    async def all_go_on() -> None:
        before = done.copy()
        await wait_until_async(lambda: all(done[f"client{number}"] >= before[f"client{number}"] + 2 for number in range(4)))

    try:
        await all_go_on()
        for _ in range(3):
            if killed == "everything":
                await asyncio.to_thread(sshd.stop)
            else:
                sshd.signal_listener(signal.SIGKILL)
            if killed == "listener" and warm:
                await all_go_on()  # on the remaining connections
            else:
                await wait_until_async(lambda: asyncio.to_thread(lambda: relay.metric("relay_upstream_waiting", upstream="main") >= 3))
            await asyncio.to_thread(sshd.start)
            await all_go_on()
    finally:
        over.set()
        await asyncio.gather(*loops)
    assert not failed
    assert {line["result"] for line in relay.audit_lines() if line["event"] == "session"} == {"ok"}
