"""Keys in files: names, every fault, changes while the backend is asked, and 100,000 keys."""

from __future__ import annotations

import base64
import os
import random
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ConfigError
from relay.keys import NotAccepted, SpokenFor
from relay.keys import file as keys_file
from relay.keys.authorized_keys import AuthorizedKey
from relay.keys.file import FileKeys, KeyFiles, left_out, load, unread_files
from relay.openssh.public_key import fingerprint
from tests.support.keys import Key, make_key

WHAT = "a folder of .pub files, or a file of lines as in authorized_keys"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.mkdir()
    return path


@pytest.fixture
def made(tmp_path: Path) -> list[Key]:
    return [make_key(tmp_path / "made", f"key{number}") for number in range(4)]


def owners(folder: Path) -> tuple[Mapping[str, str], list[str]]:
    """The owner of each key, none of which has conditions, and the problems."""
    book, problems = load(folder)
    assert (book.conditions, book.authorities) == ({}, {})
    return book.owners, problems


async def owner(keys: FileKeys, key: Key) -> str | None:
    return await keys.owner(key.fingerprint, key.host_line)


@pytest.mark.parametrize(
    ("file", "identity"),
    [
        ("alice.pub", "alice"),
        ("alice@laptop.pub", "alice"),
        ("alice@example.com.pub", "alice@example.com"),
        ("alice@example.com@laptop.pub", "alice@example.com"),
        ("team/desk/alice.pub", "alice"),
        ("a b.pub", "a b"),
        ("0/alice.pub", "alice"),
        ("alice@home@desk.pub", "alice"),  # by gitolite's rule
    ],
)
def test_the_file_name_is_the_identity(folder: Path, made: list[Key], file: str, identity: str) -> None:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(made[0].line)
    assert owners(folder) == ({made[0].fingerprint: identity}, [])


def test_ignored_files(folder: Path, made: list[Key]) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "alice.pub").write_text("junk")
    (folder / ".alice.pub.swp").write_text("junk")
    (folder / "README").write_text("junk")
    (folder / "dangling.pub").symlink_to("nowhere")
    (folder / "folder.pub").mkdir()
    (folder / "alice.pub").write_text(f"\n# a comment\r\n  {made[0].line}  \r\n\n{made[1].line}")
    (folder / "empty.pub").touch()
    assert owners(folder) == ({made[0].fingerprint: "alice", made[1].fingerprint: "alice"}, [])


def test_links_are_followed_as_a_config_map_has_them(folder: Path, made: list[Key]) -> None:
    (folder / "..data").mkdir()
    (folder / "..data" / "alice.pub").write_text(made[0].line)
    (folder / "alice.pub").symlink_to("..data/alice.pub")
    assert owners(folder) == ({made[0].fingerprint: "alice"}, [])


def test_every_problem_is_one_line_with_file_and_number(folder: Path, made: list[Key]) -> None:
    (folder / "a.pub").write_text(f"{made[0].line}\nssh-dss AAAA\n\nhost.example.com {made[1].line}\n")
    (folder / "b.pub").write_text(f"{made[0].line}\n")
    (folder / "c.pub").write_bytes(made[2].private.read_bytes())
    (folder / "d.pub").write_text("---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n---- END SSH2 PUBLIC KEY ----\n")
    (folder / "e.pub").write_text(made[3].line)
    (folder / "e.pub").chmod(0o606)
    (folder / "@x.pub").write_text(made[2].line)
    (folder / "*.pub").write_text(made[2].line)
    _, problems = load(folder)
    types = "ssh-ed25519, ecdsa-sha2-nistp256, ecdsa-sha2-nistp384, ecdsa-sha2-nistp521, ssh-rsa, "
    types += "sk-ssh-ed25519@openssh.com, sk-ecdsa-sha2-nistp256@openssh.com"
    assert problems == [
        f'{folder}/*.pub: the identity "*" must not be * and must not begin with @, which have a meaning in access rules',
        f'{folder}/@x.pub: the identity "" is empty, must be a name',
        f"{folder}/a.pub:2: is a DSA key (ssh-dss), which is too weak; allowed are {types}",
        f"{folder}/a.pub:4: has something in front of the key (options or a host name), must begin with the key type: {types}",
        f"{folder}/b.pub: b has the key {made[0].fingerprint} of a ({folder}/a.pub), must have a key of their own",
        f"{folder}/c.pub: is a private key, must be a public key; take the private key away from here",
        f"{folder}/d.pub: is in the format of RFC 4716, must be 'type base64 comment': convert it with ssh-keygen -i -f FILE",
        f"{folder}/e.pub: may be written by everyone (mode 0606), must not: chmod o-w {folder}/e.pub",
    ]


