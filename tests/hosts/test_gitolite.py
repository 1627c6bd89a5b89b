"""Debian's gitolite3 behind the relay: its own rules decide for the identity, by RELAY_IDENTITY and by certificates."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.errors import Denied
from tests.e2e.helpers import audited
from tests.hosts.conftest import upstream_of
from tests.support.forges import Gitolite
from tests.support.gitrepo import commit, git, rev_parse
from tests.support.hosts import HostMissing
from tests.support.keys import Key
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import SshClient

CONFIGURATION = """
@core = bob
repo team/app
    RW+             = @core
    -   refs/heads/main = alice
    RW              = alice
"""

pytestmark = pytest.mark.xdist_group("gitolite")  # one host and one relay for all


@pytest.fixture(scope="module", params=["by RELAY_IDENTITY", "by certificate"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def host(way: str, sshd_installed: None, ca: Key) -> Iterator[Gitolite]:
    try:
        made = Gitolite(CONFIGURATION, *((ca, ("alice", "bob", "mallory")) if way == "by certificate" else ()))
    except HostMissing as missing:
        pytest.skip(str(missing))
    with made:
        yield made


@pytest.fixture(scope="module")
def relay(
    way: str, host: Gitolite, ca: Key, people: dict[str, Key], settings_of: Callable[[str, str], dict[str, Any]]
) -> Iterator[RelayProcess]:
    config = upstream_of(settings_of("gitolite.md", f"# {way}"), ca)
    access, routes = settings_of("gitolite.md", "# access.toml"), settings_of("gitolite.md", "# routes.toml")
    process = RelayProcess(host, config=config, access=access, routes=routes)
    for name, key in people.items():
        process.add_key(name, key.line)
    with process:
        yield process


def test_gitolites_own_rules_decide_for_each_person(relay: RelayProcess, host: Gitolite, people: dict[str, Key], tmp_path: Path) -> None:
    work, since = tmp_path / "work", len(host.seen())
    by_bob, by_alice = relay.git_env(tmp_path / "bob", key=people["bob"]), relay.git_env(tmp_path / "alice")
    git("clone", "-q", relay.url("team/app"), str(work), env=by_bob)
    git("-C", str(work), "checkout", "-q", "-B", "main", env=by_bob)
    commit(work, by_bob)
    git("-C", str(work), "push", "-q", "origin", "main", env=by_bob)
    commit(work, by_alice)
    refused = git("-C", str(work), "push", "-q", "origin", "main", env=by_alice, check=False)
    assert refused.returncode == 1
    assert b"DENIED by refs/heads/main" in refused.stderr, "gitolite's hook answers within git's protocol, and the relay leaves that alone"
    git("-C", str(work), "push", "-q", "origin", "HEAD:refs/heads/alice", env=by_alice)
    assert rev_parse(host.root / "team/app.git", by_alice, "alice") == rev_parse(work, by_alice)
    assert host.seen()[since:] == [("team/app", name) for name in ("bob", "bob", "alice", "alice")]


@pytest.mark.parametrize("repository", ["team/app", "team/nowhere"])
def test_who_may_not_read_it_reads_the_relays_words(relay: RelayProcess, people: dict[str, Key], repository: str) -> None:
    since = len(relay.audit_lines())
    done = relay.ssh(key=people["mallory"]).run(f"git-upload-pack '{repository}'")
    assert (done.returncode, done.stdout, done.stderr.decode()) == (128, b"", Denied.message + "\n")
    [audit] = audited(relay, since, reason="denied")
    assert f"{repository} mallory DENIED by fallthru" in audit["detail"]


def test_without_an_identity_gitolite_lets_nobody_in(relay: RelayProcess, host: Gitolite) -> None:
    """A login past the relay, with its key: no environment, no user."""
    direct = SshClient(host.port, host.key.private, host.known_hosts, host.user)
    since = len(host.seen())
    done: subprocess.CompletedProcess[bytes] = direct.run("git-upload-pack 'team/app'")
    assert done.returncode not in (0, None)
    assert host.seen()[since:] == []
