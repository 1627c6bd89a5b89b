"""Files that decide about trust: reading returns the content, or one line with the problem."""

from __future__ import annotations

from pathlib import Path

from relay.keys.trusted_file import read_trusted


def test_a_file_is_read_whole_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)
    assert read_trusted(str(path), "a list", 3_000_000) == (b"x" * 3_000_000, None)
    assert read_trusted(str(path), "a list", 2_999_999)[1] == f"{path}: is larger than the 2999999 bytes that are allowed"


def test_a_file_that_everyone_may_write_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    path.chmod(0o606)
    assert read_trusted(str(path), "a list", 10) == (b"", f"{path}: may be written by everyone (mode 0606), must not: chmod o-w {path}")


def test_a_private_key_is_one_problem_that_does_not_repeat_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    pem = "# the CA\n-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNz\n-----END OPENSSH PRIVATE KEY-----\n"
    for text in (pem, "PuTTY-User-Key-File-3: ssh-ed25519\n"):
        path.write_text(text)
        told = f"{path}: is a private key, must be a public key; take the private key away from here"
        assert read_trusted(str(path), "a list", 1000) == (b"", told)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert read_trusted(str(path), "a list", 10) == (b"", f"{path}: cannot be read (No such file or directory), must be a list")
    assert read_trusted(str(tmp_path), "a list", 10)[1] == f"{tmp_path}: cannot be read (Is a directory), must be a list"
