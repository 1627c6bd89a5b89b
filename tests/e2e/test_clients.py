"""Real clients beyond OpenSSH: each clones, pushes and is refused, with each algorithm profile that it supports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.helpers import audited
from tests.support.clients import BOTH, CLIENTS, Client, Missing, Ready
from tests.support.gitrepo import commit, fsck, git, git_env, make_repo, rev_list, rev_parse
from tests.support.keys import make_key
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

BLOB_BYTES = 3_000_000  # more than any client's window

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"

ACCESS = {"rule": [{"repositories": f"{allow}/**", "who": ["alice"], "allow": allow} for allow in ("read", "write")]}

TOLD = {"banner": "Only for staff.\nEverything is recorded.", "notice": "the git host moves on Friday"}  # no client takes them for data

PAIRS = [(client, profile) for client in CLIENTS for profile in BOTH]
SPOKEN = [pytest.param(*pair, id="-".join(map(str, pair))) for pair in PAIRS if pair[1] in pair[0].profiles]
UNSPOKEN = [pytest.param(*pair, id="-".join(map(str, pair))) for pair in PAIRS if pair[1] not in pair[0].profiles]


@pytest.fixture(scope="module")
def relays(sshd: Sshd) -> Iterator[dict[str, RelayProcess]]:
    """One for each profile, in front of the same git host; with a banner and a notice."""
    with ExitStack() as stack:
        yield {
            profile: stack.enter_context(RelayProcess(sshd, config={"algorithms": {"profile": profile}, **TOLD}, access=ACCESS))
            for profile in BOTH
        }


def ready(client: Client, relay: RelayProcess, home: Path) -> Ready:
    try:
        return client.at(relay, home)
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize(("client", "profile"), SPOKEN)
def test_it_clones_and_pushes(relays: dict[str, RelayProcess], sshd: Sshd, tmp_path: Path, client: Client, profile: str) -> None:
    relay, work, env = relays[profile], tmp_path / "work", git_env(tmp_path / "local")
    with_it = ready(client, relay, tmp_path / "home")
    name = f"write/{client.name.replace(' ', '-')}-{profile}"
    bare = make_repo(sshd.root / f"{name}.git")
    mark = len(relay.audit_lines())
    with_it.clone(relay.url(name), work)
    assert rev_list(work, env, "HEAD") == rev_list(bare, env, "HEAD")
    pushed = commit(work, env, "big", bytes(range(256)) * (BLOB_BYTES // 256))
    with_it.push(work, "main")
    assert rev_parse(bare, env, "main") == pushed
    fsck(bare, env)
    again = tmp_path / "again"
    with_it.clone(relay.url(name), again)
    assert rev_parse(again, env) == pushed
    assert (again / "big").stat().st_size == BLOB_BYTES // 256 * 256
    fsck(again, env)
    ended = audited(relay, mark, 3, event="session", repository=name)
    assert [line["service"] for line in ended] == ["git-upload-pack", "git-receive-pack", "git-upload-pack"]
    assert {line["result"] for line in ended} == {"ok"}
    assert {line["exit_status"] for line in ended} <= ({0} if client.waits else {0, None})


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_it_is_refused_what_its_user_may_not_do(relays: dict[str, RelayProcess], sshd: Sshd, tmp_path: Path, client: Client) -> None:
    relay, work, env = relays[client.profiles[0]], tmp_path / "work", git_env(tmp_path / "local")
    with_it = ready(client, relay, tmp_path / "home")
    name = f"read/{client.name.replace(' ', '-')}"
    bare = make_repo(sshd.root / f"{name}.git")
    before = rev_parse(bare, env, "main")
    with_it.clone(relay.url(name), work)
    commit(work, env)
    mark = len(relay.audit_lines())
    assert with_it.push(work, "main", check=False).returncode != 0
    assert with_it.clone(relay.url("hidden"), tmp_path / "hidden", check=False).returncode != 0
    assert rev_parse(bare, env, "main") == before
    rejected = audited(relay, mark, 2, event="command_rejected", reason="denied")
    assert [(line["service"], line["repository"]) for line in rejected] == [("git-receive-pack", name), ("git-upload-pack", "hidden")]


@pytest.fixture(scope="module", params=["rsa", "ecdsa"])
def relay_of_kind(sshd: Sshd, request: pytest.FixtureRequest) -> Iterator[RelayProcess]:
    """A relay whose host key is of this kind, as is alice's key."""
    relay = RelayProcess(sshd, config={"algorithms": {"profile": "compatible"}})
    relay.host_key = make_key(relay.folder, "host_key", request.param)
    relay.write_config({"host_keys": [relay.host_key.private.name]})
    relay.key = make_key(relay.folder / "client", request.param, request.param)
    relay.add_key("alice", relay.key.line)
    with relay:
        yield relay


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_other_kinds_of_keys(relay_of_kind: RelayProcess, sshd: Sshd, tmp_path: Path, client: Client) -> None:
    """RSA with SHA-1 is neither offered nor accepted."""
    with_it = ready(client, relay_of_kind, tmp_path / "home")
    bare = sshd.root / "kinds.git"
    if not bare.exists():
        make_repo(bare)
    with_it.clone(relay_of_kind.url("kinds"), tmp_path / "work")
    env = git_env(tmp_path / "local")
    assert rev_parse(tmp_path / "work", env) == rev_parse(bare, env, "main")


@pytest.mark.parametrize(("client", "profile"), UNSPOKEN)
def test_a_profile_that_it_cannot_speak_ends_in_the_key_exchange(
    relays: dict[str, RelayProcess], tmp_path: Path, client: Client, profile: str
) -> None:
    relay = relays[profile]
    with_it = ready(client, relay, tmp_path / "home")

    def turned_away() -> float:
        return relay.metric("relay_connections_total", outcome="no_common_algorithm")

    before = turned_away()
    done = with_it.clone(relay.url("write/any"), tmp_path / "work", check=False)
    assert done.returncode != 0
    assert re.search(rb"(?i)no match", done.stderr), done.stderr
    wait_until(lambda: turned_away() == before + 1, message="the connection is counted")


def test_the_page_says_the_same() -> None:
    clients = PAGE.read_text().partition("## Git hosts")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in clients.splitlines() if line.startswith("| ")]
    told = {row[0]: row[2] for row in rows}
    assert {client.name: told.get(client.name) for client in CLIENTS} == {client.name: " ".join(client.profiles) for client in CLIENTS}


def test_git_itself_is_real(relays: dict[str, RelayProcess], tmp_path: Path) -> None:
    """git connects only by the ssh program that a test gives it: without one it does not reach the relay."""
    done = git("ls-remote", relays["modern"].url("write/any"), env=git_env(tmp_path / "home"), check=False)
    assert done.returncode != 0
