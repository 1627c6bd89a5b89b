"""The real git through a relay that logs in as the session's identity, to a real sshd that trusts the relay's CA and no key."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.helpers import audited
from tests.support.gitrepo import git, make_repo
from tests.support.keys import Key, make_key
from tests.support.problems import unplaced
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]
PEOPLE = ("alice", "bob", "carol", "relay-check")
EVERYONE = {"rule": [{"repositories": "**", "who": ["*"], "allow": "write"}]}
ACCEPTED = re.compile(r"Accepted publickey for (\S+) from \S+ port (\d+) ssh2: ED25519-CERT \S+ ID (\S+) \(serial (\d+)\) CA ED25519 (\S+)")


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("ca"), "relay_ca")


@pytest.fixture(scope="module")
def trusting(sshd_installed: None, ca: Key, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    folder = tmp_path_factory.mktemp("principals")
    (folder / "principals").write_text("".join(f"{name}\n" for name in PEOPLE))
    folder.chmod(0o755)
    config = [f"TrustedUserCAKeys {ca.public}", f"AuthorizedPrincipalsFile {folder}/principals", "AuthorizedKeysFile none"]
    with Sshd(config=config) as sshd:
        yield sshd


def settings(ca: Key, **more: Any) -> dict[str, Any]:
    return {"upstreams": {"main": {"user_certificate": {"ca_key": str(ca.private), **more}}}}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Key]:
    folder = tmp_path_factory.mktemp("people")
    return {name: make_key(folder, name) for name in ("alice", "bob", "carol", "mallory")}


@pytest.fixture(scope="module")
def relay(trusting: Sshd, ca: Key, people: dict[str, Key]) -> Iterator[RelayProcess]:
    process = RelayProcess(trusting, config=settings(ca), access=EVERYONE)
    for name, key in people.items():
        process.add_key(name, key.line)
    with process:
        yield process


def logins(sshd: Sshd, mark: int = 0) -> list[tuple[str, str, str]]:
    """User, certificate ID and CA of each login in sshd's log."""
    return [(user, name, ca) for user, _, name, _, ca in ACCEPTED.findall(sshd.log_text(mark))]


def test_clone_and_push_are_the_person_s_own(relay: RelayProcess, trusting: Sshd, ca: Key, people: dict[str, Key], tmp_path: Path) -> None:
    mark = trusting.log_mark()
    make_repo(trusting.root / "team" / "app.git")
    env = relay.git_env(tmp_path / "home", key=people["bob"])
    git("clone", "-q", relay.url("team/app"), str(tmp_path / "work"), env=env)
    (tmp_path / "work" / "new").write_text("new")
    git("-C", str(tmp_path / "work"), "add", "new", env=env)
    git("-C", str(tmp_path / "work"), "commit", "-qm", "new", env=env)
    git("-C", str(tmp_path / "work"), "push", "-q", env=env)
    assert set(logins(trusting, mark)) == {(trusting.user, "bob", ca.fingerprint)}


def test_everybody_has_connections_of_their_own(relay: RelayProcess, trusting: Sshd, people: dict[str, Key]) -> None:
    """Sessions at once and one after another; sshd's log says with which certificate each command's connection logged in."""
    mark, since = trusting.log_mark(), len(relay.audit_lines())
    wrong: list[str] = []

    def work(name: str) -> None:
        for _ in range(4):
            done = relay.ssh(key=people[name]).run("git-upload-pack 'stub/env'")
            if f"RELAY_IDENTITY={name}\n".encode() not in done.stdout:
                wrong.append(f"{name}: {done!r}")

    threads = [threading.Thread(target=work, args=(name,)) for name in ("alice", "bob", "carol") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    audited(relay, since, 24, event="session")
    ids = dict(re.findall(r"Accepted publickey for \S+ from \S+ port (\d+) ssh2: \S+ \S+ ID (\S+)", trusting.log_text()))
    sessions = re.findall(r"Starting session: forced-command .* from \S+ port (\d+) id", trusting.log_text(mark))
    assert len(sessions) == 24
    assert sorted(ids[port] for port in sessions) == sorted(("alice", "bob", "carol") * 8), "as often as each ran something"
    assert relay.metric("relay_upstream_connections", upstream="main") >= 3


def test_who_the_git_host_does_not_know_is_refused_alone(relay: RelayProcess, trusting: Sshd, people: dict[str, Key]) -> None:
    since = len(relay.audit_lines())
    done = relay.ssh(key=people["mallory"]).run("git-upload-pack 'stub/env'")
    assert (done.returncode, done.stderr) == (255, b"relay: the git host is unavailable, try again in a moment\n")
    assert audited(relay, since, event="session")[0]["reason"] == "auth"
    assert relay.ssh(key=people["alice"]).run("git-upload-pack 'stub/env'").returncode == 0


def check(relay: RelayProcess, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "relay", "check", "-c", str(relay.config_file), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_check_logs_in_with_a_certificate_for_somebody_harmless(relay: RelayProcess, trusting: Sshd) -> None:
    mark = trusting.log_mark()
    done = check(relay, "--connect")
    assert done.returncode == 0, done.stderr
    where = f"{trusting.address}:{trusting.port} as {trusting.user}"
    assert re.search(rf"upstream main: logged in to {re.escape(where)} with a certificate for relay-check in \d+ ms", done.stdout)
    assert [name for _, name, _ in wait_until(lambda: logins(trusting, mark))] == ["relay-check"]


def test_check_says_when_the_git_host_does_not_trust_the_ca(trusting: Sshd, tmp_path: Path) -> None:
    relay = RelayProcess(trusting, tmp_path, config=settings(make_key(tmp_path, "other_ca")))
    done = check(relay, "--connect")
    assert done.returncode == 1
    assert re.search(r"relay\.toml:\d+: upstreams\.main\.addresses: \S+: the key of user '\S+' was refused", done.stderr)


def test_a_ca_key_that_cannot_be_read_is_one_line(trusting: Sshd, tmp_path: Path) -> None:
    relay = RelayProcess(trusting, tmp_path, config={"upstreams": {"main": {"user_certificate": {"ca_key": "none"}}}})
    done = check(relay)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "relay.toml: upstreams.main.user_certificate.ca_key: " in unplaced(done.stderr)
    assert "none is missing, must be a private key" in done.stderr
