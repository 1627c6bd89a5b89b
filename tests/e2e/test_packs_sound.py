"""What packs must never do: serve what the git host would not, to whom it would not, or what is older than an accepted push."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.e2e.helpers import audited
from tests.e2e.packing import Runs, entries, is_whole, packs, results, served
from tests.support.gitrepo import commit, fsck, git, git_env, make_repo, refs, rev_parse
from tests.support.keys import Key, make_key
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd


@pytest.fixture(scope="module")
def bob(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("bob"), "bob")


@pytest.fixture(scope="module")
def kept(sshd: Sshd, bob: Key, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    """A relay that keeps already the first; bob may read nothing of what is private."""
    rules = [
        {"repositories": "private/**", "who": ["alice"], "allow": "write"},
        {"repositories": "team/**", "who": ["alice", "bob"], "allow": "write"},
    ]
    process = RelayProcess(sshd, config=packs(tmp_path_factory.mktemp("packs"), first=True), access={"rule": rules})
    process.add_key("bob", bob.line)
    with process:
        yield process


def fetch(relay: RelayProcess, repository: str, wanted: str, work: Path, env: dict[str, str]) -> CompletedProcess[bytes]:
    """As CI checks out: one commit by its id, without ls-refs."""
    git("init", "-q", work, env=env)
    return git("fetch", "-q", "--no-tags", "--depth=1", relay.url(repository), wanted, cwd=work, env=env, check=False)


def test_another_identity_without_access_gets_nothing(kept: RelayProcess, sshd: Sshd, bob: Key, tmp_path: Path) -> None:
    bare = make_repo(sshd.root / "private/app.git")
    env, of_bob = kept.git_env(tmp_path / "home"), kept.git_env(tmp_path / "bob", key=bob)
    wanted, before = rev_parse(bare, env), results(kept)
    for number in range(2):
        git("clone", "-q", kept.url("private/app"), tmp_path / f"{number}", env=env)
        assert fetch(kept, "private/app", wanted, tmp_path / f"sha-{number}", env).returncode == 0
    now = results(kept)
    assert now["hit"] == before.get("hit", 0) + 2
    for done in (
        git("clone", "-q", kept.url("private/app"), tmp_path / "no", env=of_bob, check=False),
        fetch(kept, "private/app", wanted, tmp_path / "nothing", of_bob),
    ):
        assert done.returncode == 128 and b"repository not found, or you may not do this" in done.stderr
    assert results(kept) == now


def test_identities_that_both_may_read_share_an_entry(kept: RelayProcess, sshd: Sshd, bob: Key, tmp_path: Path) -> None:
    bare = make_repo(sshd.root / "team/shared.git")
    mark = len(kept.audit_lines())
    for name, key in (("alice", kept.key), ("bob", bob)):
        env = kept.git_env(tmp_path / name, key=key)
        before = results(kept).get("hit", 0)
        git("clone", "-q", kept.url("team/shared"), tmp_path / f"of-{name}", env=env)
        is_whole(tmp_path / f"of-{name}", bare, env)
        assert results(kept).get("hit", 0) - before == (name == "bob")
    assert served(kept, mark, 2) == ["cache", "cache"]


def test_what_the_host_has_no_more_is_not_served(kept: RelayProcess, sshd: Sshd, tmp_path: Path) -> None:
    """Entries of a commit are there that was deleted: the host says so to the probe, and the client reads it from the host."""
    bare = make_repo(sshd.root / "team/deleted.git")
    env = kept.git_env(tmp_path / "home")
    work = tmp_path / "work"
    git("clone", "-q", kept.url("team/deleted"), work, env=env)
    secret = commit(work, env, "secret")
    git("push", "-q", "origin", "HEAD:refs/heads/secret", cwd=work, env=env)
    for number in range(2):
        assert fetch(kept, "team/deleted", secret, tmp_path / f"{number}", env).returncode == 0
    before = results(kept)
    git("push", "-q", "origin", ":refs/heads/secret", cwd=work, env=env)
    git("reflog", "expire", "--expire=now", "--all", cwd=bare, env=env)
    git("gc", "-q", "--prune=now", cwd=bare, env=env)
    mark = len(kept.audit_lines())
    done = fetch(kept, "team/deleted", secret, tmp_path / "late", env)
    assert done.returncode == 128 and b"not our ref" in done.stderr and done.stderr.count(b"not our ref") <= 2
    assert not list((tmp_path / "late/.git/objects/pack").iterdir())
    assert results(kept)["passed"] == before.get("passed", 0) + 1 and results(kept).get("hit") == before.get("hit")
    [line] = audited(kept, mark, 1, service="git-upload-pack")
    assert (line["result"], line["exit_status"], line["served_by"]) == ("exit", 128, "host")
    assert fetch(kept, "team/deleted", rev_parse(bare, env), tmp_path / "there", env).returncode == 0


@pytest.mark.parametrize("agrees", [True, False])
def test_an_object_of_a_hidden_ref_follows_what_the_host_says(make_sshd: type[Sshd], tmp_path: Path, agrees: bool) -> None:
    """git itself serves it by its id; a host with rules of its own (a hook of upload-pack here) may not, and may change its mind."""
    sshd = make_sshd()
    runs = Runs(sshd, tmp_path / "runs")
    bare = make_repo(sshd.root / "team/app.git")
    env = git_env(tmp_path / "local")
    hidden = git("commit-tree", "-p", "main", "-m", "hidden", "main^{tree}", cwd=bare, env=env).stdout.decode().strip()
    git("update-ref", "refs/internal/hidden", hidden, cwd=bare, env=env)
    git("config", "uploadpack.hideRefs", "refs/internal", cwd=bare, env=env)
    with RelayProcess(sshd, config=packs(tmp_path / "packs", first=True)) as relay:
        env = relay.git_env(tmp_path / "home")
        assert fetch(relay, "team/app", hidden, tmp_path / "first", env).returncode == 0
        if not agrees:
            runs.refuse()
        done = fetch(relay, "team/app", hidden, tmp_path / "second", env)
        if agrees:
            assert done.returncode == 0 and results(relay) == {"filled": 1, "hit": 1}
            fsck(tmp_path / "second", env)
        else:
            assert done.returncode != 0 and results(relay) == {"filled": 1, "passed": 1}
            assert not list((tmp_path / "second/.git/objects/pack").iterdir())


def test_with_a_login_for_each_identity_entries_are_its_own(sshd_installed: None, bob: Key, tmp_path: Path) -> None:
    ca = make_key(tmp_path / "ca", "relay_ca")
    principals = tmp_path / "principals"
    principals.write_text("alice\nbob\nrelay-check\n")
    config = [f"TrustedUserCAKeys {ca.public}", f"AuthorizedPrincipalsFile {principals}", "AuthorizedKeysFile none", "StrictModes no"]
    with ExitStack() as stack:
        sshd = stack.enter_context(Sshd(config=config))
        bare = make_repo(sshd.root / "team/app.git")
        certificate = {"upstreams": {"main": {"user_certificate": {"ca_key": str(ca.private)}}}}
        everyone = {"rule": [{"repositories": "**", "who": ["*"], "allow": "write"}]}
        relay = RelayProcess(sshd, config={**packs(tmp_path / "packs", first=True), **certificate}, access=everyone)
        relay.add_key("bob", bob.line)
        stack.enter_context(relay)
        for name, key in (("alice", relay.key), ("bob", bob)):
            env = relay.git_env(tmp_path / name, key=key)
            for number in range(2):
                git("clone", "-q", relay.url("team/app"), tmp_path / f"{name}-{number}", env=env)
                is_whole(tmp_path / f"{name}-{number}", bare, env)
        assert results(relay) == {"filled": 2, "hit": 2}
        assert len(entries(tmp_path / "packs")) == 2


def test_a_tag_that_moves_is_not_served_as_it_was(kept: RelayProcess, sshd: Sshd, tmp_path: Path) -> None:
    """git asks for tags along (include-tag): which come is decided by the tags, not by the wants."""
    bare = make_repo(sshd.root / "team/tags.git")
    env = kept.git_env(tmp_path / "home")
    for number in range(3):
        git("tag", "-f", "-a", "-m", f"number {number}", "v1", "main~1", cwd=bare, env=env)
        for again in range(2):
            work = tmp_path / f"{number}-{again}"
            git("clone", "-q", "--single-branch", kept.url("team/tags"), work, env=env)
            fsck(work, env)
            assert git("cat-file", "-p", "v1", cwd=work, env=env).stdout.endswith(f"number {number}\n".encode())


# -- pushes in between -----------------------------------------------------------------------------------------------------

BRANCHES, TAGS = ("main", "topic", "other"), ("v1", "v2")


class Pushing:
    """A repository into which one pushes while others clone; `states` has the refs after each accepted push, oldest first."""

    def __init__(self, relay: RelayProcess, bare: Path, folder: Path) -> None:
        self.relay, self.bare, self.folder = relay, bare, folder
        self.env = relay.git_env(folder / "home")
        self.work = folder / "pusher"
        self.url = relay.url(f"{bare.parent.name}/{bare.stem}")
        git("clone", "-q", self.url, self.work, env=self.env)
        self.states = [refs(bare, self.env)]

    def push(self, kind: str, number: int) -> None:
        command: tuple[str, ...]
        branch, tag = BRANCHES[number % len(BRANCHES)], TAGS[number % len(TAGS)]
        at = ("HEAD", "HEAD~1", "HEAD~2")[number % 3]
        if kind in ("commit", "force"):
            if kind == "force":
                git("reset", "-q", "--hard", "HEAD~1", cwd=self.work, env=self.env)
            commit(self.work, self.env, f"file-{number}", os.urandom(100))
            command = ("push", "-q", "-f", "origin", f"HEAD:refs/heads/{branch}")
        elif kind == "delete":
            command = ("push", "-q", "origin", f":refs/heads/{BRANCHES[1 + number % 2]}")
        elif kind == "untag":
            command = ("push", "-q", "origin", f":refs/tags/{tag}")
        else:
            annotated = ("-a", "-m", f"{number}") if kind == "annotate" else ()
            git("tag", "-f", *annotated, tag, at, cwd=self.work, env=self.env)
            command = ("push", "-q", "-f", "origin", f"refs/tags/{tag}")
        git(*command, cwd=self.work, env=self.env, check=kind not in ("delete", "untag"))  # what is not there cannot be deleted
        self.states.append(refs(self.bare, self.env))

    def clone(self, *options: str, number: str) -> None:
        """Whoever clones after a push was accepted has it: the refs are those of a state that was in force meanwhile."""
        work = self.folder / f"clone-{number}"
        since = len(self.states) - 1
        git("clone", "-q", "--mirror", *options, self.url, work, env=self.env)
        meanwhile = [*self.states[since:], refs(self.bare, self.env)]
        fsck(work, self.env)
        assert refs(work, self.env) in meanwhile, (refs(work, self.env), meanwhile)
        shutil.rmtree(work)


KINDS = st.sampled_from(("commit", "force", "delete", "tag", "annotate", "untag"))


@settings(max_examples=5)
@given(kinds=st.lists(KINDS, min_size=3, max_size=8))
def test_whoever_clones_after_a_push_gets_it(kept: RelayProcess, sshd: Sshd, kinds: list[str]) -> None:
    with TemporaryDirectory() as folder:
        name = Path(folder).name
        pushing = Pushing(kept, make_repo(sshd.root / f"team/{name}.git", commits=4), Path(folder))
        for number, kind in enumerate(kinds):
            pushing.push(kind, number)
            for again in range(2):
                pushing.clone(*(("--depth=2", "--no-single-branch") if number % 2 else ()), number=f"{number}-{again}")
            assert refs(pushing.bare, pushing.env) == pushing.states[-1]


def test_whoever_clones_while_others_push_gets_what_was_accepted(make_sshd: type[Sshd], tmp_path: Path) -> None:
    sshd = make_sshd()
    with RelayProcess(sshd, config={**packs(tmp_path / "packs", first=True), "workers": 2}) as relay:
        pushing = Pushing(relay, make_repo(sshd.root / "team/busy.git", commits=4), tmp_path)
        over = threading.Event()

        def clone(number: int) -> int:
            count = 0
            while not over.is_set() or not count:
                pushing.clone(*(("--depth=1", "--no-single-branch") if count % 2 else ()), number=f"{number}-{count}")
                count += 1
            return count

        with ThreadPoolExecutor(3) as pool:
            clones = [pool.submit(clone, number) for number in range(3)]
            try:
                for number, kind in enumerate(("commit", "annotate", "force", "tag", "commit", "delete", "untag", "force") * 3):
                    pushing.push(kind, number)
            finally:
                over.set()
            assert sum(one.result() for one in clones) > len(clones)
        came = results(relay)
        assert came["filled"] and "failed" not in came
