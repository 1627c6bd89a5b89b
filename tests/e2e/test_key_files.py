"""One file of authorized_keys lines for a serving relay: options that apply, CAs for one person, and edits without a signal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.helpers import audited
from tests.support.certificates import PAST, Ca
from tests.support.keys import Key, make_key
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

ENV = "git-upload-pack 'stub/env'"
EVERYONE = {"rule": [{"repositories": "**", "who": ["*"], "allow": "write"}]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Key]:
    folder = tmp_path_factory.mktemp("made")
    return {name: make_key(folder, name) for name in ("alice", "bob", "carol", "dave", "erin")}


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    return Ca(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def relay(sshd: Sshd, made: dict[str, Key], ca: Ca) -> Iterator[RelayProcess]:
    process = RelayProcess(sshd, config={"keys": {"path": "authorized_keys"}}, access=EVERYONE)
    no = "no-port-forwarding,no-X11-forwarding,no-agent-forwarding,no-pty"
    (process.folder / "authorized_keys").write_text(
        f'# gitolite start\ncommand="/home/git/bin/gitolite-shell alice",{no} {made["alice"].line}\n# gitolite end\n'
        f'identity="bob",from="127.0.0.0/8" {made["bob"].line}\n'
        f'identity="carol",from="192.0.2.0/24" {made["carol"].line}\n'
        f'identity="dave",expiry-time="20200102" {made["dave"].line}\n'
        f'identity="frank",cert-authority {ca.key.line}\n'
    )
    with process:
        yield process


def who(relay: RelayProcess, key: Key, *options: str) -> str:
    """The identity in the git host's environment, or the reasons why the login failed."""
    since = len(relay.audit_lines())
    done = relay.ssh(*options, key=key).run(ENV)
    if done.returncode == 255:
        assert b"Permission denied (publickey)" in done.stderr
        audited(relay, since, event="login_failed")
        return " ".join(line["reason"] for line in relay.audit_lines()[since:] if line["event"] == "auth_failed")
    assert (done.returncode, done.stderr) == (0, b"")
    return dict(line.split("=", 1) for line in done.stdout.decode().splitlines())["RELAY_IDENTITY"]


def test_each_line_says_whose_its_key_is_and_when(relay: RelayProcess, made: dict[str, Key]) -> None:
    expected = {"alice": "alice", "bob": "bob", "carol": "source_address", "dave": "expired", "erin": "unknown_key"}
    assert {name: who(relay, key) for name, key in made.items()} == expected


def test_certificates_of_one_person_s_ca(relay: RelayProcess, made: dict[str, Key], ca: Ca) -> None:
    def certified(name: str, **how: object) -> str:
        path = ca.sign(made["erin"], name, **how)  # type: ignore[arg-type]
        return f'CertificateFile="{path}"'

    assert who(relay, made["erin"], certified("alice")) == "frank", "the key id is not asked"
    assert who(relay, made["erin"], certified("frank", principals=["root"])) == "certificate unknown_key"
    assert who(relay, made["erin"], certified("frank", validity=PAST)) == "expired unknown_key"
    assert who(relay, ca.key) == "unknown_key", "the CA's key itself is nobody's"


def test_an_edit_holds_without_a_signal_and_a_broken_one_does_not(relay: RelayProcess, made: dict[str, Key]) -> None:
    path: Path = relay.folder / "authorized_keys"
    before = path.read_text()
    path.write_text(before + f'identity="erin" {made["erin"].line}\n')
    wait_until(lambda: who(relay, made["erin"]) == "erin", message="the new line holds")
    path.write_text(before + f'command="id",identity="erin" {made["erin"].line}\n')
    wait_until(lambda: who(relay, made["erin"]) == "erin" and "forces the command" in relay.log_text(), message="the broken line is told")
    path.write_text(before)
    wait_until(lambda: who(relay, made["erin"]) == "unknown_key", message="the line is gone")
