"""Many equal fetches at once: two runs of pack-objects, no slot for a hit, and fills that are cut half-way never look whole."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.e2e.helpers import audited
from tests.e2e.packing import Fetcher, Runs, entries, filler, is_whole, kept_whole, packs, results, served
from tests.support.gitrepo import commit, fsck, git, make_big_repo, make_repo, rev_list, rev_parse
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

CLONES = 100
AT_ONCE = 16
BIG_MEGABYTES = 24  # more than what a client's window and the sockets take

Clone = CompletedProcess[bytes]


class Stage:
    """A git host that counts and holds its runs of pack-objects, a relay that keeps the first already, and clones that run along."""

    def __init__(
        self, stack: ExitStack, folder: Path, *, config: dict[str, Any] | None = None, first: bool = True, **settings: Any
    ) -> None:
        self.folder, self.packs = folder, folder / "packs"
        self.sshd = stack.enter_context(Sshd())
        self.runs = Runs(self.sshd, folder / "runs")
        self.relay = stack.enter_context(RelayProcess(self.sshd, config={**packs(self.packs, first=first, **settings), **(config or {})}))
        self.env = self.relay.git_env(folder / "home")
        self._pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        self._count = 0
        self._lock = threading.Lock()

    def start(self, *options: str, repository: str = "team/app") -> tuple[Path, subprocess.Popen[bytes]]:
        """A clone that runs along."""
        with self._lock:
            self._count += 1
            work = self.folder / f"work-{self._count}"
        command = ["git", "clone", "-q", *options, self.relay.url(repository), str(work)]
        pipe = subprocess.PIPE
        return work, subprocess.Popen(command, env=self.env, stdout=pipe, stderr=pipe, start_new_session=True)

    def begin_fill(self, *options: str) -> tuple[Path, subprocess.Popen[bytes]]:
        """A clone whose entry is being filled, by a git host that is held."""
        self.runs.hold()
        before = self.runs.count
        started = self.start(*options)
        wait_until(lambda: self.runs.count > before, message="the git host makes the pack")
        return started

    def join(self, count: int, *options: str) -> list[tuple[Path, subprocess.Popen[bytes]]]:
        """Clones that wait for the same entry."""
        before = results(self.relay).get("joined", 0)
        started = [self.start(*options) for _ in range(count)]
        wait_until(lambda: results(self.relay).get("joined", 0) >= before + count, message="they wait for the pack")
        return started


@pytest.fixture
def make_stage(sshd_installed: None, tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    with ExitStack() as stack:
        yield lambda **settings: Stage(stack, tmp_path, **settings)


def ended(clone: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    with clone:
        _, said = clone.communicate(timeout=120)
    return clone.returncode, said


def kill(clone: subprocess.Popen[bytes]) -> None:
    """With its ssh."""
    os.killpg(clone.pid, signal.SIGKILL)
    ended(clone)


def ended_well(stage: Stage, bare: Path, *clones: tuple[Path, subprocess.Popen[bytes]]) -> None:
    for work, clone in clones:
        assert ended(clone) == (0, b"")
        is_whole(work, bare, stage.env, "HEAD")


# -- a storm ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [("--depth=1",), ()], ids=["depth-1", "full"])
def test_a_hundred_equal_clones_over_two_workers_cost_the_host_two_runs(
    make_stage: Callable[..., Stage], tmp_path: Path, options: tuple[str, ...]
) -> None:
    stage = make_stage(first=False, config={"workers": 2})
    bare = make_repo(stage.sshd.root / "team/app.git", commits=20)
    whole = rev_list(bare, stage.env, "HEAD") if not options else None
    kept: list[list[str]] = []

    def clone(number: int) -> None:
        work = tmp_path / f"clone-{number}"
        git("clone", "-q", *options, stage.relay.url("team/app"), work, env=stage.env)
        fsck(work, stage.env)
        kept.append(rev_list(work, stage.env, "HEAD"))
        shutil.rmtree(work)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(clone, range(CLONES)))
    assert stage.runs.count <= 2
    assert len(kept) == CLONES and all(one == (whole or kept[0]) for one in kept)
    came = results(stage.relay)
    assert (came.pop("passed"), came.pop("filled"), sum(came.values())) == (1, 1, CLONES - 2), came
    assert set(came) <= {"hit", "joined"}
    assert sorted(served(stage.relay, 0, CLONES)) == ["cache"] * (CLONES - 1) + ["host"]
    assert kept_whole(stage.packs) == 1


# -- slots -----------------------------------------------------------------------------------------------------------------


def test_one_connection_is_enough_for_who_fills_and_for_who_reads_along(make_stage: Callable[..., Stage]) -> None:
    """The session that begins the fill has given its connection back when the fill leases it."""
    stage = make_stage(config={"upstreams": {"main": {"connections_max": 1, "idle_connections": 1}}})
    bare = make_repo(stage.sshd.root / "team/app.git")
    ended_well(stage, bare, *[stage.start() for _ in range(8)])
    assert stage.runs.count == 1 and results(stage.relay)["filled"] == 1


async def test_a_slow_reader_of_an_entry_holds_no_slot_and_no_lock(make_stage: Callable[..., Stage], tmp_path: Path) -> None:
    stage = await asyncio.to_thread(make_stage, config={"upstreams": {"main": {"connections_max": 1, "idle_connections": 1}}})
    relay = stage.relay
    bare = await asyncio.to_thread(make_big_repo, stage.sshd.root / "team/app.git", BIG_MEGABYTES)

    def leased() -> float:
        return relay.metric("relay_upstream_connections", state="leased")

    async with Fetcher.at(relay, "team/app", window=65_536) as first:
        await first.list()
        first.ask(first.refs[b"HEAD"])
        answer = await first.answer()
        assert await first.end() == 0
    async with Fetcher.at(relay, "team/app", window=65_536) as slow:
        await slow.list()
        slow.ask(slow.refs[b"HEAD"])
        await wait_until_async(lambda: results(relay).get("hit") == 1, message="the entry is on its way")
        await wait_until_async(lambda: leased() == 0, message="the connection is given back")
        work, clone = stage.start("--depth=1")  # needs the only connection, twice
        await asyncio.to_thread(ended_well, stage, bare, (work, clone))
        pushed = await asyncio.to_thread(commit, work, stage.env)
        await asyncio.to_thread(git, "push", "-q", cwd=work, env=stage.env)
        assert await asyncio.to_thread(rev_parse, bare, stage.env) == pushed
        for entry in entries(stage.packs):
            entry.unlink()  # who reads it reads on
        assert await slow.answer() == answer
        assert await slow.end() == 0
    lines = await asyncio.to_thread(audited, relay, 0, 3, service="git-upload-pack")
    assert [(line["result"], line["served_by"]) for line in lines] == [("ok", "cache")] * 3


async def test_who_reads_an_entry_does_not_wait_for_a_host_that_is_gone(make_stage: Callable[..., Stage]) -> None:
    """The git host agrees before the first byte, and then is not needed; who comes later needs it."""
    stage = await asyncio.to_thread(make_stage)
    await asyncio.to_thread(make_big_repo, stage.sshd.root / "team/app.git", BIG_MEGABYTES)
    async with Fetcher.at(stage.relay, "team/app", window=65_536) as first:
        await first.list()
        first.ask(first.refs[b"HEAD"])
        answer = await first.answer()
        assert await first.end() == 0
    async with Fetcher.at(stage.relay, "team/app", window=65_536) as reader:
        await reader.list()
        reader.ask(reader.refs[b"HEAD"])
        await wait_until_async(lambda: results(stage.relay).get("hit") == 1, message="the entry is on its way")
        await asyncio.to_thread(stage.sshd.stop)
        _, clone = stage.start()
        status, said = await asyncio.to_thread(ended, clone)
        assert status != 0 and b"the git host is unavailable" in said
        assert await reader.answer() == answer
        assert await reader.end() == 0


async def test_the_end_of_a_session_that_was_served_an_entry(make_stage: Callable[..., Stage]) -> None:
    """By a flush-pkt, by EOF, by closing after the last byte: well. By closing before: the client is gone."""
    stage = await asyncio.to_thread(make_stage)
    await asyncio.to_thread(make_big_repo, stage.sshd.root / "team/app.git", BIG_MEGABYTES)
    for number, way in enumerate(("flush", "eof", "close", "leave")):
        async with Fetcher.at(stage.relay, "team/app", window=65_536) as fetcher:
            await fetcher.list()
            fetcher.ask(fetcher.refs[b"HEAD"])
            if way != "leave":
                await fetcher.answer()
            if way == "flush":
                assert await fetcher.end() == 0
            elif way == "eof":
                fetcher.process.stdin.write_eof()
                await fetcher.process.wait_closed()
                assert fetcher.process.exit_status == 0
            else:
                await fetcher.process.stdout.readexactly(0 if way == "close" else 8)
                fetcher.process.close()
        [line] = await asyncio.to_thread(audited, stage.relay, number, 1, service="git-upload-pack")
        assert (line["reason"], line["served_by"]) == ("client_gone" if way == "leave" else "ok", "cache")


async def test_a_client_that_asks_for_more_gets_another_connection(make_stage: Callable[..., Stage]) -> None:
    """Several answers of one session, some of an entry and some of the git host, in any order; the last word is the host's."""
    stage = await asyncio.to_thread(make_stage)
    bare = await asyncio.to_thread(make_repo, stage.sshd.root / "team/app.git")
    older = await asyncio.to_thread(rev_parse, bare, stage.env, "main~1")
    async with Fetcher.at(stage.relay, "team/app") as fetcher:
        await fetcher.list()
        head = fetcher.refs[b"HEAD"]
        fetcher.ask(head)
        first = await fetcher.answer()
        before, fetcher.refs = fetcher.refs, {}
        await fetcher.list()
        assert fetcher.refs == before
        fetcher.ask(head)
        assert await fetcher.answer() == first
        fetcher.ask(older.encode())  # by its id: filled as well
        assert await fetcher.answer() != first
        await fetcher.list()
        assert await fetcher.end() == 0
    [line] = await asyncio.to_thread(audited, stage.relay, 0, 1, service="git-upload-pack")
    assert (line["result"], line["served_by"], line["replays"]) == ("ok", "cache", 0)
    assert results(stage.relay) == {"filled": 2, "hit": 1}


