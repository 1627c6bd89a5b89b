"""Gitea's own SSH server behind the relay: certificates of the relay's CA make each session the person's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.errors import Denied
from tests.e2e.helpers import audited
from tests.hosts.conftest import HOSTS, upstream_of
from tests.support.forges import Gitea
from tests.support.gitrepo import commit, git, rev_parse
from tests.support.hosts import HostMissing
from tests.support.keys import Key
from tests.support.relay_process import RelayProcess
from tests.support.wait import wait_until

HERE = ("SSH_LISTEN_PORT", "SSH_DOMAIN", "SSH_PORT", "SSH_TRUSTED_USER_CA_KEYS")  # differ in the test

pytestmark = pytest.mark.xdist_group("gitea")  # one host and one relay for all


@pytest.fixture(scope="module")
def host(ca: Key) -> Iterator[Gitea]:
    server = re.findall(r"^([A-Z_]+) = (\S+)", (HOSTS / "gitea.md").read_text(), re.MULTILINE)
    try:
        made = Gitea(ca, {name: value for name, value in server if name not in HERE})
    except HostMissing as missing:
        pytest.skip(str(missing))
    with made:
        for name in ("alice", "bob"):
            made.add_user(name)
        made.add_repository("alice", "app")
        yield made


@pytest.fixture(scope="module")
def relay(host: Gitea, ca: Key, people: dict[str, Key], settings_of: Callable[[str, str], dict[str, Any]]) -> Iterator[RelayProcess]:
    config = upstream_of(settings_of("gitea.md", "# relay.toml"), ca)
    access, routes = settings_of("gitea.md", "# access.toml"), settings_of("gitea.md", "# routes.toml")
    process = RelayProcess(host, config=config, access=access, routes=routes)  # type: ignore[arg-type]
    for name, key in people.items():
        process.add_key(name, key.line)
    with process:
        yield process


def test_a_push_is_the_persons_own_in_giteas_feed(relay: RelayProcess, host: Gitea, people: dict[str, Key], tmp_path: Path) -> None:
    work, by_alice = tmp_path / "work", relay.git_env(tmp_path / "alice")
    git("clone", "-q", relay.url("alice/app"), str(work), env=by_alice)
    commit(work, by_alice)
    git("-C", str(work), "push", "-q", "origin", "main", env=by_alice)
    host.api("alice", "/repos/alice/app/collaborators/bob", {"permission": "write"}, "PUT")
    by_bob = relay.git_env(tmp_path / "bob", key=people["bob"])
    pushed = commit(work, by_bob, "bobs")
    git("-C", str(work), "push", "-q", "origin", "main", env=by_bob)
    wait_until(lambda: len(host.seen("alice", "app")) == 2, message="Gitea's feed has both pushes")
    assert host.seen("alice", "app") == ["alice", "bob"]
    git("clone", "-q", relay.url("Alice/APP"), str(tmp_path / "again"), env=by_bob)
    assert rev_parse(tmp_path / "again", by_bob) == pushed


@pytest.mark.parametrize(
    ("repository", "said"),
    [
        ("alice/secret", "User: 2:bob with Key: 2:bob is not authorized to read alice/secret"),
        ("alice/nowhere", "Cannot find repository: alice/nowhere"),
    ],
)
def test_who_may_not_read_it_reads_the_relays_words(
    relay: RelayProcess, host: Gitea, people: dict[str, Key], repository: str, said: str
) -> None:
    if repository == "alice/secret":
        host.add_repository("alice", "secret")
    since = len(relay.audit_lines())
    done = relay.ssh(key=people["bob"]).run(f"git-upload-pack '{repository}'")
    assert (done.returncode, done.stdout, done.stderr.decode()) == (128, b"", Denied.message + "\n")
    [audit] = audited(relay, since, reason="denied")
    assert said in audit["detail"]


def test_whom_gitea_does_not_know_is_refused_alone(relay: RelayProcess, people: dict[str, Key]) -> None:
    since = len(relay.audit_lines())
    done = relay.ssh(key=people["mallory"]).run("git-upload-pack 'alice/app'")
    assert (done.returncode, done.stdout) == (255, b"")
    assert audited(relay, since, event="session")[0]["reason"] == "auth"
    assert relay.ssh().run("git-upload-pack 'alice/app'", b"0000").returncode == 0