def test_a_line_separator_in_a_comment_hides_no_second_key(folder: Path, made: list[Key]) -> None:
    (folder / "alice.pub").write_text(f"{made[0].line}\u2028{made[1].line}\x0b{made[2].line}")
    assert owners(folder) == ({made[0].fingerprint: "alice"}, [])


def test_the_same_key_twice_of_one_person_is_no_problem(folder: Path, made: list[Key]) -> None:
    (folder / "alice.pub").write_text(made[0].line)
    (folder / "alice@laptop.pub").write_text(made[0].line)
    assert owners(folder) == ({made[0].fingerprint: "alice"}, [])


def test_names_that_are_no_text_and_files_too_large(folder: Path, made: list[Key]) -> None:
    (folder / os.fsdecode(b"\xff\n.pub")).write_text(made[0].line)
    (folder / "large.pub").write_bytes(b"#" * (keys_file.PUB_FILE_BYTES + 1))
    _, problems = load(folder)
    assert problems == [
        f"{folder}/large.pub: is larger than the {keys_file.PUB_FILE_BYTES} bytes that are allowed",
        f'{folder}/??.pub: the identity "??" must have printable characters only, no slash, and no space at its ends',
    ]


def test_a_folder_that_cannot_be_read_is_one_problem(folder: Path) -> None:
    assert load(folder / "none")[1] == [f"{folder}/none: cannot be read (No such file or directory), must be {WHAT}"]
    (folder / "file").write_text("junk")
    assert load(folder / "file")[1][0].startswith(f'{folder}/file:1: begins with "junk"')
    folder.chmod(0o757)
    assert load(folder)[1] == [f"{folder}: may be written by everyone, must not: chmod o-w {folder}"]
    with pytest.raises(ConfigError, match="may be written by everyone"):
        FileKeys(folder)


def test_a_subfolder_that_everyone_may_write_is_a_problem(folder: Path, made: list[Key]) -> None:
    within = folder / "team" / "desk"
    within.mkdir(parents=True)
    (within / "alice.pub").write_text(made[0].line)
    assert owners(folder) == ({made[0].fingerprint: "alice"}, [])
    within.chmod(0o757)
    assert load(folder)[1] == [f"{within}: may be written by everyone, must not: chmod o-w {within}"]
    (folder / ".git").mkdir()
    (folder / ".git").chmod(0o777)  # the backend reads nothing in it
    within.chmod(0o755)
    assert load(folder)[1] == []


# -- options and lists -------------------------------------------------------------------------------------------------------


def test_each_line_of_a_single_file_names_its_identity(tmp_path: Path, made: list[Key]) -> None:
    path = tmp_path / "authorized_keys"
    path.write_text(
        "# gitolite start\n"
        f'command="/home/git/gitolite/src/gitolite-shell alice",no-port-forwarding,no-pty {made[0].line}\n'
        f'command="/home/git/gitolite/src/gitolite-shell bob",no-port-forwarding,no-pty {made[1].line}\n'
        "# gitolite end\n"
        f'identity="carol",from="192.0.2.0/24" {made[2].line}\n'
        f'identity="dave",cert-authority,principals="dave" {made[3].line}\n'
    )
    book, problems = load(path)
    assert problems == []
    assert book.owners == {made[0].fingerprint: "alice", made[1].fingerprint: "bob", made[2].fingerprint: "carol"}
    assert list(book.conditions) == [made[2].fingerprint]
    assert book.authorities == {made[3].fingerprint: (AuthorizedKey(made[3].fingerprint, "dave", authority=True, principals=("dave",)),)}


