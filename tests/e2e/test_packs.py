"""Packs with real clients: each form of clone and of CI fetch is kept from the second on, and everything else passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.packing import Runs, entries, is_whole, packs, results, served
from tests.support.clients import CLIENTS, Client, Missing
from tests.support.gitrepo import commit, fsck, git, git_env, make_repo, rev_list, rev_parse
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd

COMMITS = 60  # more than the deepest of FORMS

FORMS = {
    "full": (),
    "depth-1": ("--depth=1",),
    "depth-50": ("--depth=50",),
    "since": ("--shallow-since=2020-01-01T00:00:00Z",),
    "single-branch": ("--single-branch",),
    "branch": ("--branch=topic", "--single-branch"),
    "no-tags": ("--no-tags",),
    "mirror": ("--mirror",),
    "blob-none": ("--filter=blob:none", "--bare"),
    "tree-0": ("--filter=tree:0", "--bare"),
    "blob-limit": ("--filter=blob:limit=1k", "--bare", "--depth=3"),
}


class Stage:
    """A git host that counts its runs of pack-objects, with a relay that keeps packs."""

    def __init__(self, sshd: Sshd, runs: Runs, relay: RelayProcess, folder: Path) -> None:
        self.sshd, self.runs, self.relay, self.folder = sshd, runs, relay, folder

    def repo(self, name: str) -> Path:
        """A new repository with two branches, a tag and an annotated tag."""
        bare = make_repo(self.sshd.root / f"{name}.git", commits=COMMITS)
        env = git_env(bare.parent / f"{bare.name}-home")
        for command in (
            ("branch", "topic", "main~5"),
            ("tag", "light", "main~3"),
            ("tag", "-a", "-m", "v1", "v1", "main~2"),
        ):
            git(*command, cwd=bare, env=env)
        return bare

    @property
    def mark(self) -> int:
        return len(self.relay.audit_lines())


@pytest.fixture(scope="module")
def stage(sshd_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("packs")
    with Sshd() as sshd:
        runs = Runs(sshd, folder / "runs")
        with RelayProcess(sshd, config=packs(folder / "entries")) as relay:
            yield Stage(sshd, runs, relay, folder / "entries")


@pytest.mark.parametrize("terminal", [False, True], ids=["quiet", "progress"])
@pytest.mark.parametrize("form", FORMS)
def test_a_clone_is_made_by_the_host_twice_and_then_not_at_all(stage: Stage, tmp_path: Path, form: str, terminal: bool) -> None:
    """The first passes, the second is kept."""
    name = f"forms/{form}-{terminal}"
    bare, relay = stage.repo(name), stage.relay
    env, mark, runs = relay.git_env(tmp_path / "home"), stage.mark, stage.runs.count
    for number in range(4):
        # a terminal shows progress, and without one git asks for none
        options = ("--progress",) if terminal else ("-q",) if number % 2 else ()
        git("clone", *options, *FORMS[form], relay.url(name), tmp_path / f"{number}", env=env)
    assert stage.runs.count - runs == 2
    assert served(relay, mark, 4) == ["host", "cache", "cache", "cache"]
    first, *others = (rev_list(tmp_path / f"{number}", env, "--all", "--missing=allow-promisor") for number in range(4))
    assert first and others == [first] * 3
    for number in range(4):
        fsck(tmp_path / f"{number}", env)
    if form == "full":
        is_whole(tmp_path / "3", bare, env)


def test_progress_of_the_host_is_shown_while_it_is_kept(stage: Stage, tmp_path: Path) -> None:
    stage.repo("shown/app")
    env = stage.relay.git_env(tmp_path / "home")
    said = [git("clone", "--progress", stage.relay.url("shown/app"), tmp_path / f"{number}", env=env).stderr for number in range(3)]
    assert b"remote: Counting objects: 1" in said[0] and b"remote: Counting objects" not in said[2]


def test_a_commit_by_its_id_as_ci_fetches_it(stage: Stage, tmp_path: Path) -> None:
    """Without ls-refs: who did not fill the entry has the host agree, by a probe, which is a small run of pack-objects."""
    bare, relay = stage.repo("ci/app"), stage.relay
    env, mark, runs = relay.git_env(tmp_path / "home"), stage.mark, stage.runs.count
    wanted = rev_parse(bare, env, "main~7")
    for number in range(4):
        work = tmp_path / f"{number}"
        git("init", "-q", work, env=env)
        git("remote", "add", "origin", relay.url("ci/app"), cwd=work, env=env)
        git("fetch", "-q", "--no-tags", "--depth=1", "origin", f"+{wanted}:refs/remotes/origin/main", cwd=work, env=env)
        git("checkout", "-q", wanted, cwd=work, env=env)
        fsck(work, env)
        assert rev_list(work, env) == rev_list(tmp_path / "0", env)
    assert served(relay, mark, 4) == ["host", "cache", "cache", "cache"]
    assert stage.runs.count - runs == 2 + 2, "two probes"


def test_a_repository_of_sha256(stage: Stage, tmp_path: Path) -> None:
    relay, env = stage.relay, stage.relay.git_env(tmp_path / "home")
    seed, bare = tmp_path / "seed", stage.sshd.root / "new/sha256.git"
    git("init", "-q", "--object-format=sha256", seed, env=env)
    for number in range(5):
        commit(seed, env, f"file-{number}")
    git("clone", "-q", "--bare", seed, bare, env=env)
    wanted, mark = rev_parse(bare, env, "main~1"), stage.mark
    for number in range(3):
        git("clone", "-q", relay.url("new/sha256"), tmp_path / f"{number}", env=env)
        is_whole(tmp_path / f"{number}", bare, env, "HEAD")
    for number in range(3, 6):
        git("init", "-q", "--object-format=sha256", tmp_path / f"{number}", env=env)
        git("fetch", "-q", "--depth=1", relay.url("new/sha256"), wanted, cwd=tmp_path / f"{number}", env=env)
        fsck(tmp_path / f"{number}", env)
    assert served(relay, mark, 6) == ["host", "cache", "cache"] * 2


@pytest.mark.parametrize("client", [one for one in CLIENTS if one.name not in ("plink", "dbclient")], ids=str)
def test_other_clients(stage: Stage, tmp_path: Path, client: Client) -> None:
    try:
        with_it = client.at(stage.relay, tmp_path / "home")
    except Missing as missing:
        pytest.skip(str(missing))
    name, env = f"clients/{client.name.replace(' ', '-')}", git_env(tmp_path / "local")
    bare, mark = stage.repo(name), stage.mark
    for number in range(4):
        with_it.clone(stage.relay.url(name), tmp_path / f"{number}")
        assert rev_list(tmp_path / f"{number}", env, "HEAD") == rev_list(bare, env, "HEAD")
        fsck(tmp_path / f"{number}", env)
    by = served(stage.relay, mark, 4)
    speaks_2 = {line["git_version"] for line in stage.relay.audit_lines()[mark:]} == {2}
    assert by == (["host", "cache", "cache", "cache"] if speaks_2 else ["host"] * 4)
    assert speaks_2 or client.name in ("pygit2", "go-git"), "these speak version 0 only"


@pytest.mark.parametrize("protocol", [0, 1])
def test_older_protocols_are_untouched(stage: Stage, tmp_path: Path, protocol: int) -> None:
    bare, mark = stage.repo(f"old/{protocol}"), stage.mark
    env = stage.relay.git_env(tmp_path / "home", protocol=protocol)
    before = results(stage.relay)
    for number in range(3):
        git("clone", "-q", stage.relay.url(f"old/{protocol}"), tmp_path / f"{number}", env=env)
        is_whole(tmp_path / f"{number}", bare, env, "HEAD")
    assert served(stage.relay, mark, 3) == ["host"] * 3
    assert results(stage.relay) == before


def test_what_a_partial_clone_lacks_passes_without_a_probe(stage: Stage, tmp_path: Path) -> None:
    bare, relay = stage.repo("partial/app"), stage.relay
    env = relay.git_env(tmp_path / "home")
    for number in range(3):
        git("clone", "-q", "--filter=blob:none", "--no-checkout", relay.url("partial/app"), tmp_path / f"{number}", env=env)
    mark, runs = stage.mark, stage.runs.count
    for number in range(3):
        git("checkout", "-q", "main", cwd=tmp_path / f"{number}", env=env)  # fetches its blobs
        git("show", "--stat", "main~9", cwd=tmp_path / f"{number}", env=env)
        fsck(tmp_path / f"{number}", env)
    by = served(relay, mark, 3)
    assert set(by) == {"host"} and stage.runs.count - runs == len(by), "one run each: no probe"
    assert (tmp_path / "2" / "README").read_bytes() == git("show", "main:README", cwd=bare, env=env).stdout


def test_a_fetch_of_what_is_new_passes(stage: Stage, tmp_path: Path) -> None:
    """It has lines of what the client has."""
    bare, relay = stage.repo("fetch/app"), stage.relay
    env = relay.git_env(tmp_path / "home")
    works = [tmp_path / f"{number}" for number in range(3)]
    for work in works:
        git("clone", "-q", relay.url("fetch/app"), work, env=env)
    pushed = commit(works[0], env)
    git("push", "-q", cwd=works[0], env=env)
    mark = stage.mark
    for work in works[1:]:
        git("fetch", "-q", cwd=work, env=env)
        assert rev_parse(work, env, "origin/main") == pushed == rev_parse(bare, env, "main")
        fsck(work, env)
    assert served(relay, mark, 2) == ["host", "host"]


def test_a_shallow_clone_that_is_deepened_passes(stage: Stage, tmp_path: Path) -> None:
    """It has shallow lines."""
    bare, relay = stage.repo("deepen/app"), stage.relay
    env = relay.git_env(tmp_path / "home")
    for number in range(3):
        git("clone", "-q", "--depth=1", relay.url("deepen/app"), tmp_path / f"{number}", env=env)
    mark = stage.mark
    for number in range(3):
        git("fetch", "-q", "--unshallow", cwd=tmp_path / f"{number}", env=env)
        is_whole(tmp_path / f"{number}", bare, env, "main")
    assert set(served(relay, mark, 3)) == {"host"}


def test_an_empty_repository_and_a_list_of_refs_ask_for_no_pack(stage: Stage, tmp_path: Path) -> None:
    env, relay = stage.relay.git_env(tmp_path / "home"), stage.relay
    git("init", "-q", "--bare", stage.sshd.root / "empty/app.git", env=env)
    before, mark = results(relay), stage.mark
    for number in range(3):
        git("clone", "-q", relay.url("empty/app"), tmp_path / f"{number}", env=env)
        git("ls-remote", relay.url("empty/app"), env=env)
    assert served(relay, mark, 6) == ["host"] * 6
    assert results(relay) == before


def test_first_keeps_already_the_first(make_sshd: type[Sshd], tmp_path: Path) -> None:
    sshd = make_sshd()
    runs = Runs(sshd, tmp_path / "runs")
    bare = make_repo(sshd.root / "team/app.git")
    with RelayProcess(sshd, config=packs(tmp_path / "packs", first=True)) as relay:
        env = relay.git_env(tmp_path / "home")
        for number in range(3):
            git("clone", "-q", relay.url("team/app"), tmp_path / f"{number}", env=env)
            is_whole(tmp_path / f"{number}", bare, env)
        assert served(relay, 0, 3) == ["cache"] * 3
        assert runs.count == 1 and results(relay) == {"filled": 1, "hit": 2}
        [entry] = entries(tmp_path / "packs")
        body = entry.stat().st_size - 4096
        assert relay.metric("relay_packs_bytes_total", direction="in") == body
        assert relay.metric("relay_packs_bytes_total", direction="out") == 3 * body


def test_off_by_default(relay: RelayProcess, sshd: Sshd, tmp_path: Path) -> None:
    bare = make_repo(sshd.root / "team/app.git")
    env, mark = relay.git_env(tmp_path / "home"), len(relay.audit_lines())
    for number in range(3):
        git("clone", "-q", relay.url("team/app"), tmp_path / f"{number}", env=env)
        is_whole(tmp_path / f"{number}", bare, env)
    assert served(relay, mark, 3) == ["host"] * 3
