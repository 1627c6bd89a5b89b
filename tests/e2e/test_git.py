"""The real git through the relay: every operation works as directly with a git host, and leaves the same repositories."""

from __future__ import annotations

import concurrent.futures
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.helpers import audited
from tests.support.gitrepo import GitError, commit, fsck, git, git_env, make_big_repo, make_repo, refs, rev_list, rev_parse
from tests.support.keys import make_key
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import SshClient
from tests.support.sshd import Sshd

LARGE_MB = 100


@pytest.fixture
def env(relay: RelayProcess, tmp_path: Path) -> dict[str, str]:
    return relay.git_env(tmp_path / "home")


@pytest.fixture
def bare(sshd: Sshd, request: pytest.FixtureRequest) -> Path:
    """A repository on the git host for this test only."""
    return make_repo(sshd.root / f"git/{request.node.name}.git")


def url(relay: RelayProcess, bare: Path) -> str:
    return relay.url(f"git/{bare.stem}")


def test_clone(relay: RelayProcess, bare: Path, env: dict[str, str], tmp_path: Path) -> None:
    git("clone", "--mirror", url(relay, bare), tmp_path / "copy", env=env)
    fsck(tmp_path / "copy", env)
    assert refs(tmp_path / "copy", env) == refs(bare, env)
    assert rev_list(tmp_path / "copy", env) == rev_list(bare, env)


def test_an_empty_repository(relay: RelayProcess, bare: Path, env: dict[str, str], tmp_path: Path) -> None:
    git("update-ref", "-d", "refs/heads/main", cwd=bare, env=env)
    done = git("clone", url(relay, bare), tmp_path / "work", env=env)
    assert b"empty repository" in done.stderr