def test_every_problem_of_a_single_file(tmp_path: Path, made: list[Key]) -> None:
    path = tmp_path / "authorized_keys"
    lines = [f"{made[0].line} alice", f'command="id",identity="alice" {made[0].line}', f'identity="alice" {made[1].line}']
    path.write_text("\n".join([*lines, f'identity="bob" {made[1].line}', f'identity="alice",from="10.*" {made[1].line}']))
    assert load(path)[1] == [
        f'{path}:1: does not say whose the key is, must have identity="NAME" in front of it',
        f'{path}:2: forces the command "id", which a relay cannot run; must have no command= but gitolite-shell\'s',
        f"{path}: bob has the key {made[1].fingerprint} of alice, must have a key of their own",
        f"{path}: the key {made[1].fingerprint} of alice is listed twice with different options, must be listed once",
    ]
    path.chmod(0o666)
    assert load(path)[1] == [f"{path}: may be written by everyone (mode 0666), must not: chmod o-w {path}"]


def test_options_in_a_folder(folder: Path, made: list[Key]) -> None:
    (folder / "alice.pub").write_text(f'restrict {made[0].line}\nexpiry-time="20300102Z" {made[1].line}\n')
    (folder / "bob@desk.pub").write_text(f'command="gitolite-shell bob" {made[2].line}\ncert-authority {made[3].line}\n')
    book, problems = load(folder)
    assert problems == []
    assert book.owners == {made[0].fingerprint: "alice", made[1].fingerprint: "alice", made[2].fingerprint: "bob"}
    assert book.conditions == {made[1].fingerprint: AuthorizedKey(made[1].fingerprint, None, 1_893_542_400)}
    assert [line.identity for line in book.authorities[made[3].fingerprint]] == ["bob"]


def test_a_file_s_name_and_its_lines_must_agree(folder: Path, made: list[Key]) -> None:
    (folder / "alice.pub").write_text(f'identity="bob" {made[0].line}\n')
    assert load(folder)[1] == [f'{folder}/alice.pub: a line in it is of "bob", though its name says "alice", must agree']


async def test_conditions_apply_by_address_and_time(tmp_path: Path, made: list[Key]) -> None:
    path, now = tmp_path / "authorized_keys", 1_893_542_400.0
    path.write_text(f'identity="alice",from="192.0.2.*",expiry-time="20300102Z" {made[0].line}\nidentity="bob" {made[1].line}\n')
    keys = FileKeys(path, clock=lambda: now)
    await keys.check(made[0].fingerprint, "192.0.2.7")
    for stranger in (made[1], made[2]):
        await keys.check(stranger.fingerprint, "anywhere")
    with pytest.raises(NotAccepted, match=r"may not be used from 192\.0\.3\.7"):
        await keys.check(made[0].fingerprint, "192.0.3.7")
    now += 1
    with pytest.raises(NotAccepted, match="expiry-time was 2030-01-02T00:00:00Z"):
        await keys.check(made[0].fingerprint, "192.0.2.7")
    await keys.close()


async def test_cas_for_one_identity(tmp_path: Path, made: list[Key]) -> None:
    path = tmp_path / "authorized_keys"
    path.write_text(
        f'identity="alice",cert-authority,principals="a,b",from="192.0.2.*" {made[0].line}\nidentity="bob",cert-authority {made[0].line}\n'
        f'identity="carol",cert-authority,from="192.0.2.*" {made[1].line}\n'
    )
    keys = FileKeys(path)
    assert await keys.authorities(made[0].fingerprint, "192.0.2.7") == [SpokenFor("alice", ("a", "b")), SpokenFor("bob", ())]
    assert await keys.authorities(made[0].fingerprint, "192.0.3.7") == [SpokenFor("bob", ())]
    with pytest.raises(NotAccepted, match="may not be used from"):
        await keys.authorities(made[1].fingerprint, "192.0.3.7")
    assert await keys.authorities(made[2].fingerprint, "192.0.2.7") == []
    assert await keys.owner(made[0].fingerprint, "") is None, "the key of a CA is nobody's"
    await keys.close()