async def test_a_client_that_takes_nothing_is_stalled(make_stage: Callable[..., Stage]) -> None:
    stage = await asyncio.to_thread(make_stage, config={"limits": {"stall_seconds": 1, "penalty_seconds": 0}})
    await asyncio.to_thread(make_big_repo, stage.sshd.root / "team/app.git", BIG_MEGABYTES)
    async with Fetcher.at(stage.relay, "team/app", window=65_536) as fetcher:
        await fetcher.list()
        fetcher.ask(fetcher.refs[b"HEAD"])
        [line] = await asyncio.to_thread(audited, stage.relay, 0, 1, service="git-upload-pack")
        assert (line["result"], line["reason"]) == ("client", "stalled")


async def test_a_drain_and_an_operator_end_a_session_that_reads_an_entry(make_stage: Callable[..., Stage]) -> None:
    stage = await asyncio.to_thread(make_stage, config={"limits": {"drain_seconds": 0.2, "penalty_seconds": 0}})
    await asyncio.to_thread(make_big_repo, stage.sshd.root / "team/app.git", BIG_MEGABYTES)
    async with Fetcher.at(stage.relay, "team/app", window=65_536) as fetcher:
        await fetcher.list()
        fetcher.ask(fetcher.refs[b"HEAD"])
        await wait_until_async(lambda: "filled" in results(stage.relay), message="the entry is on its way")
        await asyncio.to_thread(stage.relay.signal, signal.SIGTERM)
        [line] = await asyncio.to_thread(audited, stage.relay, 0, 1, service="git-upload-pack")
        assert (line["reason"], line["exit_status"]) == ("drained", 255)
    assert await asyncio.to_thread(stage.relay.wait) == 1, "a session was cut"


