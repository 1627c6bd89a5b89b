"""The test repositories are intact, the big ones incompressible, and the real ssh reaches them on the real sshd."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.gitrepo import GitError, commit, fsck, git, git_env, make_big_repo, make_repo, refs, rev_list, rev_parse
from tests.support.sshd import Sshd


def test_a_small_repository_is_whole(tmp_path: Path) -> None:
    env = git_env(tmp_path / "home")
    path = make_repo(tmp_path / "team/app.git", commits=5)
    fsck(path, env)
    assert git("rev-list", "--count", "main", cwd=path, env=env).stdout == b"5\n"
    assert list(refs(path, env)) == ["refs/heads/main"]


def test_a_big_repository_has_its_size(tmp_path: Path) -> None:
    env = git_env(tmp_path / "home")
    path = make_big_repo(tmp_path / "big.git", megabytes=5)
    fsck(path, env)
    assert 5 << 20 <= _largest_pack(path).stat().st_size < (5 << 20) + 65536
    assert len(rev_list(path, env)) == 5 + 2  # the blobs, a tree, a commit
    git("clone", "--no-local", path, tmp_path / "work", env=env)
    assert sorted(file.stat().st_size for file in (tmp_path / "work").glob("blob-*")) == [1 << 20] * 5


def test_fsck_finds_a_damaged_repository(tmp_path: Path) -> None:
    env = git_env(tmp_path / "home")
    path = make_big_repo(tmp_path / "big.git", megabytes=1)
    pack = _largest_pack(path)
    pack.chmod(0o644)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    with pytest.raises(GitError):
        fsck(path, env)


def test_nothing_of_the_machine_leaks_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("HOME", "/nowhere")
    env = git_env(tmp_path / "home")
    assert git("config", "--get", "user.name", env=env, check=False).returncode == 1
    assert git("var", "GIT_AUTHOR_IDENT", env=env).stdout.startswith(b"Test <test@example.com>")


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_clone_commit_push_over_ssh(tmp_path: Path, sshd: Sshd, protocol: int) -> None:
    env = git_env(tmp_path / "home", key=sshd.key.private, known_hosts=sshd.known_hosts, protocol=protocol)
    bare = make_repo(sshd.root / f"{tmp_path.name}/app.git")
    git("clone", sshd.url(f"{tmp_path.name}/app.git"), tmp_path / "work", env=env)
    pushed = commit(tmp_path / "work", env)
    git("push", "origin", "HEAD", cwd=tmp_path / "work", env=env)
    assert rev_parse(bare, env, "main") == pushed
    assert rev_list(bare, env) == rev_list(tmp_path / "work", env)
    asked = [exec_.git_protocol for exec_ in sshd.commands() if f"{tmp_path.name}/app.git" in exec_.command]
    # a push has no version 2: git then requests version 0
    assert asked == {0: ["", ""], 1: ["version=1", "version=1"], 2: ["version=2", ""]}[protocol]


def test_a_wrong_host_key_is_refused(tmp_path: Path, sshd: Sshd) -> None:
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {sshd.key.host_line}\n")
    env = git_env(tmp_path / "home", key=sshd.key.private, known_hosts=known_hosts)
    refused = git("ls-remote", sshd.url("any.git"), env=env, check=False)
    assert refused.returncode == 128
    assert b"HOST IDENTIFICATION HAS CHANGED" in refused.stderr


def _largest_pack(path: Path) -> Path:
    return max((path / "objects/pack").glob("*.pack"), key=lambda pack: pack.stat().st_size)
