"""The real git-lfs through the relay, by pure SSH (git-lfs-transfer) and by HTTP (git-lfs-authenticate), against a host of our own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands.test_upstreams import ask
from tests.e2e.helpers import audited
from tests.support.gitrepo import git, make_repo, rev_parse
from tests.support.keys import Key, make_key
from tests.support.lfs_host import LfsHost
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

SIZES = (1, 100, 65_515, 65_516, 65_517, 131_072, 1_000_000, 5_000_000, *range(200, 208))  # bytes; more files than git-lfs sends at once
MODES = ["transfer", "authenticate"]

pytestmark = [
    pytest.mark.skipif(shutil.which("git-lfs") is None, reason="git-lfs is not installed (Debian's package git-lfs)"),
    pytest.mark.xdist_group("lfs"),
]


@pytest.fixture(scope="module")
def bob(tmp_path_factory: pytest.TempPathFactory) -> Key:
    """bob's key, who may only read."""
    return make_key(tmp_path_factory.mktemp("keys"), "bob")


@pytest.fixture(scope="module")
def relay(sshd: Sshd, bob: Key) -> Iterator[RelayProcess]:
    access = {"rule": [{"repositories": "**", "who": [who], "allow": allow} for who, allow in (("alice", "write"), ("bob", "read"))]}
    with RelayProcess(sshd, access=access) as process:
        process.add_key("bob", bob.line)
        yield process


@pytest.fixture(scope="module")
def host(sshd: Sshd) -> Iterator[LfsHost]:
    with LfsHost(sshd) as one:
        yield one


@pytest.fixture(params=MODES)
def mode(host: LfsHost, request: pytest.FixtureRequest) -> str:
    host.only(request.param)
    return str(request.param)


@pytest.fixture
def name(sshd: Sshd, request: pytest.FixtureRequest) -> str:
    """The name of a new repository for this test only."""
    one = f"lfs/{request.node.name}"
    make_repo(sshd.root / f"{one}.git")
    return one


def environment(relay: RelayProcess, home: Path, key: Key | None = None) -> dict[str, str]:
    env = relay.git_env(home, key)
    git("lfs", "install", "--skip-repo", env=env)
    return env


def filled(relay: RelayProcess, name: str, work: Path, env: dict[str, str]) -> dict[str, bytes]:
    """A clone with a commit of large files that is not pushed yet; their content by oid."""
    git("clone", "-q", relay.url(name), work, env=env)
    git("lfs", "track", "*.bin", cwd=work, env=env)
    contents = [os.urandom(size) for size in SIZES]
    for number, content in enumerate(contents):
        (work / f"{number}.bin").write_bytes(content)
    git("add", "-A", cwd=work, env=env)
    git("commit", "-q", "-m", "large files", cwd=work, env=env)
    return {hashlib.sha256(content).hexdigest(): content for content in contents}


def test_what_is_pushed_is_what_is_cloned(
    relay: RelayProcess, host: LfsHost, sshd: Sshd, name: str, mode: str, bob: Key, tmp_path: Path
) -> None:
    env, work, copy = environment(relay, tmp_path / "alice"), tmp_path / "work", tmp_path / "copy"
    files = filled(relay, name, work, env)
    mark = len(relay.audit_lines())
    git("push", "-q", "origin", "main", cwd=work, env=env)
    assert host.objects(name) == files
    git("clone", "-q", relay.url(name), copy, env=environment(relay, tmp_path / "bob", bob))
    assert {path.name: path.read_bytes() for path in copy.glob("*.bin")} == {path.name: path.read_bytes() for path in work.glob("*.bin")}

    def ended() -> list[dict[str, Any]]:
        return audited(relay, mark, 2, event="session", service=f"git-lfs-{mode}", repository=name)

    def carried(operation: str, direction: str) -> int:
        return sum(line[direction] for line in ended() if line["operation"] == operation)

    if mode == "transfer":  # several sessions at once, which end in any order
        wait_until(lambda: carried("upload", "bytes_in") > sum(SIZES) and carried("download", "bytes_out") > sum(SIZES))
    assert {(line["identity"], line["operation"]) for line in ended()} == {("alice", "upload"), ("bob", "download")}
    # git-lfs closes most connections without a quit command, also without a relay, and this host then exits with status 1
    assert {line["result"] for line in ended()} <= ({"ok", "exit"} if mode == "transfer" else {"ok"})
    asked = f"git-lfs-{mode} '{sshd.root}/{name}.git'"
    assert {run.identity for run in sshd.commands() if run.command.startswith(asked)} == {"alice", "bob"}


def test_who_may_read_may_not_upload(relay: RelayProcess, host: LfsHost, name: str, mode: str, bob: Key, tmp_path: Path) -> None:
    env, work = environment(relay, tmp_path / "bob", bob), tmp_path / "work"
    filled(relay, name, work, env)
    mark = len(relay.audit_lines())
    done = git("lfs", "push", "origin", "main", cwd=work, env=env, check=False)
    assert done.returncode != 0
    assert f"you may read {name}, not write it".encode() in done.stdout + done.stderr
    assert host.objects(name) == {}
    audited(relay, mark, event="command_rejected", service="git-lfs-authenticate")  # the command that git-lfs tries last
    rejected = audited(relay, mark, 2, event="command_rejected", identity="bob", reason="denied", repository=name)
    assert {line["service"] for line in rejected} == {"git-lfs-transfer", "git-lfs-authenticate"}


def test_a_frozen_upstream_takes_no_large_files_and_gives_those_it_has(
    relay: RelayProcess, host: LfsHost, name: str, mode: str, tmp_path: Path
) -> None:
    env, work = environment(relay, tmp_path / "home"), tmp_path / "work"
    files = filled(relay, name, work, env)
    git("push", "-q", "origin", "main", cwd=work, env=env)
    (work / "0.bin").write_bytes(os.urandom(1_000))
    git("commit", "-q", "-a", "-m", "another", cwd=work, env=env)
    mark = len(relay.audit_lines())
    assert ask(relay, "freeze", "main", "moving, back at 14:00").returncode == 0
    try:
        done = git("lfs", "push", "origin", "main", cwd=work, env=env, check=False)
        git("clone", "-q", relay.url(name), tmp_path / "copy", env=env)
    finally:
        assert ask(relay, "thaw", "main").returncode == 0
    assert done.returncode != 0
    assert b"relay: the git host takes no pushes now: moving, back at 14:00" in done.stdout + done.stderr
    assert host.objects(name) == files
    assert (tmp_path / "copy/1.bin").read_bytes() == (work / "1.bin").read_bytes()
    assert audited(relay, mark, event="command_rejected", reason="frozen", repository=name)
    git("lfs", "push", "origin", "main", cwd=work, env=env)
    assert len(host.objects(name)) == len(files) + 1


def test_locks(relay: RelayProcess, host: LfsHost, name: str, tmp_path: Path) -> None:
    """Locks need write access: a reader gets none."""
    host.only("transfer")
    env, work = environment(relay, tmp_path / "home"), tmp_path / "work"
    filled(relay, name, work, env)
    git("push", "-q", "origin", "main", cwd=work, env=env)
    git("lfs", "lock", "0.bin", cwd=work, env=env)
    (lock,) = json.loads(git("lfs", "locks", "--json", cwd=work, env=env).stdout)
    assert lock["path"] == "0.bin"
    git("lfs", "unlock", "0.bin", cwd=work, env=env)
    assert json.loads(git("lfs", "locks", "--json", cwd=work, env=env).stdout) == []
    assert rev_parse(work, env, "origin/main") == rev_parse(work, env)
