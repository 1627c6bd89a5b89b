"""Gerrit's transport, Apache MINA's sshd with JGit, behind the relay: by the relay's one key, and as each person by certificate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.errors import Denied
from tests.hosts.conftest import upstream_of
from tests.support.forges import MinaHost
from tests.support.gitrepo import commit, fsck, git, make_repo, rev_parse
from tests.support.hosts import HostMissing
from tests.support.keys import Key
from tests.support.relay_process import RelayProcess

EVERYONE = {"rule": [{"repositories": "**", "who": ["*"], "allow": "write"}]}

pytestmark = pytest.mark.xdist_group("mina")  # one host and one relay for all


@pytest.fixture(scope="module")
def host(ca: Key) -> Iterator[MinaHost]:
    try:
        made = MinaHost(ca)
    except HostMissing as missing:
        pytest.skip(str(missing))
    make_repo(made.root / "team/app.git")
    with made:
        yield made


@pytest.fixture(scope="module", params=["one key", "certificates"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def relay(
    way: str, host: MinaHost, ca: Key, people: dict[str, Key], settings_of: Callable[[str, str], dict[str, Any]]
) -> Iterator[RelayProcess]:
    config, routes = upstream_of(settings_of("gerrit.md", f"# {way}"), ca), settings_of("gerrit.md", "# routes.toml")
    # as far as RelayProcess needs an Sshd
    process = RelayProcess(host, config=config, access=EVERYONE, routes=routes)  # type: ignore[arg-type]
    process.add_key("bob", people["bob"].line)
    with process:
        yield process


def test_clone_and_push_and_who_the_host_saw(
    way: str, relay: RelayProcess, host: MinaHost, people: dict[str, Key], tmp_path: Path
) -> None:
    since, work, env = len(host.seen()), tmp_path / "work", relay.git_env(tmp_path / "bob", key=people["bob"])
    git("clone", "-q", relay.url("team/app"), str(work), env=env)
    pushed = commit(work, env, f"big {way}", bytes(range(256)) * 12_000)
    git("-C", str(work), "push", "-q", "origin", "main", env=env)
    assert rev_parse(host.root / "team/app.git", env, "main") == pushed
    git("clone", "-q", relay.url("team/app"), str(tmp_path / "again"), env=env)
    assert rev_parse(tmp_path / "again", env) == pushed
    fsck(tmp_path / "again", env)
    seen = set(host.seen()[since:])
    if way == "certificates":
        assert seen == {("bob", "certificate:bob", "bob")}
    else:
        assert seen == {(host.user, f"key:{host.key.fingerprint}", "bob")}


def test_a_project_that_is_not_there_reads_as_one_that_is_not_theirs(relay: RelayProcess) -> None:
    done = relay.ssh().run("git-upload-pack 'team/nowhere'")
    assert (done.returncode, done.stdout, done.stderr.decode()) == (128, b"", Denied.message + "\n")