def test_push_then_fetch_by_another(relay: RelayProcess, bare: Path, env: dict[str, str], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    git("clone", url(relay, bare), one, env=env)
    git("clone", url(relay, bare), two, env=env)
    pushed = commit(one, env)
    git("push", "origin", "HEAD:main", cwd=one, env=env)
    assert rev_parse(bare, env, "main") == pushed
    git("fetch", "origin", cwd=two, env=env)
    assert rev_parse(two, env, "origin/main") == pushed
    fsck(bare, env)


def test_branches_tags_force_and_delete(relay: RelayProcess, bare: Path, env: dict[str, str], tmp_path: Path) -> None:
    work = tmp_path / "work"
    git("clone", url(relay, bare), work, env=env)
    first = commit(work, env, "one")
    git("tag", "-a", "-m", "release", "v1", cwd=work, env=env)
    git("push", "--follow-tags", "origin", "HEAD:refs/heads/topic", cwd=work, env=env)
    assert refs(bare, env).keys() == {"refs/heads/main", "refs/heads/topic", "refs/tags/v1"}
    git("commit", "--amend", "-q", "-m", "rewritten", cwd=work, env=env)
    with pytest.raises(GitError, match="non-fast-forward"):
        git("push", "origin", "HEAD:refs/heads/topic", cwd=work, env=env)
    assert rev_parse(bare, env, "topic") == first
    git("push", "--force", "origin", "HEAD:refs/heads/topic", cwd=work, env=env)
    assert rev_parse(bare, env, "topic") == rev_parse(work, env) != first
    git("push", "origin", "--delete", "topic", "v1", cwd=work, env=env)
    assert refs(bare, env).keys() == {"refs/heads/main"}


def test_shallow_clone_and_its_deepening(relay: RelayProcess, bare: Path, env: dict[str, str], tmp_path: Path) -> None:
    work = tmp_path / "work"
    git("clone", "--depth=1", url(relay, bare), work, env=env)
    assert git("rev-parse", "--is-shallow-repository", cwd=work, env=env).stdout == b"true\n"
    assert len(git("log", "--format=%H", cwd=work, env=env).stdout.split()) == 1
    git("fetch", "--unshallow", cwd=work, env=env)
    assert rev_list(work, env, "HEAD") == rev_list(bare, env, "HEAD")


def test_a_filter_and_a_negotiation(relay: RelayProcess, bare: Path, env: dict[str, str], tmp_path: Path) -> None:
    git("config", "uploadpack.allowFilter", "true", cwd=bare, env=env)
    work = tmp_path / "work"
    git("clone", "--no-checkout", "--filter=blob:none", url(relay, bare), work, env=env)
    assert git("rev-list", "--objects", "--missing=print", "HEAD", cwd=work, env=env).stdout.count(b"\n?") > 0
    git("checkout", "-q", "main", cwd=work, env=env)  # fetches the blobs it needs
    assert (work / "file-2").exists()


@pytest.mark.parametrize("version", [0, 1, 2])
def test_each_protocol_version_is_the_one_that_ran(relay: RelayProcess, sshd: Sshd, bare: Path, tmp_path: Path, version: int) -> None:
    env = {**relay.git_env(tmp_path / "home", protocol=version), "GIT_TRACE_PACKET": str(tmp_path / "packets")}
    git("clone", url(relay, bare), tmp_path / "work", env=env)
    packets = (tmp_path / "packets").read_text()
    answered = {number for number in (1, 2) if f"clone< version {number}\n" in packets}
    assert answered == ({version} if version else set())
    assert sshd.commands()[-1].git_protocol == (f"version={version}" if version else "")
    assert sshd.commands()[-1].command == f"git-upload-pack '{bare}'"
    assert rev_parse(tmp_path / "work", env) == rev_parse(bare, env, "main")
    lines = [line for line in relay.audit_lines() if line["repository"] == f"git/{bare.stem}"]
    assert [line["protocol"] for line in lines] == [f"version={version}" if version else ""]


def test_archive(relay: RelayProcess, bare: Path, env: dict[str, str]) -> None:
    done = git("archive", f"--remote={url(relay, bare)}", "--format=tar", "main", env=env)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        names = tar.getnames()
        readme = tar.extractfile("README")
        assert readme is not None and readme.read() == git("show", "main:README", cwd=bare, env=env).stdout
    assert sorted(names) == ["README", "file-0", "file-1", "file-2"]


def test_ls_remote_by_every_way_to_write_the_name(relay: RelayProcess, bare: Path, env: dict[str, str]) -> None:
    name = f"git/{bare.stem}"
    expected = git("ls-remote", relay.url(name), env=env).stdout
    assert expected
    scp_like = {**env, "GIT_SSH_COMMAND": f"{env['GIT_SSH_COMMAND']} -p {relay.port}"}
    for address in (f"git@127.0.0.1:{name}", f"git@127.0.0.1:/{name}.git", f"git@127.0.0.1:{name}/"):
        assert git("ls-remote", address, env=scp_like).stdout == expected
    assert git("ls-remote", relay.url(f"{name}.git"), env=env).stdout == expected
    assert git("ls-remote", relay.url(f"{name}.git/"), env=env).stdout == expected


def test_a_name_that_only_quoting_carries(relay: RelayProcess, sshd: Sshd, env: dict[str, str], tmp_path: Path) -> None:
    bare = make_repo(sshd.root / 'git/it\'s $HOME; `id` & "more".git')
    git("clone", relay.url("git/it%27s%20$HOME;%20%60id%60%20&%20%22more%22"), tmp_path / "work", env=env)
    assert rev_parse(tmp_path / "work", env) == rev_parse(bare, env, "main")


def test_a_push_that_a_hook_rejects(relay: RelayProcess, bare: Path, env: dict[str, str], tmp_path: Path) -> None:
    hook = bare / "hooks/pre-receive"
    hook.write_text("#!/bin/sh\necho 'no pushes on a Friday' >&2\nexit 1\n")
    hook.chmod(0o755)
    before = refs(bare, env)
    work = tmp_path / "work"
    git("clone", url(relay, bare), work, env=env)
    commit(work, env)
    done = git("push", "origin", "HEAD:main", cwd=work, env=env, check=False)
    assert done.returncode == 1
    assert b"remote: no pushes on a Friday" in done.stderr
    assert b"! [remote rejected] HEAD -> main (pre-receive hook declined)" in done.stderr
    assert refs(bare, env) == before


def test_a_push_of_one_who_may_only_read_reaches_no_git_host(
    make_relay: Callable[..., RelayProcess], sshd: Sshd, bare: Path, tmp_path: Path
) -> None:
    relay = make_relay(sshd, access={"rule": [{"repositories": "**", "who": ["alice"], "allow": "read"}]})
    env = relay.git_env(tmp_path / "home")
    work = tmp_path / "work"
    git("clone", url(relay, bare), work, env=env)
    commit(work, env)
    before = len(sshd.commands())
    done = git("push", "origin", "HEAD:main", cwd=work, env=env, check=False)
    assert done.returncode == 128
    name = bare.relative_to(sshd.root).with_suffix("")
    assert f"relay: you may read {name}, not write it\n".encode() in done.stderr
    assert len(sshd.commands()) == before
    [line] = audited(relay, 0, service="git-receive-pack", event="command_rejected")
    assert (line["result"], line["reason"]) == ("policy", "denied")


def test_who_may_not_even_read_learns_nothing_by_a_push(make_relay: Callable[..., RelayProcess], sshd: Sshd, bare: Path) -> None:
    relay = make_relay(sshd, access={"rule": [{"repositories": "other", "who": ["alice"], "allow": "read"}]})
    name = bare.relative_to(sshd.root).with_suffix("")
    said = {relay.ssh().run(f"git-receive-pack '{path}'").stderr for path in (name, "never/was", "never/was/either")}
    assert said == {b"relay: repository not found, or you may not do this\n"}


def test_remotes_from_before_the_relay_go_on(make_relay: Callable[..., RelayProcess], sshd: Sshd, bare: Path, tmp_path: Path) -> None:
    relay = make_relay(sshd, config={"names": {"strip": [f"{sshd.root}/", "~/"]}})
    env, name = relay.git_env(tmp_path / "home"), bare.relative_to(sshd.root)
    base = relay.url("").rstrip("/").removesuffix(".git").rstrip("/")
    for number, path in enumerate((f"{sshd.root}/{name}", f"/~/{name}", f"/{name}")):
        git("clone", f"{base}{path}", tmp_path / f"copy{number}", env=env)
    assert {line["repository"] for line in audited(relay, 0, 3, service="git-upload-pack")} == {str(name.with_suffix(""))}


def test_a_site_of_sshd_moves_behind_the_relay_and_nobody_changes_anything(make_sshd: Callable[..., Sshd], tmp_path: Path) -> None:
    """docs/migrate.md: people's remotes, known_hosts and keys stay as they are; the sshd has left the port to the relay."""
    alice, bob = make_key(tmp_path, "alice"), make_key(tmp_path, "bob")
    old = make_sshd(authorized=[alice.line, bob.line])
    make_repo(old.root / "team/app.git")
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[{old.address}]:{old.port} {old.host_key_line}\n")
    envs = {
        who: git_env(tmp_path / f"{who}s-home", key=key.private, known_hosts=known_hosts) for who, key in (("alice", alice), ("bob", bob))
    }
    remote = f"ssh://{old.user}@{old.address}:{old.port}{old.root}/team/app.git"
    for who, env in envs.items():
        git("clone", remote, tmp_path / f"{who}s", env=env)
    relay = RelayProcess(
        old,
        config={
            "user": old.user,
            "names": {"strip": [f"{old.root}/"]},
            "keys": {"path": "authorized_keys"},
            "host_keys": [str(old.host_key.private)],
        },
        access={"rule": [{"repositories": "**", "who": ["*"], "allow": "write"}]},
    )
    (relay.folder / "authorized_keys").write_text(f'identity="alice" {alice.line}\nidentity="bob" {bob.line}\n')
    with relay:
        known_hosts.write_text(f"[127.0.0.1]:{relay.port} {old.host_key_line}\n")  # as the port is the same at a real site
        for who, env in envs.items():
            work = tmp_path / f"{who}s"
            git("remote", "set-url", "origin", remote.replace(f"{old.address}:{old.port}", f"127.0.0.1:{relay.port}"), cwd=work, env=env)
            git("pull", "--rebase", "-q", cwd=work, env=env)
            pushed = commit(work, env)
            git("push", "-q", "origin", "HEAD:main", cwd=work, env=env)
            assert rev_parse(old.root / "team/app.git", env, "main") == pushed
        lines = audited(relay, 0, 4, event="session", result="ok")
        assert {(line["identity"], line["repository"]) for line in lines} == {("alice", "team/app"), ("bob", "team/app")}


def test_eight_clones_at_once(relay: RelayProcess, bare: Path, env: dict[str, str], tmp_path: Path) -> None:
    expected = rev_list(bare, env)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        copies = [tmp_path / f"copy-{number}" for number in range(8)]
        list(pool.map(lambda copy: git("clone", "--mirror", url(relay, bare), copy, env=env), copies))
    assert all(rev_list(copy, env) == expected for copy in copies)


def test_the_keys_are_read_once(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> None:
    """The host key and the key for the git host are read at the start: new connections both ways work after the files are deleted."""
    relay = make_relay(sshd, config={"upstreams": {"main": {"idle_connections": 0}}})
    relay.host_key.private.unlink()
    (relay.folder / "upstream_ed25519").unlink()
    for _ in range(3):
        assert relay.ssh().run("git-upload-pack 'stub/emit/100'").returncode == 0


# -- the environment of the git host's command -------------------------------------------------------------------------------


def test_the_git_host_is_told_protocol_identity_and_key(relay: RelayProcess) -> None:
    done = relay.ssh("SetEnv=GIT_PROTOCOL=version=2").run("git-upload-pack 'stub/env'")
    assert done.stdout.decode().splitlines() == ["GIT_PROTOCOL=version=2", "RELAY_IDENTITY=alice", f"RELAY_KEY={relay.key.fingerprint}"]
    done = relay.ssh().run("git-upload-pack 'stub/env'")
    assert done.stdout.decode().splitlines()[0] == "GIT_PROTOCOL=(unset)"


def test_each_session_of_a_warm_connection_has_its_own_id(relay: RelayProcess) -> None:
    since = len(relay.audit_lines())
    said = [relay.ssh().run("git-upload-pack 'stub/env/all'").stdout.decode().split() for _ in range(3)]
    lines = audited(relay, since, 3, event="session")
    assert [told[-1] for told in said] == [f"RELAY_SESSION={line['session']}" for line in lines]
    assert len({line["session"] for line in lines}) == 3


@pytest.mark.parametrize("operation", ["download", "upload"])
def test_lfs_services(relay: RelayProcess, sshd: Sshd, operation: str) -> None:
    done = relay.ssh().run(f"git-lfs-authenticate team/app.git {operation}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["header"]["Authorization"] == f"RemoteAuth {operation}"
    assert sshd.commands()[-1].command == f"git-lfs-authenticate '{sshd.root}/team/app.git' {operation}"
    done = relay.ssh().run(f"git-lfs-transfer team/app.git {operation}", b"0000")
    direct = SshClient.to(sshd).run(f"git-lfs-transfer {sshd.root}/team/app.git {operation}", b"0000")
    assert (done.returncode, done.stdout) == (direct.returncode, direct.stdout) == (0, b"000eversion=1\n000clocking\n0000")


# -- large -------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_large_repository_cloned_and_pushed(relay: RelayProcess, sshd: Sshd, env: dict[str, str], tmp_path: Path) -> None:
    source = make_big_repo(sshd.root / "big/source.git", LARGE_MB)
    target = make_repo(sshd.root / "big/target.git", commits=0)
    copy = tmp_path / "copy"
    git("clone", "--mirror", relay.url("big/source"), copy, env=env)
    fsck(copy, env)
    git("push", "--mirror", relay.url("big/target"), cwd=copy, env=env)
    fsck(target, env)
    expected = rev_list(source, env)
    assert len(expected) > LARGE_MB
    assert rev_list(copy, env) == expected
    assert rev_list(target, env) == expected
    assert refs(target, env) == refs(copy, env) == refs(source, env)
