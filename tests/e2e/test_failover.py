"""Git hosts that are stopped, frozen and started again under a load of fetches: clients are served by another host and see no error."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.helpers import alice, audited
from tests.support.gitrepo import git, make_repo
from tests.support.relay_process import RelayProcess, upstream
from tests.support.sshclient import Result, run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

FETCH = "git-upload-pack 'team/app'"
DONE = b"0000"  # flush-pkt: the client wants nothing
EMIT = "git-upload-pack 'stub/emit/1000'"


class Twin(Sshd):
    """A second host with the same repositories, and another host key."""

    def __init__(self, first: Sshd) -> None:
        super().__init__(authorized=[first.key.line])
        self.root = first.root


@pytest.fixture
def first(make_sshd: Callable[..., Sshd]) -> Sshd:
    sshd = make_sshd()
    make_repo(sshd.root / "team/app.git")
    return sshd


@pytest.fixture
def second(first: Sshd) -> Iterator[Sshd]:
    with Twin(first) as twin:
        yield twin


def name(sshd: Sshd) -> str:
    return f"{sshd.address}:{sshd.port}"


def pair(first: Sshd, second: Sshd, **settings: Any) -> RelayProcess:
    """A relay in front of both hosts as one upstream, with its warm connections open."""
    main = {"addresses": [name(first), name(second)], "host_keys": [first.host_key_line, second.host_key_line], "idle_connections": 2}
    relay = RelayProcess(first, config={"upstreams": {"main": {**main, **settings}}})
    relay.start()
    wait_until(lambda: relay.metric("relay_upstream_connections", state="idle") == 4, message="warm connections to both")
    return relay


class Load:
    """Several clients that fetch all the time; keeps the result of each fetch."""

    def __init__(self, relay: RelayProcess, home: Path, clients: int = 3) -> None:
        self._relay, self._home, self._clients = relay, home, clients
        self.seen: Counter[str] = Counter()
        self._over = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._fetch()) for _ in range(self._clients)] + [loop.create_task(self._git())]
        await self.more(10)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        await asyncio.gather(*self._tasks)

    @property
    def errors(self) -> int:
        return self.seen.total() - self.seen["ok"]

    async def more(self, count: int) -> None:
        """Waits until so many more fetches have ended."""
        mark = self.seen.total()
        await wait_until_async(lambda: self.seen.total() >= mark + count, 60)

    async def _fetch(self) -> None:
        async with alice(self._relay) as connection:
            while not self._over.is_set():
                process = await connection.create_process(FETCH, encoding=None)
                said = b""
                while not said.endswith(DONE) and (more := await process.stdout.read(1 << 16)):
                    said += more
                with suppress(BrokenPipeError):  # when the program has ended
                    process.stdin.write(DONE)  # as git does: not before the host's first output
                    process.stdin.write_eof()
                done = await process.wait()
                ok = done.exit_status == 0 and not done.stderr and said.endswith(DONE)
                self.seen["ok" if ok else f"{done.exit_status} {done.stderr!r}"] += 1

    async def _git(self) -> None:
        """Runs the real git."""
        env = self._relay.git_env(self._home)
        while not self._over.is_set():
            done = await asyncio.to_thread(git, "ls-remote", self._relay.url("team/app"), env=env, check=False)
            self.seen["ok" if done.returncode == 0 and b"refs/heads/main" in done.stdout else done.stderr.decode()] += 1


def mid_transfer(relay: RelayProcess, since: int) -> int:
    """Sessions whose host was lost after part of its answer was sent to the client: those cannot move."""
    return sum(line["reason"] == "lost" and line["bytes_out"] > 0 for line in relay.audit_lines()[since:])


async def served_by(relay: RelayProcess, sshd: Sshd) -> None:
    """Waits until this host serves the next sessions."""

    since = len(relay.audit_lines())

    async def moved() -> bool:
        nonlocal since
        async with alice(relay) as connection:
            assert (await run(connection, EMIT)).exit_status == 0
        lines = [line for line in relay.audit_lines()[since:] if line.get("repository") == "stub/emit/1000"]
        since = len(relay.audit_lines())
        return bool(lines) and lines[-1]["host"] == name(sshd)

    await wait_until_async(moved, 30, message=f"{name(sshd)} serves")


def address_up(relay: RelayProcess, sshd: Sshd) -> bool:
    return relay.metric("relay_upstream_address_up", address=name(sshd)) == 1


async def test_the_primary_is_stopped_under_load_and_comes_back(first: Sshd, second: Sshd, tmp_path: Path) -> None:
    """The test kills every process of its sshd. A spliced session cannot move, so a fetch cut within its bytes may fail; no other."""
    with await asyncio.to_thread(pair, first, second) as relay:
        async with Load(relay, tmp_path) as load:
            since = len(relay.audit_lines())
            await asyncio.to_thread(first.stop)
            await load.more(40)
            await wait_until_async(lambda: asyncio.to_thread(lambda: not address_up(relay, first)), message="the primary is down")
            errors = load.errors
            assert errors <= mid_transfer(relay, since) <= 4, load.seen  # one a client at most; git may have received everything already
            assert "main" in relay.wait_for_log(rf"upstream main: {name(first)} is down: ")[0]
            assert await asyncio.to_thread(relay.get, "/ready") == (200, "ready\n")
            assert relay.metric("relay_upstream_up") == 1

            since, before = len(relay.audit_lines()), load.seen["ok"]
            await load.more(20)
            assert {line["host"] for line in relay.audit_lines()[since:]} == {name(second)}

            await asyncio.to_thread(first.start)
            await asyncio.to_thread(relay.wait_for_log, rf"upstream main: {name(first)} is back")
            await load.more(10)
            since = len(relay.audit_lines())
            await load.more(20)
            assert {line["host"] for line in relay.audit_lines()[since:]} == {name(first)}
            assert load.seen["ok"] >= before + 50
        assert load.errors == errors, load.seen
        assert relay.log_text().count("is down: ") == relay.log_text().count("is back") == 1


async def test_a_listener_that_is_gone_is_noticed_by_nobody(first: Sshd, second: Sshd, tmp_path: Path) -> None:
    """As with Debian's `systemctl stop ssh`: sessions run on, and warm connections serve until they reach their limit of sessions."""
    with await asyncio.to_thread(pair, first, second) as relay:
        async with Load(relay, tmp_path) as load:
            await asyncio.to_thread(first.signal_listener, signal.SIGKILL)
            await load.more(30)
        assert set(load.seen) == {"ok"}, load.seen