async def test_a_single_file_is_read_again(tmp_path: Path, made: list[Key], caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "authorized_keys"
    path.write_text(f'identity="alice" {made[0].line}\n')
    keys = FileKeys(path, look_seconds=0)
    assert [await owner(keys, key) for key in made[:2]] == ["alice", None]
    path.write_text(f'identity="bob" {made[1].line}\n')
    assert [await owner(keys, key) for key in made[:2]] == [None, "bob"]
    path.write_text(f'identity="bob" {made[1].line}\nno-such,identity="carol" {made[2].line}\n')
    assert [await owner(keys, key) for key in made[:3]] == [None, "bob", None]
    assert 'authorized_keys:2: has the option "no-such", which the relay cannot see to' in caplog.messages[-1]
    path.with_name("new").write_text(f'identity="carol",from="192.0.2.*" {made[2].line}\n')
    path.with_name("new").replace(path)
    assert [await owner(keys, key) for key in made[:3]] == [None, None, "carol"]
    with pytest.raises(NotAccepted):
        await keys.check(made[2].fingerprint, "192.0.3.7")
    await keys.close()


# -- changes -------------------------------------------------------------------------------------------------------------


async def test_a_key_added_moved_changed_and_removed_is_seen_without_a_signal(folder: Path, made: list[Key]) -> None:
    (folder / "alice.pub").write_text(made[0].line)
    keys = FileKeys(folder, look_seconds=0)
    assert [await owner(keys, key) for key in made[:2]] == ["alice", None]
    (folder / "bob.pub").write_text(made[1].line)
    assert [await owner(keys, key) for key in made[:2]] == ["alice", "bob"]
    (folder / "bob.pub").rename(folder / "carol.pub")
    assert [await owner(keys, key) for key in made[:2]] == ["alice", "carol"]
    (folder / "alice.pub").write_text(made[2].line)  # same length as before
    assert [await owner(keys, key) for key in made[:3]] == [None, "carol", "alice"]
    (folder / "sub").mkdir()
    (folder / "sub" / "dave.pub").write_text(made[0].line)
    assert await owner(keys, made[0]) == "dave"
    (folder / "alice.pub").unlink()
    assert [await owner(keys, key) for key in made[:3]] == ["dave", "carol", None]
    (folder / "carol.pub").write_text("")  # emptied: the key has no owner any more
    assert await owner(keys, made[1]) is None
    await keys.close()


async def test_a_file_with_a_fault_adds_no_key_and_other_files_are_still_read(
    folder: Path, made: list[Key], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "alice.pub").write_text(made[0].line)
    (folder / "carol.pub").write_text(made[2].line)
    keys = FileKeys(folder, look_seconds=0)
    (folder / "alice.pub").write_text(f"{made[0].line}\n{made[3].line}\nssh-ed25519 AAAA")
    (folder / "bob.pub").write_text(made[1].line)
    (folder / "carol.pub").unlink()
    for _ in range(3):
        assert [await owner(keys, key) for key in made] == ["alice", "bob", None, None]
    assert len(caplog.messages) == 1
    assert "a change in part is not accepted" in caplog.messages[0]
    assert "alice.pub:3: the ssh-ed25519 key is cut off" in caplog.messages[0]
    (folder / "dave.pub").write_text(f"{made[2].line}\nssh-ed25519 AAAA")  # broken, and never read in a valid state
    assert [await owner(keys, key) for key in made] == ["alice", "bob", None, None]
    (folder / "alice.pub").write_text(made[3].line)
    (folder / "dave.pub").unlink()
    assert [await owner(keys, key) for key in made] == [None, "bob", None, "alice"]
    await keys.close()


DAVE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOCKjaVRkGZ+KxvcFrB1/B/YRu7Hf/PGS/xz0W97eC+q"
FAULTS: dict[str, str | int] = {  # further faults of a file from which alice's line was deleted: a line, or a mode
    "a weak key": "ssh-dss AAAAB3NzaC1kc3MAAACBAP1/U4EddRIpUt9KnC7s5Of2EbdSPO9EAMMeP4C2USZpRV1AIlH7",
    "a cut key": 'identity="bob" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIENK',
    "an option that is not known": f'identity="dave",no-such-thing="x" {DAVE}',
    "a forced command": f'command="id",identity="dave" {DAVE}',
    "no text": "\0\x1b[31m",
    "another format": "---- BEGIN SSH2 PUBLIC KEY ----",
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----",
    "everyone may write it": 0o666,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("one_file", [True, False])
async def test_a_removed_line_is_removed_at_once_even_if_the_file_has_a_fault(
    tmp_path: Path, folder: Path, made: list[Key], fault: str, one_file: bool
) -> None:
    path = tmp_path / "authorized_keys" if one_file else folder / "alice.pub"
    whose = ['identity="alice" ', 'identity="bob" '] if one_file else ["", ""]
    lines = [f"{name}{key.line}" for name, key in zip(whose, made[:2], strict=True)]
    path.write_text("\n".join(lines))
    keys = FileKeys(path if one_file else folder, look_seconds=0)
    assert [await owner(keys, key) is not None for key in made[:3]] == [True, True, False]
    wrong = FAULTS[fault]
    new = f"{whose[0]}{made[2].line}"
    if isinstance(wrong, int):
        path.chmod(wrong)
        wrong = ""
    path.write_text("\n".join([lines[1], wrong, new]))
    assert [await owner(keys, key) is not None for key in made[:3]] == [False, True, False], "gone; still there; not taken"
    assert keys._book.problems
    path.chmod(0o644)
    path.write_text("\n".join([lines[1], new]))
    assert [await owner(keys, key) is not None for key in made[:3]] == [False, True, True]
    await keys.close()


async def test_a_damaged_line_leaves_its_key_as_it_was(tmp_path: Path, made: list[Key]) -> None:
    path = tmp_path / "authorized_keys"
    path.write_text(f'from="192.0.2.*",identity="alice" {made[0].line}')
    keys = FileKeys(path, look_seconds=0)
    path.write_text(f'from="192.0.2.*,identity="alice" {made[0].line}')  # an unfinished quote
    assert await owner(keys, made[0]) == "alice"
    with pytest.raises(NotAccepted):
        await keys.check(made[0].fingerprint, "192.0.3.7")
    assert keys._book.problems
    await keys.close()


async def test_a_condition_added_to_a_faulty_file_applies_at_once(tmp_path: Path, made: list[Key]) -> None:
    path = tmp_path / "authorized_keys"
    path.write_text(f'identity="alice" {made[0].line}')
    keys = FileKeys(path, look_seconds=0)
    path.write_text(f'expiry-time="20200101",identity="alice" {made[0].line}\nnonsense')
    await owner(keys, made[0])
    with pytest.raises(NotAccepted):
        await keys.check(made[0].fingerprint, "192.0.2.7")
    await keys.close()


async def test_a_key_that_two_others_claim_is_refused_when_its_owner_s_line_is_removed(folder: Path, made: list[Key]) -> None:
    (folder / "alice.pub").write_text(made[0].line)
    keys = FileKeys(folder, look_seconds=0)
    (folder / "alice.pub").unlink()
    for name in ("bob", "carol"):
        (folder / f"{name}.pub").write_text(made[0].line)
    assert await owner(keys, made[0]) is None
    await keys.close()


async def test_a_file_removed_from_a_folder_that_everyone_may_write_is_removed(folder: Path, made: list[Key]) -> None:
    (folder / "sub").mkdir()
    for name, key in zip(("alice", "sub/bob", "carol"), made[:3], strict=True):
        (folder / f"{name}.pub").write_text(key.line)
    keys = FileKeys(folder, look_seconds=0)
    folder.chmod(0o777)
    (folder / "alice.pub").unlink()
    (folder / "dave.pub").write_text(made[3].line)
    assert [await owner(keys, key) for key in made] == [None, "bob", "carol", None]
    assert keys._book.problems == [f"{folder}: may be written by everyone, must not: chmod o-w {folder}"]
    folder.chmod(0o755)
    assert [await owner(keys, key) for key in made] == [None, "bob", "carol", "dave"]
    await keys.close()


async def test_a_subfolder_that_cannot_be_listed_keeps_its_keys(folder: Path, made: list[Key], monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sub").mkdir()
    for name, key in zip(("alice", "sub/bob"), made[:2], strict=True):
        (folder / f"{name}.pub").write_text(key.line)
    keys = FileKeys(folder, look_seconds=0)
    real = os.scandir

    def scandir(path: str) -> Any:
        if path.endswith("/sub"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (folder / "alice.pub").unlink()
    assert [await owner(keys, key) for key in made[:2]] == [None, "bob"]
    assert keys._book.problems == [f"{folder}/sub: cannot be read (Permission denied), must be {WHAT}"]
    monkeypatch.undo()
    (folder / "sub" / "bob.pub").unlink()
    assert await owner(keys, made[1]) is None
    await keys.close()


async def test_a_key_that_two_identities_claim_stays_with_its_owner(
    folder: Path, made: list[Key], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "bob.pub").write_text(f'from="192.0.2.*" {made[0].line}')
    keys = FileKeys(folder, look_seconds=0)
    for name in ("alice", "carol"):
        (folder / f"{name}.pub").write_text(made[0].line)
    assert await owner(keys, made[0]) == "bob"
    with pytest.raises(NotAccepted):
        await keys.check(made[0].fingerprint, "192.0.3.7")
    assert "must have a key of their own" in caplog.messages[-1]
    for name in ("alice", "carol"):
        (folder / f"{name}.pub").write_text(made[1].line)  # a new file
    assert [await owner(keys, key) for key in made[:2]] == ["bob", None]
    (folder / "carol.pub").unlink()
    assert [await owner(keys, key) for key in made[:2]] == ["bob", "alice"]
    (folder / "bob.pub").write_text(f'from="192.0.2.*" {made[0].line}\n{made[0].line}')  # with options, and without
    assert await owner(keys, made[0]) == "bob"
    with pytest.raises(NotAccepted):
        await keys.check(made[0].fingerprint, "192.0.3.7")
    await keys.close()


async def test_a_folder_that_vanishes_and_comes_back(folder: Path, made: list[Key], caplog: pytest.LogCaptureFixture) -> None:
    (folder / "alice.pub").write_text(made[0].line)
    keys = FileKeys(folder, look_seconds=0)
    folder.rename(folder.with_name("away"))
    assert await owner(keys, made[0]) == "alice"
    assert "cannot be read (No such file or directory)" in caplog.messages[0]
    folder.with_name("away").rename(folder)
    (folder / "alice.pub").unlink()
    assert await owner(keys, made[0]) is None
    await keys.close()


def swap(volume: Path, files: Mapping[str, str]) -> None:
    """Replaces a ConfigMap's content as kubelet does: a new folder, and a rename of the link ..data to it."""
    number = len(list(volume.glob("..2*")))
    new = volume / f"..2026_{number}"
    for name, content in files.items():
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).write_text(content)
    (volume / "..data_tmp").symlink_to(new.name)
    (volume / "..data_tmp").rename(volume / "..data")
    for name in {name.partition("/")[0] for name in files}:
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"..data/{name}")
    for link in volume.iterdir():
        if link.is_symlink() and not link.exists():
            link.unlink()


async def test_the_swap_of_a_volume_of_kubernetes_is_followed(
    folder: Path, made: list[Key], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda where: SimpleNamespace(f_flag=os.ST_RDONLY))  # as a read-only mounted volume
    swap(folder, {"alice.pub": made[0].line, "bob.pub": made[1].line, "team/carol.pub": made[2].line})
    for path in [folder, *folder.glob("..2*"), *folder.glob("..2*/*")]:
        path.chmod(0o1777)
    keys = FileKeys(folder, look_seconds=0)
    assert [await owner(keys, key) for key in made] == ["alice", "bob", "carol", None]
    swap(folder, {"alice.pub": made[3].line, "team/carol.pub": made[1].line})
    assert [await owner(keys, key) for key in made] == [None, "carol", None, "alice"]
    shutil.rmtree(folder / "..2026_0")
    assert [await owner(keys, key) for key in made] == [None, "carol", None, "alice"]
    assert keys._book.problems == []
    monkeypatch.undo()
    (folder / "alice.pub").touch()
    await owner(keys, made[0])
    assert "may be written by everyone" in keys._book.problems[0], "the same on a mount that takes writes"
    await keys.close()


def test_a_link_to_another_folder_is_not_followed(folder: Path, made: list[Key], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "alice.pub").write_text(made[0].line)
    (folder / "team").symlink_to("../elsewhere")
    assert owners(folder) == ({}, [])


def test_a_change_reads_the_changed_file_only(folder: Path, made: list[Key], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, key in zip("abcd", made, strict=True):
        (folder / f"{name}.pub").write_text(key.line)
    reader = KeyFiles(folder)
    listing = reader.listing()
    while listing != reader.listing():  # until each file is older than the clock's granularity
        listing = reader.listing()
    reader.read(listing)
    read: list[str] = []
    real = keys_file._read

    def noted(path: Path, name: str, stamp: keys_file.Stamp) -> keys_file.KeyFile:
        read.append(name)
        return real(path, name, stamp)

    monkeypatch.setattr(keys_file, "_read", noted)
    (folder / "b.pub").write_text("# none")
    book, _ = reader.read(reader.listing())
    assert sorted(book.owners.values()) == ["a", "c", "d"]
    assert read == ["b.pub"]


# -- many ----------------------------------------------------------------------------------------------------------------


def blob(number: int) -> bytes:
    kind = b"ssh-ed25519"
    return len(kind).to_bytes(4, "big") + kind + (32).to_bytes(4, "big") + random.Random(number).randbytes(32)


@pytest.mark.parametrize("form", ["folder", "one file"])
async def test_a_lookup_among_a_hundred_thousand_takes_as_many_steps_as_among_ten(folder: Path, form: str) -> None:
    path = folder if form == "folder" else folder.with_name("authorized_keys")

    def line(number: int) -> str:
        return f"ssh-ed25519 {base64.b64encode(blob(number)).decode()}\n"

    def write(people: int, each: int) -> None:
        if form == "folder":
            for number in range(people):
                (folder / f"p{number}.pub").write_text("".join(line(number * each + one) for one in range(each)))
        else:
            with path.open("w") as file:
                file.writelines(f'command="gitolite-shell p{one // each}" {line(one)}' for one in range(people * each))

    async def steps() -> int:
        """Lines of Python that one lookup runs, which does not depend on the machine's load."""
        keys = FileKeys(path, look_seconds=3600)
        counted = 0

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal counted
            counted += 1
            return trace

        print_, before = fingerprint(blob(7)), sys.gettrace()
        sys.settrace(trace)
        try:
            await keys.check(print_, "192.0.2.7")
            found = await keys.owner(print_, "")
        finally:
            sys.settrace(before)
        assert found == "p0"
        await keys.close()
        return counted

    write(1, 10)
    few = await steps()
    write(100, 1000)
    assert len(load(path)[0].owners) == 100_000
    assert await steps() == few


@given(st.binary(max_size=300))
def test_any_file_is_keys_or_problems_in_words(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "alice.pub").write_bytes(data)
    book, problems = load(folder)
    assert set(book.owners.values()) <= {"alice"}
    assert all(line.isprintable() and line.startswith(f"{folder}/alice.pub:") for line in problems)


def test_ignored_files_are_named(tmp_path: Path) -> None:
    for name in ("alice.pub", "bob", "carol.PUB", "dave.pub.bak", ".gitkeep", "team/eve.pub", "team/frank.txt", "folder.pub/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "team")
    (tmp_path / "gone.pub").symlink_to(tmp_path / "nothing")
    assert [line.removeprefix(f"{tmp_path}/").partition(": is not read: ")[::2] for line in unread_files(tmp_path)] == [
        ("bob", "only files that end in .pub are"),
        ("carol.PUB", "only files that end in .pub are"),
        ("dave.pub.bak", "only files that end in .pub are"),
        ("folder.pub", "it is a folder, and only folders that do not end in .pub are"),
        ("gone.pub", "the link leads nowhere"),
        ("link", "links to folders are not followed"),
        ("team/frank.txt", "only files that end in .pub are"),
    ]
    assert unread_files(tmp_path / "alice.pub") == []


# -- faulty_lines = "skip" ---------------------------------------------------------------------------------------------------

DSA = "ssh-dss AAAAB3NzaC1kc3MAAACBAP"


def lines_of(*made: Key, first: int = 0) -> list[str]:
    return [f'identity="person{number}" {key.line}' for number, key in enumerate(made, first)]


async def test_three_faulty_lines_among_many_are_left_out_and_named_at_start(tmp_path: Path, made: list[Key]) -> None:
    path = tmp_path / "authorized_keys"
    faulty = [f'identity="old" {DSA}', "ssh-ed25519", f'identity="@x" {made[3].line}']
    path.write_text("\n".join([*lines_of(*made[:2]), faulty[0], *lines_of(made[2], first=2), *faulty[1:]]))
    with pytest.raises(ConfigError) as refused:
        FileKeys(path)
    keys = FileKeys(path, skip=True)
    assert [await owner(keys, key) for key in made] == ["person0", "person1", "person2", None]
    assert left_out(path) == refused.value.problems
    assert [line.partition(": ")[0] for line in left_out(path)] == [f"{path}:{number}" for number in (3, 5, 6)]
    assert keys.left_out == 3
    await keys.close()


async def test_a_faulty_line_keeps_no_change_from_taking_effect(tmp_path: Path, made: list[Key], caplog: pytest.LogCaptureFixture) -> None:
    """New keys are accepted, removed ones are not, and a key whose line was damaged is not either: as after a restart."""
    path = tmp_path / "authorized_keys"
    path.write_text("\n".join(lines_of(*made[:3])))
    keys = FileKeys(path, skip=True, look_seconds=0)
    assert [await owner(keys, key) for key in made] == ["person0", "person1", "person2", None]
    damaged = lines_of(made[1], first=1)[0].replace("identity=", "identify=")
    path.write_text("\n".join([*lines_of(made[0]), damaged, *lines_of(made[3], first=3)]))
    for _ in range(2):
        assert [await owner(keys, key) for key in made] == ["person0", None, None, "person3"]
    assert [record.getMessage() for record in caplog.records if "left out" in record.getMessage()] == [
        f"left out of the keys: {path}:2: {left_out(path)[0].partition(': ')[2]}"
    ]
    path.write_text("\n".join(lines_of(*made[:3])))
    assert [await owner(keys, key) for key in made] == ["person0", "person1", "person2", None]
    assert keys.left_out == 0
    await keys.close()


async def test_a_key_that_two_claim_is_nobodys_while_lines_are_left_out(folder: Path, made: list[Key]) -> None:
    (folder / "alice.pub").write_text(made[0].line + "\n")
    keys = FileKeys(folder, skip=True, look_seconds=0)
    assert await owner(keys, made[0]) == "alice"
    (folder / "bob.pub").write_text(f"{made[0].line}\n{made[1].line}\n")
    assert [await owner(keys, key) for key in made[:2]] == [None, "bob"]
    assert keys.left_out == 1
    (folder / "bob.pub").write_text(made[1].line + "\n")
    assert [await owner(keys, key) for key in made[:2]] == ["alice", "bob"]
    await keys.close()


@pytest.mark.parametrize("fault", ["everyone may write", "private key"])
async def test_a_fault_of_a_whole_file_is_refused_all_the_same(folder: Path, made: list[Key], fault: str) -> None:
    """Such a file may hold what an attacker wrote: nothing new of it is accepted, and what is gone from it is gone."""
    path = folder / "alice.pub"
    path.write_text(f"{made[0].line}\n{made[1].line}\n")
    keys = FileKeys(folder, skip=True, look_seconds=0)
    assert [await owner(keys, key) for key in made[:3]] == ["alice", "alice", None]
    private = "-----BEGIN OPENSSH PRIVATE KEY-----\n" if fault == "private key" else ""
    path.write_text(f"{made[0].line}\n{made[2].line}\n{DSA}\n{private}")
    if not private:
        path.chmod(0o666)
    assert [await owner(keys, key) for key in made[:3]] == ["alice", None, None]
    with pytest.raises(ConfigError):
        FileKeys(folder, skip=True)
    await keys.close()


async def test_more_than_a_hundred_lines_are_counted_and_not_all_logged(
    tmp_path: Path, made: list[Key], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "authorized_keys"
    path.write_text("\n".join(lines_of(made[0])))
    keys = FileKeys(path, skip=True, look_seconds=0)
    path.write_text("\n".join([*lines_of(made[0]), *[DSA] * 150]))
    assert await owner(keys, made[0]) == "person0"
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(told) == 101
    assert told[-1] == "left out of the keys: 50 more lines; relay check names all"
    await keys.close()
