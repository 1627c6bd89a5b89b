"""Repositories that have moved, and folders for each identity, by the real git."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.e2e.helpers import audited
from tests.support.gitrepo import commit, git, make_repo, rev_parse
from tests.support.keys import make_key
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd


def test_old_remotes_go_on_and_git_shows_the_new_name(make_relay: Callable[..., RelayProcess], sshd: Sshd, tmp_path: Path) -> None:
    rules = [{"repositories": "group/**", "who": ["alice"], "allow": "write"}, {"repositories": "gone/**", "who": ["*"], "allow": "write"}]
    rules.append({"repositories": "users/{identity}/**", "who": ["*"], "allow": "write"})
    routes = [{"repositories": "gone/**", "moved_to": "group/**"}, {"repositories": "home/*", "moved_to": "users/{identity}/*"}]
    routes.append({"repositories": "**", "upstream": "main", "path": f"{sshd.root}/{{repository}}.git"})
    relay = make_relay(sshd, access={"rule": rules}, routes={"route": routes}, config={"names": {"strip": ["/srv/git/"]}})
    bob = make_key(tmp_path, "bob")
    relay.add_key("bob", bob.line)
    for name in ("group/moved", "users/bob/moved"):
        make_repo(sshd.root / f"{name}.git")
    env, theirs = relay.git_env(tmp_path / "home"), relay.git_env(tmp_path / "home-of-bob", bob)
    line = "relay: gone/moved is group/moved now, please use that name"
    since = len(relay.audit_lines())
    work = tmp_path / "work"
    cloned = git("clone", relay.url("srv/git/gone/moved.git"), work, env=env).stderr.decode()
    assert cloned.splitlines().count(line) == 1
    made = commit(work, env)
    pushed = git("push", "origin", "HEAD:refs/heads/topic", cwd=work, env=env).stderr.decode()
    assert pushed.splitlines().count(line) == 1
    assert rev_parse(sshd.root / "group/moved.git", env, "refs/heads/topic") == made
    told = audited(relay, since, 2, identity="alice", repository="group/moved", moved_from="gone/moved", result="ok")
    assert [one["service"] for one in told] == ["git-upload-pack", "git-receive-pack"]
    assert relay.metric("relay_sessions_moved_total") == 2
    refusals = []
    for name in ("gone/moved", "gone/nothing", "group/moved", "nowhere", "users/alice/moved"):
        heard = git("ls-remote", relay.url(name), env=theirs, check=False)
        refusals.append((heard.returncode, heard.stderr))
    assert len(set(refusals)) == 1 and refusals[0][0] == 128 and b"repository not found" in refusals[0][1]
    git("ls-remote", relay.url("users/bob/moved"), env=theirs)
    assert b"relay: home/moved is users/bob/moved now" in git("ls-remote", relay.url("home/moved"), env=theirs).stderr
