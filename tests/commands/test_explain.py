"""`relay check --explain`: the same answer as a session's, and what decides it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from relay.cli import main
from tests.support.authority import Authority
from tests.support.keys import make_key
from tests.support.problems import unplaced
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd

Explain = Callable[[str, str, str], tuple[int, dict[str, list[str]]]]


@pytest.fixture
def relay(sshd: Sshd, tmp_path: Path) -> RelayProcess:
    """A relay that is never started: `check` reads its folder and configuration."""
    relay = RelayProcess(sshd, tmp_path / "relay")
    relay.add_key("bob", make_key(tmp_path, "bob").line)
    rules = [
        {"repositories": "team/**", "who": ["alice"], "allow": "write"},
        {"repositories": "team/**", "who": ["bob"], "allow": "read"},
        {"repositories": "closed", "who": ["alice"], "allow": "write"},
    ]
    relay.write_access({"rule": rules})
    closed = {"repositories": "closed", "upstream": "main", "path": "/srv/closed.git", "read_only": "moved to the attic"}
    relay.write_routes({"route": [closed, {"repositories": "team/**", "upstream": "main", "path": "/srv/{repository}.git"}]})
    return relay


@pytest.fixture
def explain(relay: RelayProcess, capsys: pytest.CaptureFixture[str]) -> Explain:
    """The exit status, and the lines by their first word, without the path."""

    def run(*question: str) -> tuple[int, dict[str, list[str]]]:
        status = main(["check", "-c", str(relay.config_file), "--explain", *question])
        said: dict[str, list[str]] = {}
        captured = capsys.readouterr()
        for line in captured.out.splitlines():
            what, _, text = line.partition(" ")
            said.setdefault(what, []).append(unplaced(text.strip()).removeprefix(f"{relay.folder}/"))
        said["problems"] = captured.err.splitlines()
        return status, said

    return run


def test_a_push_that_is_allowed(explain: Explain, sshd: Sshd) -> None:
    status, said = explain("alice", "git-receive-pack", "/team/app.git")
    assert (status, said["answer"], said["problems"]) == (0, ['yes: "alice" may write team/app'], [])
    assert said["command"] == ["git-receive-pack of team/app, which needs write"]
    assert len(said["keys"]) == 1 and '"alice" has 1 key: SHA256:' in said["keys"][0]
    assert said["access"][1].endswith("rule#1: allows write for alice: applies")
    assert said["routes"][0].endswith("route#2: team/** leads to upstream main: decides")
    assert f"git-receive-pack '/srv/team/app.git' as {sshd.user} with " in said["upstream"][0]


def test_a_push_of_somebody_who_may_read(explain: Explain) -> None:
    status, said = explain("bob", "git-receive-pack", "team/app")
    assert (status, said["answer"]) == (
        1,
        ["no: no rule allows bob to write team/app; the client reads: relay: you may read team/app, not write it"],
    )
    assert explain("bob", "git-upload-pack", "team/app")[0] == 0
    assert explain("bob", "git-lfs-authenticate upload", "team/app")[0] == 1
    assert explain("bob", "git-lfs-authenticate download", "team/app")[0] == 0


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (("bob", "git-upload-pack", "closed"), "no: no rule allows bob to read closed; the client reads: relay: repository not found, or"),
        (("alice", "git-receive-pack", "closed"), "no: the route is read-only: moved to the attic"),
        (("carol", "git-upload-pack", "team/app"), "no: no rule allows carol"),
    ],
)
def test_each_no_has_its_reason(explain: Explain, question: tuple[str, str, str], answer: str) -> None:
    status, said = explain(*question)
    assert status == 1 and said["answer"][0].startswith(answer)


def test_who_has_no_key_cannot_log_in(explain: Explain, relay: RelayProcess) -> None:
    relay.write_access({"rule": [{"repositories": "**", "who": ["*"], "allow": "read"}]})
    status, said = explain("carol", "git-upload-pack", "team/app")
    assert (status, said["answer"]) == (1, ['no: "carol" has no key to log in with; with one it might read team/app'])
    assert said["keys"][0].endswith('"carol" has no key')


@pytest.mark.parametrize(
    ("question", "problem"),
    [
        (("alice", "git-status", "team/app"), "--explain: only git commands are served here (got 'git-status')"),
        (("alice", "git-upload-pack", "../x"), "--explain: empty, '.', '..' and '.git' segments are not allowed in a repository name"),
        (("@core", "git-upload-pack", "x"), "--explain: the identity must not be * and must not begin with @"),
    ],
)
def test_a_question_that_cannot_be_asked(explain: Explain, question: tuple[str, str, str], problem: str) -> None:
    status, said = explain(*question)
    assert status == 1 and said["problems"][0].startswith(problem)


def test_an_old_remote_is_the_name_that_is_left(explain: Explain, relay: RelayProcess) -> None:
    relay.write_config({"names": {"strip": ["/srv/git/", "~/"]}})
    for path in ("/srv/git/team/app.git", "~/team/app.git", "team/app"):
        assert explain("alice", "git-upload-pack", path)[1]["command"] == ["git-upload-pack of team/app, which needs read"]


def test_a_git_host_that_ignores_case_is_asked_about_by_the_folded_name(explain: Explain, relay: RelayProcess) -> None:
    relay.write_config({"upstreams": {"main": {"ignore_case": True}}})
    status, said = explain("alice", "git-upload-pack", "Team/APP")
    assert (status, said["answer"]) == (0, ['yes: "alice" may read team/app'])


def test_an_authority_answers_itself(explain: Explain, relay: RelayProcess, tmp_path: Path) -> None:
    with Authority(tmp_path / "authority") as authority:
        relay.write_config({"access": {"source": "http", "path": None, "url": authority.url}})
        status, said = explain("alice", "git-upload-pack", "team/app")
        assert status == 1 and said["answer"][0].startswith("no: ")
        assert said["access"] == ["relay.toml: access: was asked"]
    status, said = explain("alice", "git-upload-pack", "team/app")
    assert status == 1 and said["problems"][0].startswith("--explain: unreachable: ")


def test_a_repository_that_has_moved(relay: RelayProcess, explain: Explain) -> None:
    routes = [{"repositories": "old", "moved_to": "team/app"}, {"repositories": "**", "upstream": "main", "path": "/srv/{repository}.git"}]
    relay.write_routes({"route": routes})
    status, said = explain("bob", "git-upload-pack", "old.git")
    assert (status, said["answer"]) == (0, ['yes: "bob" may read team/app'])
    assert said["moved"] == ["old is team/app now: access and routes are asked about that name"]
    status, said = explain("carol", "git-upload-pack", "old")
    assert status == 1 and "repository not found, or you may not do this" in said["answer"][0]


def test_what_policy_asks_for(relay: RelayProcess, explain: Explain) -> None:
    rules = [{"who": ["bob"], "security_keys_only": True, "from_networks": ["10.0.0.0/8"]}, {"who": ["alice"], "rsa_bits": 4096}]
    relay.write_config({"policy": {"rule": rules}})
    _, said = explain("bob", "git-upload-pack", "team/app")
    assert said["policy"][0] == "policy.rule#1: asks for security keys; logins from 10.0.0.0/8"
    assert said["policy"][1].endswith(
        "cannot log in: the key is of type ssh-ed25519, policy.rule#1 allows sk-ecdsa-sha2-nistp256@openssh.com, sk-ssh-ed25519@openssh.com"
    )
    assert explain("alice", "git-upload-pack", "team/app")[1]["policy"] == ["policy.rule#2: asks for RSA keys of 4096 bits"]
    assert "policy" not in explain("carol", "git-upload-pack", "team/app")[1]


def test_the_notices_that_the_client_reads(relay: RelayProcess, explain: Explain) -> None:
    relay.write_config({"notice": "for all"})
    relay.write_routes({"route": [{"repositories": "**", "upstream": "main", "path": "{repository}", "notice": "of the route"}]})
    said = explain("bob", "git-upload-pack", "team/app")[1]
    assert said["notice"] == [f"the client reads: relay: notice: {text}" for text in ("for all", "of the route")]
    assert "notice" not in explain("bob", "git-lfs-authenticate download", "team/app")[1]