async def test_sessions_without_a_byte_move_to_the_other_host(first: Sshd, second: Sshd) -> None:
    """All of them wait for git's first output when their host dies."""
    count = 6
    with await asyncio.to_thread(pair, first, second) as relay:
        async with alice(relay) as connection:
            sessions = [asyncio.create_task(run(connection, "git-upload-pack 'stub/slowstart/1/1000'")) for _ in range(count)]
            await wait_until_async(lambda: len(first.commands()) == count, message="all run on the primary")
            await asyncio.to_thread(first.stop)
            results = await asyncio.gather(*sessions)
        assert {(result.exit_status, result.stderr, len(result.stdout)) for result in results} == {(0, b"", 1000)}
        lines = await asyncio.to_thread(audited, relay, 0, count, result="ok")
        assert {line["host"] for line in lines} == {name(second)}


async def test_what_the_client_said_early_goes_to_the_host_that_serves(first: Sshd, second: Sshd) -> None:
    """Input received while the session looks for its next host, and an EOF that was passed on to the dead host."""
    with await asyncio.to_thread(pair, first, second) as relay:
        async with alice(relay) as connection:
            process = await connection.create_process("git-upload-pack 'stub/checksum'", encoding=None)
            await wait_until_async(lambda: len(first.commands()) == 1)
            await asyncio.to_thread(first.stop)
            await wait_until_async(lambda: len(second.commands()) == 1, message="it moved")
            process.stdin.write(b"hello")
            process.stdin.write_eof()
            done = await process.wait()
            assert done.exit_status == 0 and isinstance(done.stdout, bytes) and done.stdout.split()[-1] == b"5"
            await asyncio.to_thread(relay.wait_for_log, rf"{name(first)} is down")  # after three failed dials; else it is never back
            ended = await connection.create_process("git-upload-pack 'stub/slowstart/1/10'", encoding=None)
            ended.stdin.write_eof()
            await wait_until_async(lambda: len(second.commands()) == 2)
            await asyncio.to_thread(first.start)
            await asyncio.to_thread(relay.wait_for_log, rf"{name(first)} is back")
            await asyncio.to_thread(second.stop)
            assert (await ended.wait()).exit_status == 0


async def test_a_frozen_primary_costs_its_share_of_the_time_and_then_none(first: Sshd, second: Sshd) -> None:
    with await asyncio.to_thread(pair, first, second, connect_seconds=2, health_seconds=0.5, keepalive_seconds=2) as relay:
        async with alice(relay) as connection:
            await asyncio.to_thread(first.freeze)
            try:
                results = await asyncio.gather(*(run(connection, EMIT) for _ in range(8)))
                assert {(result.exit_status, result.stderr) for result in results} == {(0, b"")}
                await wait_until_async(lambda: asyncio.to_thread(lambda: not address_up(relay, first)), message="the primary is down")
            finally:
                await asyncio.to_thread(first.thaw)
            await served_by(relay, first)


