"""Git hosts that die under fetches by the real git: before pack data the client notices nothing, after it the exit status is 255."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psutil
import pytest

from tests.e2e.helpers import audited
from tests.e2e.replay_rounds import Stage
from tests.support.gitrepo import fsck, git, make_big_repo, make_repo, rev_list, rev_parse
from tests.support.keys import make_key
from tests.support.mortal_sshd import Death, MortalSshd
from tests.support.processes import alive
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

MOVE = ("update-ref", "refs/heads/main", "main~1")
EVERY = 11  # of the systematic rounds; `python -m tests.e2e.replay_rounds` plays all


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_host_that_dies_at_any_packet_before_pack_data_is_not_noticed(hosts: int, tmp_path: Path) -> None:
    with Stage(hosts, tmp_path) as stage:
        for one in islice(stage.systematic(), 3 * hosts, None, EVERY):
            stage.play(one)
        tally = stage.tally
        assert not tally.failures
        assert tally.rounds > 15 and tally.died == tally.rounds - 2, "two rounds count the packets"
        assert tally.replays == {0: 2, 1: tally.died}
        assert stage.relay.metric("relay_replays_total", result="served") == stage.relay.metric("relay_replays_total") == tally.died
        assert stage.relay.log_text().count("the client has noticed nothing") == tally.died


# -- while objects are counted -----------------------------------------------------------------------------------------------


class Counting:
    """An sshd whose pack-objects waits, after it has told some progress, as long as `hold` exists."""

    def __init__(self, sshd: Sshd, folder: Path) -> None:
        self.sshd = sshd
        self._begun, self._hold, hook = folder / "begun", folder / "hold", folder / "hook"
        folder.mkdir()
        self._begun.touch()
        self._hold.touch()
        words = f"echo >>{self._begun}\necho 'Counting objects: 1' >&2\nwhile [ -e {self._hold} ]; do sleep 0.02; done"
        hook.write_text(f'#!/bin/sh\n{words}\nexec "$@"\n')
        hook.chmod(0o755)
        with (sshd.folder / "home" / ".gitconfig").open("a") as file:  # git reads this setting from no repository
            file.write(f"[uploadpack]\n\tpackObjectsHook = {hook}\n")

    @property
    def begun(self) -> int:
        """How many commands have come to the counting."""
        return len(self._begun.read_text())

    def let_go(self) -> None:
        self._hold.unlink()


@pytest.fixture
def counting(make_sshd: Callable[..., Sshd], tmp_path: Path) -> Counting:
    sshd = make_sshd()
    make_repo(sshd.root / "team/app.git")
    return Counting(sshd, tmp_path / "counting")


def addresses(*hosts: Sshd, **settings: Any) -> dict[str, Any]:
    main = {"addresses": [f"{one.address}:{one.port}" for one in hosts], "host_keys": [one.host_key_line for one in hosts]}
    return {"upstreams": {"main": {**main, **settings}}}


async def cloning(relay: RelayProcess, counting: Counting, folder: Path, act: Callable[[], Any]) -> CompletedProcess[bytes]:
    """A clone, during which `act` happens as soon as its git host counts objects."""
    env = relay.git_env(folder / "home")
    clone = asyncio.create_task(asyncio.to_thread(git, "clone", "--progress", relay.url("team/app"), folder / "work", env=env, check=False))
    await wait_until_async(lambda: counting.begun or clone.done(), message="the git host counts objects")
    await asyncio.to_thread(act)
    return await clone


def whole(relay: RelayProcess, counting: Counting, folder: Path) -> dict[str, Any]:
    """The clone has everything; returns the one audit line."""
    env = relay.git_env(folder / "home")
    fsck(folder / "work", env)
    assert rev_list(folder / "work", env) == rev_list(counting.sshd.root / "team/app.git", env)
    [line] = audited(relay, 0, service="git-upload-pack")
    assert (line["result"], line["exit_status"], line["kind"]) == ("ok", 0, "clone")
    return line


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
async def test_a_session_of_sshd_is_killed_while_objects_are_counted(counting: Counting, tmp_path: Path, number: signal.Signals) -> None:
    sshd = counting.sshd

    def kill() -> None:
        assert sshd.signal_sessions(number)
        wait_until(lambda: counting.begun == 2, message="another connection counts")
        counting.let_go()

    with await asyncio.to_thread(RelayProcess, sshd) as relay:
        done = await cloning(relay, counting, tmp_path, kill)
        assert done.returncode == 0 and b"Counting objects" in done.stderr, done.stderr
        assert b"relay:" not in done.stderr
        line = await asyncio.to_thread(whole, relay, counting, tmp_path)
        assert line["replays"] == 1
        assert relay.metric("relay_replays_total", upstream="main", result="served") == 1


async def test_the_connections_of_a_host_that_restarts_are_lost_one_after_another(counting: Counting, tmp_path: Path) -> None:
    """The warm connections are older than the loss, and die a moment later: a session that goes on with one of them would be lost."""
    sshd = counting.sshd

    def restart() -> None:
        wait_until(lambda: relay.metric("relay_upstream_connections", state="idle") >= 3, message="there are warm connections")
        old = sshd.sessions()
        counts = [process for process in old if any(not child.name().startswith("sshd") for child in process.children(recursive=True))]
        assert len(old) > len(counts) > 0
        for process in counts:
            process.kill()
        wait_until(lambda: counting.begun == 2, message="another connection counts")
        for process in old:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until(lambda: not any(map(alive, old)), message="all connections from before are gone")
        counting.let_go()

    with await asyncio.to_thread(RelayProcess, sshd, config={"workers": 1}) as relay:
        done = await cloning(relay, counting, tmp_path, restart)
        assert done.returncode == 0, done.stderr
        assert (await asyncio.to_thread(whole, relay, counting, tmp_path))["replays"] == 1


async def test_git_is_killed_by_a_signal_while_objects_are_counted(counting: Counting, tmp_path: Path) -> None:
    """As when the machine shuts down: sshd is still there to tell how git ended."""
    sshd = counting.sshd

    def kill() -> None:
        killed = 0
        for process in sshd._descendants():
            with suppress(psutil.NoSuchProcess):  # the hook's sleep
                if any("upload-pack" in word for word in process.cmdline()):
                    process.kill()
                    killed += 1
        assert killed
        wait_until(lambda: counting.begun == 2, message="another connection counts")
        counting.let_go()

    with await asyncio.to_thread(RelayProcess, sshd) as relay:
        done = await cloning(relay, counting, tmp_path, kill)
        assert done.returncode == 0, done.stderr
        assert (await asyncio.to_thread(whole, relay, counting, tmp_path))["replays"] == 1
        assert "the command was ended by signal KILL" in relay.log_text()


async def test_a_lone_host_goes_away_while_objects_are_counted_and_comes_back(counting: Counting, tmp_path: Path) -> None:
    sshd = counting.sshd

    def restart() -> None:
        sshd.stop()
        refused = relay.metric("relay_upstream_dials_total", result="dial")
        wait_until(lambda: relay.metric("relay_upstream_dials_total", result="dial") > refused, message="a dial is refused")
        counting.let_go()
        sshd.start()

    with await asyncio.to_thread(RelayProcess, sshd, config=addresses(sshd, idle_connections=0, wait_seconds=600)) as relay:
        done = await cloning(relay, counting, tmp_path, restart)
        assert done.returncode == 0, done.stderr
        assert (await asyncio.to_thread(whole, relay, counting, tmp_path))["replays"] == 1


async def test_a_lone_host_that_does_not_come_back_is_told(counting: Counting, tmp_path: Path) -> None:
    sshd = counting.sshd
    with await asyncio.to_thread(RelayProcess, sshd, config=addresses(sshd, wait_seconds=0.3)) as relay:
        done = await cloning(relay, counting, tmp_path, sshd.stop)
        assert done.returncode == 128 and b"relay: the connection to the git host was lost, try again" in done.stderr
        [line] = await asyncio.to_thread(audited, relay, 0, service="git-upload-pack")
        assert (line["result"], line["reason"], line["exit_status"], line["replays"]) == ("upstream", "lost", 255, 1)
        assert "no connection to go on with" in line["detail"]
        assert relay.metric("relay_replays_total", upstream="main", result="unavailable") == 1


async def test_the_next_address_goes_on_while_objects_are_counted(
    counting: Counting, make_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    first = counting.sshd
    second = await asyncio.to_thread(lambda: make_sshd(authorized=[first.key.line]))
    second.root.rmdir()
    second.root.symlink_to(first.root)
    with await asyncio.to_thread(RelayProcess, first, config=addresses(first, second)) as relay:
        done = await cloning(relay, counting, tmp_path, first.stop)
        assert done.returncode == 0, done.stderr
        line = await asyncio.to_thread(whole, relay, counting, tmp_path)
        assert (line["host"], line["replays"]) == (f"{second.address}:{second.port}", 1)
        assert len(second.commands()) == 1


async def test_a_relay_that_drains_lets_a_session_go_on_elsewhere(counting: Counting, tmp_path: Path) -> None:
    sshd = counting.sshd

    def drain() -> None:
        relay.signal(signal.SIGTERM)
        relay.wait_for_log("draining for")
        assert sshd.signal_sessions(signal.SIGKILL)
        counting.let_go()

    with await asyncio.to_thread(RelayProcess, sshd) as relay:
        done = await cloning(relay, counting, tmp_path, drain)
        assert done.returncode == 0, done.stderr
        assert (await asyncio.to_thread(whole, relay, counting, tmp_path))["replays"] == 1
        assert await asyncio.to_thread(relay.wait) == 0


def test_a_session_goes_on_as_its_identity(sshd_installed: None, tmp_path: Path) -> None:
    ca = make_key(tmp_path, "relay_ca")
    tmp_path.chmod(0o755)
    (tmp_path / "principals").write_text("alice\n")
    config = [f"TrustedUserCAKeys {ca.public}", f"AuthorizedPrincipalsFile {tmp_path}/principals", "AuthorizedKeysFile none"]
    with MortalSshd(config=config) as sshd:
        make_repo(sshd.root / "team/app.git")
        with RelayProcess(sshd, config={"upstreams": {"main": {"user_certificate": {"ca_key": str(ca.private)}}}}) as relay:
            sshd.plan(Death("sshd", 9))
            assert clone(relay, tmp_path).returncode == 0
            [line] = audited(relay, 0, service="git-upload-pack")
            assert (line["result"], line["replays"], sshd.died) == ("ok", 1, 1)
        assert set(re.findall(r"ED25519-CERT \S+ ID (\S+)", sshd.log_text())) == {"alice"}


def test_a_host_that_ends_its_output_before_pack_data_and_never_exits_is_not_noticed(mortal: MortalSshd, tmp_path: Path) -> None:
    make_repo(mortal.root / "team/app.git")
    with RelayProcess(mortal, config={"limits": {"stall_seconds": 1}}) as relay:
        assert clone(relay, tmp_path / "first").returncode == 0
        _, before_pack = mortal.packets
        mortal.plan(Death("hang", before_pack))
        done = clone(relay, tmp_path / "second")
        assert mortal.died == 1 and done.returncode == 0, done.stderr
        fsck(tmp_path / "second/work", relay.git_env(tmp_path / "home"))
        [line] = audited(relay, 1, service="git-upload-pack")
        assert (line["result"], line["exit_status"], line["replays"]) == ("ok", 0, 1)
        assert "neither exited nor took input" in relay.log_text()


# -- what is not replayed ------------------------------------------------------------------------------------------------------


@pytest.fixture
def mortal(sshd_installed: None) -> Iterator[MortalSshd]:
    with MortalSshd() as sshd:
        sshd.plan()
        yield sshd


def clone(relay: RelayProcess, folder: Path) -> CompletedProcess[bytes]:
    return git("clone", "-q", relay.url("team/app"), folder / "work", env=relay.git_env(folder / "home"), check=False)


def cut(relay: RelayProcess, mortal: MortalSshd, death: Death, run: Callable[[], Any], act: Callable[[], Any] = lambda: None) -> Any:
    """What `run` returns, whose git host dies after the client has all that was written before; `act` happens between."""
    before = relay.metric("relay_bytes_total", direction="out")
    mortal.plan(death)
    mortal.hold()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(run)
        wait_until(lambda: mortal.written or done.done(), message="git is about to die")
        wait_until(
            lambda: relay.metric("relay_bytes_total", direction="out") - before >= mortal.written, message="the client has all of it"
        )
        act()
        mortal.let_go()
        return done.result()


@pytest.mark.parametrize("kind", ["sshd", "KILL"])
def test_after_pack_data_the_session_ends(mortal: MortalSshd, tmp_path: Path, kind: Any) -> None:
    make_big_repo(mortal.root / "team/app.git", 4)
    with RelayProcess(mortal) as relay:
        assert clone(relay, tmp_path / "first").returncode == 0
        _, before_pack = mortal.packets
        done = cut(relay, mortal, Death(kind, before_pack + 1), lambda: clone(relay, tmp_path / "second"))
        assert mortal.died == 1 and done.returncode == 128
        [line] = audited(relay, 1, service="git-upload-pack")
        assert line["replays"] == 0 and line["bytes_out"] >= mortal.written
        if kind == "sshd":
            assert (line["result"], line["reason"], line["exit_status"]) == ("upstream", "lost", 255)
            assert b"relay: the connection to the git host was lost" in done.stderr
        else:
            assert (line["result"], line["exit_signal"]) == ("signal", "KILL")
        assert not relay.metric("relay_replays_total")


@pytest.mark.parametrize(
    ("where", "moves", "told"),
    [
        ("listing", [MOVE], "differed"),
        ("counting", [MOVE, ("gc", "-q", "--prune=now")], "differed"),
        ("counting", [("update-ref", "refs/heads/later", "main~1")], "served"),
    ],
    ids=["a ref moves", "the wanted commit is gone", "another ref comes"],
)
def test_refs_that_move_in_between(mortal: MortalSshd, tmp_path: Path, where: str, moves: list[tuple[str, ...]], told: str) -> None:
    bare = make_repo(mortal.root / "team/app.git")
    with RelayProcess(mortal) as relay:
        assert clone(relay, tmp_path / "first").returncode == 0
        env = relay.git_env(tmp_path / "home")
        tip = rev_parse(bare, env, "main")
        listed, before_pack = mortal.packets
        death = Death("sshd", listed - 1 if where == "listing" else before_pack)
        again, move = partial(clone, relay, tmp_path / "second"), lambda: [git(*one, cwd=bare, env=env) for one in moves]
        done = cut(relay, mortal, death, again, move)
        assert mortal.died == 1
        [line] = audited(relay, 1, service="git-upload-pack")
        assert line["replays"] == 1
        assert relay.metric("relay_replays_total", result=told) == relay.metric("relay_replays_total") == 1
        if told == "served":
            assert done.returncode == 0 and rev_parse(tmp_path / "second/work", env) == tip
            fsck(tmp_path / "second/work", env)
        else:
            assert done.returncode == 128 and b"relay: the connection to the git host was lost" in done.stderr
            assert (line["result"], line["reason"], line["exit_status"]) == ("upstream", "lost", 255)
            assert "does not say what the lost one said" in line["detail"]


def test_a_push_that_was_begun_is_not_replayed(mortal: MortalSshd, tmp_path: Path) -> None:
    make_repo(mortal.root / "team/app.git")
    with RelayProcess(mortal) as relay:
        assert clone(relay, tmp_path).returncode == 0
        env = relay.git_env(tmp_path / "home")
        git("commit", "-q", "--allow-empty", "-m", "more", cwd=tmp_path / "work", env=env)
        push = partial(git, "push", "-q", "origin", "main", cwd=tmp_path / "work", env=env, check=False)
        done = cut(relay, mortal, Death("sshd", 1), push)  # after its first ref
        assert mortal.died == 1 and done.returncode
        [line] = audited(relay, 0, service="git-receive-pack")
        assert (line["reason"], line["exit_status"], line["replays"]) == ("lost", 255, 0)
        mortal.plan(Death("sshd", 0))  # before its first word
        assert push().returncode == 0
        line = audited(relay, 0, 2, service="git-receive-pack")[1]
        assert (line["result"], line["exit_status"], line["replays"]) == ("ok", 0, 1)


def test_replays_may_be_turned_off(mortal: MortalSshd, tmp_path: Path) -> None:
    make_repo(mortal.root / "team/app.git")
    with RelayProcess(mortal, config=addresses(mortal, replay_budget=0)) as relay:
        mortal.plan(Death("sshd", 9))
        assert clone(relay, tmp_path).returncode == 128
        [line] = audited(relay, 0, service="git-upload-pack")
        assert (line["reason"], line["exit_status"], line["replays"]) == ("lost", 255, 0)
        assert relay.metric("relay_replays_total", result="budget") == 1
        assert "replay_budget = 0 is used up" in relay.log_text()