# -- fills that are cut ----------------------------------------------------------------------------------------------------


def test_who_began_the_fill_is_killed_and_the_others_read_on(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(config={"workers": 2})
    bare = make_repo(stage.sshd.root / "team/app.git")
    _, first = stage.begin_fill()
    followers = stage.join(6)
    kill(first)
    stage.runs.let_go()
    ended_well(stage, bare, *followers)
    assert stage.runs.count == 1 and kept_whole(stage.packs) == 1
    gone = audited(stage.relay, 0, 1, result="client")
    assert [line["reason"] for line in gone] == ["client_gone"]


def test_nobody_reads_any_more(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage()
    make_repo(stage.sshd.root / "team/app.git")
    _, first = stage.begin_fill()
    kill(first)
    wait_until(lambda: not entries(stage.packs), message="the entry is gone")
    wait_until(lambda: stage.relay.metric("relay_upstream_connections", state="leased") == 0, message="the git host is left")
    stage.runs.let_go()
    assert kept_whole(stage.packs) == 0


@pytest.mark.parametrize("count", [1, 6])
def test_the_host_is_killed_before_pack_data_and_nobody_notices(make_stage: Callable[..., Stage], count: int) -> None:
    stage = make_stage(config={"workers": 2})
    bare = make_repo(stage.sshd.root / "team/app.git")
    clones = [stage.begin_fill(), *(stage.join(count - 1) if count > 1 else ())]
    stage.sshd.signal_sessions(signal.SIGSTOP)  # else who starts over is let in by a connection whose turn to be killed comes next
    assert stage.sshd.signal_sessions(signal.SIGKILL)
    wait_until(lambda: stage.runs.count > 1, message="the git host makes the pack anew")
    stage.runs.let_go()
    ended_well(stage, bare, *clones)
    assert stage.runs.count == 2 and kept_whole(stage.packs) == 1
    came = results(stage.relay)
    assert came["failed"] == count and came["filled"] == 2


def test_the_worker_that_fills_is_killed_and_who_reads_along_elsewhere_goes_on(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(config={"workers": 2})
    bare = make_repo(stage.sshd.root / "team/app.git")
    clones = [stage.begin_fill()]
    [entry] = entries(stage.packs)
    doomed = filler(entry)
    elsewhere: list[int] = []
    while not elsewhere:
        clones += stage.join(4)
        elsewhere = [line["worker"] for line in live(stage.relay) if line["worker"] != doomed]
    os.kill(doomed, signal.SIGKILL)
    wait_until(lambda: stage.runs.count > 1, message="the git host makes the pack anew")
    stage.runs.let_go()
    well = 0
    for work, clone in clones:
        status, _ = ended(clone)
        if status == 0:
            is_whole(work, bare, stage.env, "HEAD")
            well += 1
    assert well == len(elsewhere)
    assert stage.runs.count == 2 and kept_whole(stage.packs) == 1


def live(relay: RelayProcess) -> list[dict[str, Any]]:
    """The live sessions."""
    command = [sys.executable, "-m", "relay", "sessions", "--json", "-c", str(relay.config_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_fill_goes_on_in_a_worker_that_drains(make_stage: Callable[..., Stage]) -> None:
    """A reload: who comes to the new worker reads along what the old one fills."""
    stage = make_stage()
    bare = make_repo(stage.sshd.root / "team/app.git")
    _, first = stage.begin_fill()
    old = {process.pid for process in stage.relay.processes()[1:]}
    stage.relay.signal(signal.SIGHUP)
    wait_until(lambda: {process.pid for process in stage.relay.processes()[1:]} - old, message="a new worker runs")
    stage.relay.wait_for_log("reloaded")
    followers = stage.join(3)
    kill(first)
    wait_until(lambda: len(audited(stage.relay, 0, 1)) == 1, message="the first session has ended")
    stage.runs.let_go()
    ended_well(stage, bare, *followers)
    assert stage.runs.count == 1
    wait_until(lambda: not old & {process.pid for process in stage.relay.processes()}, message="the old worker has ended")


@pytest.mark.parametrize("why", ["disk", "max_bytes"])
def test_a_disk_that_is_full_while_an_entry_is_filled_fails_no_clone(make_stage: Callable[..., Stage], why: str) -> None:
    """A worker may write no file of more than 1 MiB, or the answer is larger than max_bytes."""
    stage = make_stage(**({"max_bytes": 1 << 20} if why == "max_bytes" else {}))
    bare = make_big_repo(stage.sshd.root / "team/app.git", BIG_MEGABYTES)
    if why == "disk":
        [worker] = stage.relay.processes()[1:]
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    clones = [stage.begin_fill(), *stage.join(2)]
    stage.runs.let_go()
    ended_well(stage, bare, *clones)
    assert stage.runs.count == 1
    for _ in range(2):
        ended_well(stage, bare, stage.start())
    assert results(stage.relay) == {"filled": 1, "joined": 2, "passed": 2}, "what could not be kept is not tried again"
    assert kept_whole(stage.packs) == 0
    stage.relay.wait_for_log(
        "not kept: it is larger than packs.max_bytes" if why == "max_bytes" else "it cannot be written: File too large"
    )


@pytest.mark.parametrize("way", ["a symlink", "a file", "for all", "no space"])
def test_a_folder_that_cannot_be_used_is_a_log_line_and_no_failed_clone(make_stage: Callable[..., Stage], way: str) -> None:
    stage = make_stage(**({"free_bytes": 1 << 40} if way == "no space" else {}))
    bare = make_repo(stage.sshd.root / "team/app.git")
    if way == "a symlink":
        stage.packs.rename(stage.folder / "elsewhere")
        stage.packs.symlink_to("elsewhere")
    elif way == "a file":
        shutil.rmtree(stage.packs)
        stage.packs.touch()
    elif way == "for all":
        stage.packs.chmod(0o777)
    for _ in range(3):
        ended_well(stage, bare, stage.start())
    assert stage.runs.count == 3 and results(stage.relay) == {"passed": 3}
    stage.relay.wait_for_log(f"packs: .*{re.escape(str(stage.packs))}")


def test_a_folder_that_is_removed_is_made_anew(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage()
    bare = make_repo(stage.sshd.root / "team/app.git")
    ended_well(stage, bare, stage.start())
    shutil.rmtree(stage.packs)
    ended_well(stage, bare, stage.start(), stage.start())
    assert stage.runs.count == 2 and kept_whole(stage.packs) == 1


def test_what_a_killed_relay_left_is_not_used(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage()
    bare = make_repo(stage.sshd.root / "team/app.git")
    _, clone = stage.begin_fill()
    for process in stage.relay.processes():
        process.send_signal(signal.SIGKILL)
    status, _ = ended(clone)
    assert status != 0 and entries(stage.packs)
    wait_until(lambda: not stage.relay.running, message="the relay is gone")
    stage.runs.let_go()
    stage.relay.start()
    wait_until(lambda: not entries(stage.packs), message="the start cleans up")
    ended_well(stage, bare, stage.start(), stage.start())
    assert kept_whole(stage.packs) == 1