async def test_when_all_are_stopped_it_is_told_and_over_as_soon_as_one_is_back(first: Sshd, second: Sshd) -> None:
    with await asyncio.to_thread(pair, first, second, connect_seconds=2) as relay:
        await asyncio.to_thread(first.stop)
        await asyncio.to_thread(second.stop)
        async with alice(relay) as connection:
            lost = await run(connection, EMIT)
            assert lost == Result(b"", b"relay: the git host is unavailable, try again in a moment\n", 255, None)
            await wait_until_async(lambda: asyncio.to_thread(lambda: relay.get("/ready") == (503, "no_upstream\n")), message="not ready")
            [line] = await asyncio.to_thread(audited, relay, 0, result="upstream")
            assert name(first) in line["detail"] and name(second) in line["detail"]
            await asyncio.to_thread(second.start)
            await wait_until_async(lambda: asyncio.to_thread(lambda: relay.get("/ready")[0] == 200), 30, message="ready again")
            assert (await run(connection, EMIT)).exit_status == 0


# -- replicas ------------------------------------------------------------------------------------------------------------


def replicated(first: Sshd, second: Sshd, fallback: bool = True) -> RelayProcess:
    """`first` is the primary, `second` its replica."""
    replicas = {**upstream(second), "user": second.user, "connect_seconds": 2}
    route = {"repositories": "**", "upstream": "main", "read_upstream": "replicas", "path": f"{first.root}/{{repository}}.git"}
    if not fallback:
        route["read_fallback"] = False  # type: ignore[assignment]
    relay = RelayProcess(first, config={"upstreams": {"replicas": replicas}}, routes={"route": [route]})
    relay.start()
    return relay


async def test_fetches_are_served_by_a_replica_and_pushes_by_the_primary(first: Sshd, second: Sshd, tmp_path: Path) -> None:
    with await asyncio.to_thread(replicated, first, second) as relay:
        env = relay.git_env(tmp_path)

        def work() -> None:
            git("clone", relay.url("team/app"), "work", cwd=tmp_path, env=env)
            git("commit", "--allow-empty", "-m", "more", cwd=tmp_path / "work", env=env)
            git("push", "origin", "main", cwd=tmp_path / "work", env=env)
            git("fetch", cwd=tmp_path / "work", env=env)

        await asyncio.to_thread(work)
        async with alice(relay) as connection:
            for operation in ("download", "upload"):
                assert (await run(connection, f"git-lfs-authenticate 'team/app' {operation}")).exit_status == 0
        lines = await asyncio.to_thread(audited, relay, 0, 5, event="session", result="ok")
        assert [(line["service"], line["operation"], line["upstream"], line["host"]) for line in lines] == [
            ("git-upload-pack", "", "replicas", name(second)),
            ("git-receive-pack", "", "main", name(first)),
            ("git-upload-pack", "", "replicas", name(second)),
            ("git-lfs-authenticate", "download", "replicas", name(second)),
            ("git-lfs-authenticate", "upload", "main", name(first)),
        ]


async def test_without_a_replica_reads_go_to_the_primary_and_writes_stay_there(first: Sshd, second: Sshd) -> None:
    with await asyncio.to_thread(replicated, first, second) as relay:
        async with alice(relay) as connection:
            waiting = asyncio.create_task(run(connection, "git-upload-pack 'stub/slowstart/1/1000'"))
            await wait_until_async(lambda: len(second.commands()) == 1)
            await asyncio.to_thread(second.stop)
            assert (await waiting).exit_status == 0  # none of its bytes had been carried
            assert (await run(connection, EMIT)).exit_status == 0
            lines = await asyncio.to_thread(audited, relay, 0, 2, result="ok")
            assert {(line["upstream"], line["host"]) for line in lines} == {("main", name(first))}
            await asyncio.to_thread(second.start)
            await asyncio.to_thread(first.stop)
            push = await run(connection, "git-receive-pack 'stub/emit/1000'")
            assert (push.exit_status, push.stdout) == (255, b"")  # a push is never sent to a replica
            await wait_until_async(lambda: asyncio.to_thread(lambda: relay.metric("relay_upstream_up", upstream="replicas") == 1), 30)
            assert (await run(connection, EMIT)).exit_status == 0  # reads are served without the primary


async def test_a_primary_that_is_to_be_spared_is(first: Sshd, second: Sshd) -> None:
    with await asyncio.to_thread(replicated, first, second, fallback=False) as relay:
        await asyncio.to_thread(second.stop)
        async with alice(relay) as connection:
            assert (await run(connection, EMIT)).exit_status == 255
        [line] = await asyncio.to_thread(audited, relay, 0, event="session")
        assert (line["upstream"], line["host"], line["result"]) == ("replicas", "", "upstream")
        assert first.commands() == []
