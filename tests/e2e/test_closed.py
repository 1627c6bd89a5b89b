"""Pushes that are refused with a text, by the real git: a frozen upstream, a read-only route, an authority that gives a reason."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from relay.errors import Frozen, ReadOnly
from tests.commands.test_upstreams import ask
from tests.e2e.helpers import alice, audited
from tests.e2e.test_ref_rules import LIST, advertised
from tests.support.authority import Authority
from tests.support.gitrepo import commit, fsck, git, make_repo, refs, rev_parse
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

TEXT = "moving to a new disk, back at 14:00; Umzug läuft"


@pytest.fixture(scope="module")
def relay(sshd: Sshd) -> Iterator[RelayProcess]:
    """`attic/**` is read-only, all other repositories are not; `guarded/**` has a rule for refs."""
    path = f"{sshd.root}/{{repository}}.git"
    routes = [
        {"repositories": "attic/**", "upstream": "main", "path": path, "read_only": TEXT},
        {"repositories": "**", "upstream": "main", "path": path},
    ]
    rules: list[dict[str, Any]] = [
        {"repositories": "*/**", "who": ["alice"], "allow": "write"},
        {"repositories": "guarded/**", "who": ["alice"], "deny": "write", "refs": ["refs/heads/main"]},
        {"repositories": "secret", "who": ["nobody"], "allow": "write"},
    ]
    with RelayProcess(sshd, config={"workers": 2}, routes={"route": routes}, access={"rule": rules}) as process:
        yield process


@pytest.fixture(params=[0, 2])
def env(relay: RelayProcess, tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    return relay.git_env(tmp_path / "home", protocol=request.param)


@pytest.fixture
def own(request: pytest.FixtureRequest) -> str:
    """The name of a repository for this test only."""
    return str(request.node.name).translate({ord("["): "-", ord("]"): None})


@contextmanager
def frozen(relay: RelayProcess) -> Iterator[None]:
    assert ask(relay, "freeze", "main", TEXT).returncode == 0
    try:
        yield
    finally:
        assert ask(relay, "thaw", "main").returncode == 0


def cloned(relay: RelayProcess, sshd: Sshd, name: str, work: Path, env: dict[str, str]) -> Path:
    """A repository of this name and a clone with one commit more; returns the bare one."""
    bare = make_repo(sshd.root / f"{name}.git")
    git("clone", "-q", relay.url(name), work, env=env)
    commit(work, env)
    return bare


def push(work: Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return git("push", "origin", *arguments, cwd=work, env=env, check=False)


def is_refused(done: subprocess.CompletedProcess[bytes], *refs: str) -> bool:
    """Whether git exits with 1; asserts that it prints the text for each ref, and no error of the connection."""
    for ref in refs:
        assert f"! [remote rejected] HEAD -> {ref} ({TEXT})".encode() in done.stderr, done.stderr.decode()
    for other in (b"disconnect", b"hung up", b"fatal", b"died", b"Broken pipe"):
        assert other not in done.stderr
    return done.returncode == 1


@pytest.mark.parametrize("folder", ["plain", "guarded"])
@pytest.mark.parametrize("flags", [(), ("--atomic",), ("--no-progress",), ("--quiet",)])
def test_who_pushes_to_a_frozen_upstream_reads_the_text_and_who_fetches_is_served(
    relay: RelayProcess, sshd: Sshd, tmp_path: Path, env: dict[str, str], folder: str, flags: tuple[str, ...], own: str
) -> None:
    name = f"{folder}/{own}"
    bare = cloned(relay, sshd, name, tmp_path / "work", env)
    before, since = refs(bare, env), len(relay.audit_lines())
    rejected = relay.metric("relay_commands_rejected_total", reason="frozen")
    with frozen(relay):
        assert is_refused(push(tmp_path / "work", env, *flags, "HEAD:topic", "HEAD:main"), "topic", "main")
        assert refs(bare, env) == before
        git("fetch", "-q", "origin", cwd=tmp_path / "work", env=env)
        git("clone", "-q", relay.url(name), tmp_path / "again", env=env)
        fsck(tmp_path / "again", env)
        git("push", "-q", "origin", "origin/main:main", cwd=tmp_path / "work", env=env)  # nothing to push
    [line] = audited(relay, since, event="command_rejected")
    assert (line["result"], line["reason"], line["detail"], line["exit_status"]) == ("policy", "frozen", "upstream main is frozen", 0)
    assert {one["ref"] for one in line["refs"]} == {"refs/heads/topic", "refs/heads/main"}
    wait_until(lambda: relay.metric("relay_commands_rejected_total", reason="frozen") == rejected + 1)
    assert push(tmp_path / "work", env, "HEAD:topic").returncode == 0, "once it is thawed"
    assert rev_parse(bare, env, "topic") == rev_parse(tmp_path / "work", env)


def test_a_large_push_is_refused_whole(relay: RelayProcess, sshd: Sshd, tmp_path: Path, env: dict[str, str], own: str) -> None:
    """git sends its pack before it reads the report."""
    bare = cloned(relay, sshd, f"plain/{own}", tmp_path / "work", env)
    before = refs(bare, env)
    commit(tmp_path / "work", env, "big", bytes(20_000_000))
    with frozen(relay):
        assert is_refused(push(tmp_path / "work", env, "HEAD:main"), "main")
    assert refs(bare, env) == before


def test_a_push_of_deletions_is_refused(relay: RelayProcess, sshd: Sshd, tmp_path: Path, env: dict[str, str], own: str) -> None:
    bare = cloned(relay, sshd, f"plain/{own}", tmp_path / "work", env)
    with frozen(relay):
        done = push(tmp_path / "work", env, ":main")
        assert f"! [remote rejected] main ({TEXT})".encode() in done.stderr and done.returncode == 1
    assert "refs/heads/main" in refs(bare, env)


async def test_a_client_without_report_status_reads_the_text_on_stderr(relay: RelayProcess, sshd: Sshd, git_env: dict[str, str]) -> None:
    bare = make_repo(sshd.root / "plain/unreported.git")
    before, since = refs(bare, git_env), len(relay.audit_lines())
    with frozen(relay):
        async with alice(relay) as connection:
            heard = await run(connection, "git-receive-pack 'plain/unreported'", LIST.replace(b"report-status", b"report-nothin"))
    assert (heard.stderr.decode(), heard.exit_status) == (f"{Frozen.message}: {TEXT}\n", 1)
    assert advertised(heard.stdout)[1] == b""
    [line] = audited(relay, since, event="command_rejected")
    assert (line["reason"], line["exit_status"]) == ("frozen", 1)
    assert refs(bare, git_env) == before


@pytest.mark.parametrize("service", ["git-lfs-authenticate", "git-lfs-transfer"])
def test_lfs_uploads_are_refused_and_downloads_are_not(relay: RelayProcess, sshd: Sshd, service: str) -> None:
    mark = len(sshd.commands())
    with frozen(relay):
        up, down = (relay.ssh().run(f"{service} 'plain/lfs' {operation}") for operation in ("upload", "download"))
    assert (up.returncode, up.stdout, up.stderr.decode()) == (1, b"", f"{Frozen.message}: {TEXT}\n")
    assert TEXT.encode() not in down.stderr
    assert [one.command.split()[-1] for one in sshd.commands()[mark:] if one.command.startswith(service)] == ["download"]


def test_a_push_to_an_upstream_that_is_frozen_and_paused_does_not_wait(relay: RelayProcess, sshd: Sshd, tmp_path: Path) -> None:
    env = relay.git_env(tmp_path / "home")
    cloned(relay, sshd, "plain/both", tmp_path / "work", env)
    with frozen(relay):
        assert ask(relay, "pause", "main").returncode == 0
        try:
            done = push(tmp_path / "work", env, "HEAD:main")
        finally:
            assert ask(relay, "resume", "main").returncode == 0
    assert f"{Frozen.message}: {TEXT}\n".encode() in done.stderr and done.returncode == 128, done.stderr


def test_who_may_not_push_learns_nothing_of_a_freeze(relay: RelayProcess) -> None:
    with frozen(relay):
        for name in ("secret", "nowhere"):
            done = relay.ssh().run(f"git-receive-pack '{name}'")
            assert (done.returncode, done.stderr) == (128, b"relay: repository not found, or you may not do this\n")


def test_a_read_only_route(relay: RelayProcess, sshd: Sshd, tmp_path: Path, env: dict[str, str], own: str) -> None:
    bare = cloned(relay, sshd, f"attic/{own}", tmp_path / "work", env)
    before, since = refs(bare, env), len(relay.audit_lines())
    assert is_refused(push(tmp_path / "work", env, "HEAD:topic", "HEAD:main"), "topic", "main")
    assert refs(bare, env) == before
    git("fetch", "-q", "origin", cwd=tmp_path / "work", env=env)
    [line] = audited(relay, since, event="command_rejected")
    assert (line["reason"], line["detail"]) == ("read_only", f"the route of attic/{own} is read-only")
    wait_until(lambda: relay.metric("relay_commands_rejected_total", reason="read_only") >= 1)
    done = relay.ssh().run(f"git-lfs-authenticate 'attic/{own}' upload")
    assert (done.returncode, done.stderr.decode()) == (1, f"{ReadOnly.message}: {TEXT}\n")


def test_an_authority_says_why_and_what_is_read_only(sshd: Sshd, tmp_path: Path) -> None:
    make_repo(sshd.root / "team/app.git")
    with Authority(tmp_path) as authority:
        route = {"upstream": "main", "path": f"{sshd.root}/team/app.git", "read_only": f"{TEXT}\n\x1b[2J"}
        authority.write(
            access={"team/app": {"alice": "write"}},
            refusals={"team/cla": "sign the agreement at https://example.com/cla\x1b[2J first"},
            routes={"team/app": route},
        )
        config = {
            "access": {"source": "http", "url": authority.url, "path": None},
            "routes": {"source": "http", "url": authority.url, "path": None},
        }
        with RelayProcess(sshd, config=config) as relay:
            env = relay.git_env(tmp_path / "home")
            done = git("clone", relay.url("team/cla"), tmp_path / "x", env=env, check=False)
            said = b"relay: access was refused: sign the agreement at https://example.com/cla\\x1b[2J first\n"
            assert said in done.stderr and done.returncode == 128
            done = git("clone", relay.url("team/nowhere"), tmp_path / "x", env=env, check=False)
            assert b"relay: repository not found, or you may not do this\n" in done.stderr
            git("clone", "-q", relay.url("team/app"), tmp_path / "work", env=env)
            commit(tmp_path / "work", env)
            done = push(tmp_path / "work", env, "HEAD:main")
            assert f"! [remote rejected] HEAD -> main ({TEXT}\\x0a\\x1b[2J)".encode() in done.stderr and done.returncode == 1
