"""Contenders: the command for each, peers by name, and real relays of the suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import golang
from benchmarks.contenders import Contender, Peer, Profile, make_keys
from benchmarks.processes import MeasureError, tree
from benchmarks.workspace import Workspace
from tests.benchmarks.conftest import World


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("piper=127.0.0.1:2222", Peer("piper", "git", "127.0.0.1", 2222)),
        ("a.b-c=me@host.example:22", Peer("a.b-c", "me", "host.example", 22)),
        ("six=[::1]:22", Peer("six", "git", "::1", 22)),
    ],
)
def test_a_peer_is_named_with_its_address(text: str, peer: Peer) -> None:
    assert Peer.parse(text) == peer


@pytest.mark.parametrize("text", ["", "piper", "piper=host", "=host:22", "p=host:0", "p=host:70000", "p=a@b@c:22", "p q=host:22"])
def test_anything_else_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"NAME=\[USER@\]HOST:PORT"):
        Peer.parse(text)


def test_commands_are_quoted_as_git_does_and_urls_name_the_same_path() -> None:
    contender = Contender("x", "", "::1", {}, "me", "/srv/git/", Path(), None, (), forks=False)
    assert contender.command("git-upload-pack", "it's/a b") == "git-upload-pack '/srv/git/it'\"'\"'s/a b.git'"
    assert contender.url("team/app") == "ssh://me@[::1]/srv/git/team/app.git"
    assert contender._replace(host="h", prefix="").url("team/app") == "ssh://me@h/team/app.git"


def test_a_stock_client_is_told_nothing_but_the_others_are() -> None:
    assert Profile.STOCK.options == []
    assert Profile.PINNED.options == ["-o", "KexAlgorithms=curve25519-sha256"]
    assert Profile.GCM.options == [*Profile.PINNED.options, "-o", "Ciphers=aes128-gcm@openssh.com"]


def test_a_client_key_without_its_public_half_is_refused(space: Workspace) -> None:
    (space.root / "lonely").write_text("key")
    with pytest.raises(MeasureError, match=r"lonely\.pub: the public half"):
        make_keys(space, space.root / "lonely")


def test_the_clients_key_may_be_one_that_peers_know(space: Workspace) -> None:
    known = space.key("known")
    assert make_keys(space, known.private).client == known


def test_forced_carries_real_git_by_a_second_ssh(world: World) -> None:
    with world.fleet.forced() as forced:
        assert len({*forced.ports.values(), world.direct.ports[Profile.STOCK]}) == len(Profile) + 1
        assert world.clients.ls_remote(forced, Profile.PINNED, "small") > 0
        assert world.clients.up(forced, Profile.PINNED, 100_000).size == 100_000
        family = [tree(pid) for pid in forced.pids]
    assert all(family)
    assert not any(tree(pid) for pid in forced.pids)


def test_go_carries_streams_statuses_and_stderr(world: World) -> None:
    if golang.build("go_relay").path is None:
        pytest.skip(f"go is left out: {golang.build('go_relay').note}")
    with world.fleet.go() as go:
        assert go is not None
        assert world.clients.ls_remote(go, Profile.PINNED, "small") > 0
        assert world.clients.down(go, Profile.GCM, 3_000_000, verify=True).size == 3_000_000
        assert world.clients.up(go, Profile.GCM, 3_000_000).size == 3_000_000
        with pytest.raises(MeasureError, match="does not appear to be a git repository"):
            world.clients.ls_remote(go, Profile.PINNED, "not/there")
    assert not tree(go.pids[0])


def test_without_a_toolchain_go_is_missing_with_a_reason(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.fleet, "_go", golang.Built(None, "no Go toolchain was found"))
    with world.fleet.go() as go:
        assert go is None
    assert world.fleet.missing == {"go": "no Go toolchain was found"}


def test_a_peer_takes_any_host_key_the_first_time(world: World) -> None:
    direct = world.direct
    peer = world.fleet.peer(Peer("other", direct.user, "127.0.0.1", direct.ports[Profile.STOCK]), direct.key)
    assert world.clients.ls_remote(peer, Profile.STOCK, "small") > 0
    assert peer.pids == ()
