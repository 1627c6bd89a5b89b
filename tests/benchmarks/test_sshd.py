"""The git host: stub services and the real git, and sshd's settings by its version."""

from __future__ import annotations

import subprocess

import pytest

from benchmarks import sshd
from benchmarks.contenders import Profile
from benchmarks.processes import MeasureError
from tests.benchmarks.conftest import World


def ask(world: World, command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    argv = [*world.clients._ssh_command(world.direct, Profile.PINNED), f"{world.direct.user}@127.0.0.1", command]
    return subprocess.run(argv, input=stdin, capture_output=True, timeout=60, check=False)


def test_exit_and_sink_and_source_do_what_their_names_say(world: World) -> None:
    blob = world.space.blob(1000)
    assert ask(world, world.direct.command("git-upload-pack", "stub/exit/41")).returncode == 41
    assert ask(world, world.direct.command("git-upload-pack", "stub/down/1000")).stdout == blob.path.read_bytes()
    said = ask(world, world.direct.command("git-receive-pack", "stub/up"), blob.path.read_bytes()).stdout
    assert said.decode().splitlines() == ["ready", blob.cksum]


def test_other_commands_are_what_the_client_asked_for(world: World) -> None:
    done = ask(world, world.direct.command("git-upload-pack", "not/there"))
    assert done.returncode == 128
    assert b"does not appear to be a git repository" in done.stderr


def test_a_shell_finds_no_start_up_files_of_the_account(world: World) -> None:
    """bash under sshd reads ~/.bashrc before each command; the figures must not depend on what is in it."""
    assert ask(world, 'echo "$HOME"; ls -A "$HOME"').stdout.decode().splitlines() == [str(world.space.home)]


def test_penalties_are_turned_off_where_sshd_knows_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    written = (world.space.root / "git_host.conf").read_text()
    assert ("PerSourcePenalties no" in written) == (sshd.version() >= (9, 8))
    assert "MaxStartups 20000" in written


def test_a_port_that_is_taken_is_told_with_what_sshd_says(world: World) -> None:
    keys = world.fleet.keys
    with pytest.raises(MeasureError, match=r"does not listen|Address already in use"):
        sshd.git_host(world.space, "second", keys.host_upstream, [], port=1_000_000)


def test_a_machine_without_sshd_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(MeasureError, match="install openssh-server"):
        sshd.program()


def test_a_git_host_that_was_stopped_starts_again_on_its_port(world: World) -> None:
    port = world.fleet.upstream.port
    world.fleet.upstream.kill()
    world.fleet.upstream.start()
    assert world.fleet.upstream.port == port
    assert ask(world, world.direct.command("git-upload-pack", "stub/exit/41")).returncode == 41
