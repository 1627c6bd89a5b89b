"""The real git pushes through a relay with ref rules: what may be pushed is, and of a push that may not nothing reaches the git host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.helpers import audited
from tests.support.gitrepo import commit, git, make_repo, refs, rev_parse
from tests.support.keys import make_key
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

ACCESS: dict[str, Any] = {
    "rule": [
        {"repositories": "git/**", "who": ["alice", "bob"], "allow": "write"},
        {"repositories": "git/**", "who": ["bob"], "allow": "write", "refs": ["refs/heads/main", "refs/heads/release/**"]},
        {"repositories": "git/**", "who": ["*"], "deny": "write", "refs": ["refs/tags/**"], "changes": ["update", "delete"]},
        {"repositories": "git/**", "who": ["alice"], "deny": "write", "refs": ["refs/heads/keep"], "changes": ["delete"]},
        {"repositories": "git/**", "who": ["carol"], "allow": "read"},
        {"repositories": "git/**", "who": ["carol"], "allow": "write", "refs": ["refs/heads/docs/*"]},
        {"repositories": "free/**", "who": ["*"], "allow": "write"},
    ]
}
REFUSED = b"! [remote rejected] %s -> %s (not allowed by access rules)"
WITH = b"! [remote rejected] %s -> %s (not pushed: another ref of this push was refused)"


@pytest.fixture(scope="module")
def relay(sshd: Sshd) -> Iterator[RelayProcess]:
    with RelayProcess(sshd, access=ACCESS) as process:
        for name in ("bob", "carol"):
            process.add_key(name, make_key(process.folder / name, name).line)
        yield process


@pytest.fixture
def env(relay: RelayProcess, tmp_path: Path) -> dict[str, str]:
    return relay.git_env(tmp_path / "home")


@pytest.fixture
def bare(sshd: Sshd, request: pytest.FixtureRequest) -> Path:
    name = request.node.name.translate({ord("["): "-", ord("]"): ""})
    return make_repo(sshd.root / f"git/{name}.git")


@pytest.fixture
def work(relay: RelayProcess, bare: Path, env: dict[str, str], tmp_path: Path) -> Path:
    """A clone with one commit more."""
    git("clone", "-q", relay.url(f"git/{bare.stem}"), tmp_path / "work", env=env)
    commit(tmp_path / "work", env)
    return tmp_path / "work"


def push(work: Path, env: dict[str, str], *arguments: str, fails: bool = False) -> bytes:
    done = git("push", "origin", *arguments, cwd=work, env=env, check=False)
    assert done.returncode == (1 if fails else 0), done.stderr.decode()
    return done.stderr


def of(relay: RelayProcess, who: str, home: Path) -> dict[str, str]:
    """An environment in which git is another person."""
    from dataclasses import replace

    return relay.git_env(home, replace(relay.key, private=relay.folder / who / who))


def refused(relay: RelayProcess, since: int) -> dict[str, Any]:
    [line] = audited(relay, since, event="command_rejected")
    assert (line["result"], line["reason"]) == ("policy", "ref_denied")
    return line


def test_what_no_rule_names_is_pushed(relay: RelayProcess, bare: Path, work: Path, env: dict[str, str]) -> None:
    push(work, env, "HEAD:topic", "HEAD:refs/tags/v1", "HEAD:refs/notes/x")
    assert refs(bare, env).keys() == {"refs/heads/main", "refs/heads/topic", "refs/tags/v1", "refs/notes/x"}
    assert rev_parse(bare, env, "topic") == rev_parse(work, env)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_protected_branch_is_refused(relay: RelayProcess, bare: Path, work: Path, tmp_path: Path, version: int) -> None:
    env = relay.git_env(tmp_path / "home", protocol=version)
    before, since = refs(bare, env), len(relay.audit_lines())
    rejected = relay.metric("relay_commands_rejected_total", reason="ref")
    said = push(work, env, "HEAD:main", fails=True)
    assert REFUSED % (b"HEAD", b"main") in said
    assert b"error: failed to push some refs to" in said
    for other in (b"disconnect", b"hung up", b"fatal", b"died", b"Broken pipe"):
        assert other not in said
    assert refs(bare, env) == before
    line = refused(relay, since)
    assert (line["detail"], line["exit_status"]) == ("update refs/heads/main: not allowed by access rules", 0)
    wait_until(lambda: relay.metric("relay_commands_rejected_total", reason="ref") == rejected + 1)
