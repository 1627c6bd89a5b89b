"""Clients check the data they receive: a lost byte, a wrong status or a hang is a failure, and never a measurement."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import golang
from benchmarks.clients import Clients, asyncssh_load
from benchmarks.contenders import Contender, Profile
from benchmarks.processes import MeasureError, Runner
from tests.benchmarks.conftest import World


def test_streams_tell_when_they_began_and_ended(world: World) -> None:
    for transfer in (world.clients.down(world.direct, Profile.PINNED, 500_000), world.clients.up(world.direct, Profile.PINNED, 500_000)):
        assert transfer.size == 500_000
        assert transfer.first <= transfer.ended


def test_an_ls_remote_tells_when_git_had_its_first_packet(world: World) -> None:
    listed = world.clients.ls_remote_heard(world.direct, Profile.PINNED, "small")
    assert listed.began < listed.heard < listed.ended
    assert list(world.space.clones.iterdir()) == []


def test_an_ls_remote_whose_git_tells_nothing_is_a_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_self: Clients, _contender: Contender, _repository: str, env: dict[str, str]) -> float:
        Path(env["GIT_TRACE2_EVENT"]).write_text('{"event":"start"}\n')
        return 1.0

    monkeypatch.setattr(Clients, "_ls_remote", silent)
    with pytest.raises(MeasureError, match="trace2 does not tell"):
        world.clients.ls_remote_heard(world.direct, Profile.PINNED, "small")
    assert list(world.space.clones.iterdir()) == []


@pytest.mark.parametrize("verify", [True, False])
def test_a_stream_that_lost_its_end_is_a_failure(world: World, verify: bool) -> None:
    size = 200_000 + verify
    blob = world.space.blob(size)
    blob.path.write_bytes(blob.path.read_bytes()[:-1])
    with pytest.raises(MeasureError, match=f"{size - 1} of {size} bytes came down"):
        world.clients.down(world.direct, Profile.PINNED, size, verify=verify)


def test_a_stream_with_a_wrong_byte_is_a_failure(world: World) -> None:
    blob = world.space.blob(100_001)
    content = bytearray(blob.path.read_bytes())
    content[50_000] ^= 1
    blob.path.write_bytes(content)
    with pytest.raises(MeasureError, match="checksum"):
        world.clients.down(world.direct, Profile.PINNED, 100_001, verify=True)
    with pytest.raises(MeasureError, match="the sink said"):
        world.clients.up(world.direct, Profile.PINNED, 100_001)


def test_a_stream_that_never_begins_is_a_failure(world: World) -> None:
    world.space.blob(7_000).path.unlink()
    with pytest.raises(MeasureError, match="0 of 7000 bytes came down, status 1"):
        world.clients.down(world.direct, Profile.PINNED, 7_000)


def test_clone_and_push_leave_nothing(world: World) -> None:
    before = {path.name for path in world.space.git.iterdir()}
    assert world.clients.clone(world.direct, Profile.PINNED, "big") > 0
    assert world.clients.push(world.direct, Profile.PINNED, "big") > 0
    assert {path.name for path in world.space.git.iterdir()} == before
    assert list(world.space.clones.iterdir()) == []


def test_clones_run_during_the_block_and_are_gone_after_it(world: World) -> None:
    with world.clients.cloning(world.direct, Profile.PINNED, "big", 2):
        assert world.clients.ls_remote(world.direct, Profile.PINNED, "small") > 0
    assert list(world.space.clones.iterdir()) == []


def test_a_clone_that_fails_fails_the_block(world: World) -> None:
    shutil.copytree(world.space.git / "big.git", world.space.git / "broken.git", symlinks=True)
    world.space._sizes["broken"] = 1
    for pack in (world.space.git / "broken.git" / "objects" / "pack").glob("*.pack"):
        pack.unlink()
    with pytest.raises(MeasureError), world.clients.cloning(world.direct, Profile.PINNED, "broken", 1):
        pass
    shutil.rmtree(world.space.git / "broken.git")


def test_the_closed_loop_counts_whole_visits(world: World, loader: Clients) -> None:
    load = loader.sessions(world.direct, 2, count=3)
    assert len(load.latencies) == 3
    assert all(0 < took <= load.elapsed for took in load.latencies)
    assert load.cpu_seconds > 0


def test_a_visit_that_ends_wrongly_is_a_failure(world: World, loader: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = world.direct._replace(user="nobody-of-this-name")
    with pytest.raises(MeasureError, match="2 sessions failed, 0 did not"):
        loader.sessions(wrong, 1, count=2)
    monkeypatch.setattr(type(world.direct), "command", lambda *_: "exit 3")
    with pytest.raises(MeasureError, match="1 sessions failed"):
        loader.sessions(world.direct, 1, count=1)


def test_another_host_key_than_the_known_is_a_failure(world: World, loader: Clients) -> None:
    wrong = world.direct._replace(host_key=world.fleet.keys.host_front.private.with_suffix(".pub"))
    with pytest.raises(MeasureError, match="1 sessions failed"):
        loader.sessions(wrong, 1, count=1)


@pytest.mark.parametrize("depth", [0, 1])
def test_fetches_are_counted_from_the_first_byte_of_their_packs(world: World, loader: Clients, depth: int) -> None:
    load = loader.fetches(world.direct, "big", 2, 3, depth=depth)
    assert len(load.first) == len(load.latencies) == 3
    assert all(0 < first <= took <= load.elapsed for first, took in zip(load.first, load.latencies, strict=True))
    assert load.bytes > 3 * world.space.size("big")


def test_a_step_makes_each_fetch_ask_for_something_else(world: World, loader: Clients) -> None:
    assert len(loader.fetches(world.direct, "small", 1, 2, depth=1, step=1).first) == 2
    with pytest.raises(MeasureError, match="2 of 2 fetches failed"):
        loader.fetches(world.direct, "small", 1, 2, depth=1 << 40)  # more than a number of git's


def test_a_fetch_that_ends_wrongly_is_a_failure(world: World, loader: Clients) -> None:
    shutil.copytree(world.space.git / "big.git", world.space.git / "cut.git", symlinks=True)
    world.space._sizes["cut"] = 1
    for pack in (world.space.git / "cut.git" / "objects" / "pack").glob("*.pack"):
        pack.chmod(0o600)
        with pack.open("r+b") as file:
            file.truncate(100_000)
    with pytest.raises(MeasureError, match="1 of 1 fetches failed"):
        loader.fetches(world.direct, "cut", 1, 1)
    shutil.rmtree(world.space.git / "cut.git")
    with pytest.raises(MeasureError, match="1 of 1 fetches failed"):
        loader.fetches(world.direct, "cut", 1, 1)


def test_idle_connections_are_held_and_must_answer_at_the_end(world: World, loader: Clients) -> None:
    with loader.holding(world.direct, 3, parallel=2):
        pass


def test_a_login_that_fails_is_a_failure_of_the_holding(world: World, loader: Clients) -> None:
    with pytest.raises(MeasureError, match="2 logins failed"), loader.holding(world.direct._replace(user="nobody-of-this-name"), 2):
        pass


@pytest.fixture(params=["go_load", "load_asyncssh"])
def loader(world: World, request: pytest.FixtureRequest) -> Clients:
    """Clients with either load generator."""
    clients = Clients(world.space, Runner(world.space.env))
    if request.param == "load_asyncssh":
        clients._load = asyncssh_load()
    elif (built := golang.build("go_load")).path is None:
        pytest.skip(f"go_load is left out: {built.note}")
    return clients


def test_without_go_the_load_comes_from_asyncssh_and_that_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golang, "build", lambda _: golang.Built(None, "no Go toolchain was found"))
    clients = Clients(world.space, Runner(world.space.env))
    assert clients.load_note == "asyncssh, as go_load is left out: no Go toolchain was found"
    assert len(clients.sessions(world.direct, 1, count=1).latencies) == 1
