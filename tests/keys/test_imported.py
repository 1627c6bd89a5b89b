"""The keys of an authorized_keys as sshd, gitolite and forges have it: whose each is, and which are left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.commands.init import init
from relay.keys.file import load
from relay.keys.imported import import_keys, read_person
from tests.support.keys import Key, make_key

DSA = "ssh-dss AAAAB3NzaC1kc3MAAACBAP"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Key]:
    return [make_key(tmp_path_factory.mktemp("made"), f"key{number}") for number in range(4)]


def bare(key: Key) -> str:
    """Type and base64, without a comment."""
    return " ".join(key.line.split()[:2])


@pytest.mark.parametrize(
    ("options", "comment", "name"),
    [
        ("", "alice", "alice"),
        ("", "alice@laptop", "alice"),
        ("", "alice@example.com", "alice@example.com"),
        ("", "Alice Smith <alice@example.com>", "alice@example.com"),
        ("no-pty,no-port-forwarding ", "alice@laptop", "alice"),
        ('command="git-shell -c \\"$SSH_ORIGINAL_COMMAND\\"",restrict ', "alice", "alice"),
        ('command="/usr/bin/git-shell" ', "alice", "alice"),
        ('command="/home/git/bin/gitolite-shell carol",no-pty ', "alice@laptop", "carol"),
        ('environment="TZ=UTC",environment="REMOTE_USER=dave" ', "alice", "dave"),
        ('identity="eve" ', "alice", "eve"),
    ],
)
def test_whose_a_key_is(made: list[Key], options: str, comment: str, name: str) -> None:
    assert read_person(f"{options}{bare(made[0])} {comment}").name == name


@pytest.mark.parametrize(
    ("options", "comment", "reason"),
    [
        ("", "", "does not say whose the key is: it has no comment"),
        ("", "the old build machine", 'its comment "the old build machine" is no name'),
        ('command="/opt/gitlab/embedded/service/gitlab-shell/bin/gitlab-shell key-17" ', "Alice", "names a key and not a person"),
        ('command="rrsync /backup" ', "backup", 'forces the command "rrsync /backup": whoever has this key may do that and nothing else'),
        ('identity="alice@laptop" ', "", 'would be cut to "alice" as the name of a file of keys'),
        ('identity=".alice" ', "", "begins with a dot"),
        ("", "@core", "is empty, must be a name"),
        ('identity="*" ', "", "must not be *"),
        ('identity="a",command="gitolite-shell b" ', "", 'is "a" by identity= and "b" by command=, must be one'),
        ('agent-restriction="x" ', "alice", "which the relay cannot see to"),
    ],
)
def test_why_a_line_is_left_out(made: list[Key], options: str, comment: str, reason: str) -> None:
    with pytest.raises(ValueError) as raised:
        read_person(f"{options}{bare(made[0])} {comment}".rstrip())
    assert reason in str(raised.value)


def test_a_key_that_is_too_weak_is_named_for_that_and_not_for_its_comment() -> None:
    with pytest.raises(ValueError, match="is a DSA key"):
        read_person(DSA)


def test_conditions_of_a_key_go_with_it(made: list[Key], tmp_path: Path) -> None:
    path = tmp_path / "authorized_keys"
    given = f'from="10.0.0.0/8,!10.1.*",expiry-time="20300102Z",command="git-shell",no-pty {bare(made[0])} alice'
    path.write_text(f'{given}\ncert-authority,principals="ops,dev" {bare(made[1])} ca-owner\n')
    imported = import_keys([path])
    assert imported.left_out == []
    assert imported.files["alice.pub"] == f'from="10.0.0.0/8,!10.1.*",expiry-time="20300102Z" {bare(made[0])} alice\n'
    assert imported.files["ca-owner.pub"] == f'cert-authority,principals="ops,dev" {bare(made[1])} ca-owner\n'


def test_files_together_a_key_given_twice_and_one_that_two_have(made: list[Key], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text(f"# ours\n\n{bare(made[0])} alice@laptop\n{bare(made[1])} alice@desk\n{bare(made[2])} bob\n")
    two.write_text(f'{bare(made[0])} alice@home\n{bare(made[2])} carol\nfrom="10.*" {bare(made[1])} alice\n{bare(made[3])} bob\n')
    imported = import_keys([one, two])
    assert imported.files == {"alice.pub": f"{bare(made[0])} alice@laptop\n", "bob.pub": f"{bare(made[3])} bob\n"}
    assert imported.keys == 2
    assert imported.left_out == [
        f"{one}:4: the key {made[1].fingerprint} of alice is listed twice with different options, must be listed once",
        f"{two}:3: the key {made[1].fingerprint} of alice is listed twice with different options, must be listed once",
        f'{one}:5: the key {made[2].fingerprint} is that of "bob" and "carol", must be of one',
        f'{two}:2: the key {made[2].fingerprint} is that of "bob" and "carol", must be of one',
    ]


def test_init_takes_a_sites_file_and_the_relay_takes_what_it_wrote(
    made: list[Key], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "authorized_keys"
    path.write_text("\n".join(f"{bare(key)} person{number}@host" for number, key in enumerate(made)) + f"\n{DSA} old@host\n")
    assert init(tmp_path / "etc", [path]) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"left out: {path}:5: is a DSA key (ssh-dss), which is too weak") and said.err.count("\n") == 1
    assert f"3. 4 keys in 4 files of {tmp_path}/etc/keys; 1 line left out, named above." in said.out
    book, problems = load(tmp_path / "etc/keys")
    assert problems == []
    assert book.owners == {key.fingerprint: f"person{number}" for number, key in enumerate(made)}
    assert ((tmp_path / "etc/keys/person0.pub").stat().st_mode & 0o777) & ~0o644 == 0


@pytest.mark.parametrize("fault", ["missing", "a private key", "no key", "a person's file is there"])
def test_init_writes_nothing_when_the_file_cannot_be_taken(
    made: list[Key], tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    path, etc = tmp_path / "authorized_keys", tmp_path / "etc"
    if fault == "a private key":
        path.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    elif fault == "no key":
        path.write_text("# nothing\n")
    elif fault == "a person's file is there":
        path.write_text(f"{bare(made[0])} alice\n")
        (etc / "keys").mkdir(parents=True)
        (etc / "keys/alice.pub").write_text("")
    assert init(etc, [path]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("nothing was written")
    assert str(path) in line or "alice.pub: is there already" in line
    assert not (etc / "relay.toml").exists()
