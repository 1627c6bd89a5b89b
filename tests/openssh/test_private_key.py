"""Private key files made by the real ssh-keygen: usable, readable by others, with a passphrase, of a wrong type."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import asyncssh
import pytest

from relay.openssh.private_key import KEY_BYTES, read_private_key


def keygen(folder: Path, *arguments: str) -> Path:
    path = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-f", path, *arguments], check=True, timeout=60)
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ["-t", "ed25519", "-N", ""],
        ["-t", "ecdsa", "-N", ""],
        ["-t", "rsa", "-b", "2048", "-N", ""],
        ["-t", "rsa", "-b", "2048", "-N", "", "-m", "PEM"],
        ["-t", "rsa", "-b", "2048", "-N", "", "-m", "PKCS8"],
    ],
)
def test_a_key_of_ssh_keygen_is_read(tmp_path: Path, arguments: list[str]) -> None:
    path = keygen(tmp_path, *arguments)
    assert read_private_key(path).public_data == asyncssh.read_public_key(path.with_suffix(".pub")).public_data


@pytest.mark.parametrize("arguments", [["-t", "ed25519"], ["-t", "rsa", "-m", "PEM"], ["-t", "rsa", "-m", "PKCS8"]])
def test_a_passphrase_is_named_with_the_way_to_take_it_off(tmp_path: Path, arguments: list[str]) -> None:
    path = keygen(tmp_path, "-N", "secret", *arguments)
    with pytest.raises(ValueError, match=r"is protected by a passphrase, must not be \(take it off: ssh-keygen -p"):
        read_private_key(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_mode_bits_count_even_for_root(tmp_path: Path, mode: int) -> None:
    path = keygen(tmp_path, "-t", "ed25519", "-N", "")
    path.chmod(mode)
    with pytest.raises(ValueError, match=rf"is open to group or others \(mode {mode:04o}\), must be 0600: chmod 600 "):
        read_private_key(path)


@pytest.mark.parametrize(("owner", "mode", "readable"), [(0, 0o440, True), (0, 0o444, False), (0, 0o460, False), (1234, 0o440, False)])
def test_a_file_of_root_may_be_readable_by_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int, mode: int, readable: bool
) -> None:
    """As systemd's LoadCredential and Kubernetes' fsGroup set it for a service that is not root."""
    path = keygen(tmp_path, "-t", "ed25519", "-N", "")
    path.chmod(mode)
    stat = os.fstat

    def owned(fd: int) -> os.stat_result:
        found = stat(fd)
        return os.stat_result((*found[:4], owner, *found[5:10]))

    monkeypatch.setattr(os, "fstat", owned)
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    if readable:
        assert read_private_key(path).get_algorithm() == "ssh-ed25519"
    else:
        with pytest.raises(ValueError, match="is open to group or others"):
            read_private_key(path)


def write(folder: Path, data: bytes) -> Path:
    path = folder / "key"
    path.write_bytes(data)
    path.chmod(0o600)
    return path


EMPTY = b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"


@pytest.mark.parametrize("data", [b"", b"junk", EMPTY, b"\xff\x00"])
def test_a_file_without_a_key_is_refused_with_the_reason(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match="is not a private key, must be one in OpenSSH or PEM format"):
        read_private_key(write(tmp_path, data))


def test_a_message_about_a_truncated_key_does_not_show_it(tmp_path: Path) -> None:
    text = asyncssh.generate_private_key("ssh-ed25519").export_private_key()
    with pytest.raises(ValueError, match="is not a private key") as caught:
        read_private_key(write(tmp_path, text[:200]))
    assert text[60:80].decode() not in str(caught.value)


def test_dsa_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a key of type ssh-dss, allowed are ssh-ed25519, "):
        read_private_key(write(tmp_path, asyncssh.generate_private_key("ssh-dss").export_private_key("pkcs1-pem")))


def test_a_short_rsa_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is an RSA key of 1024 bits"):
        read_private_key(write(tmp_path, asyncssh.generate_private_key("ssh-rsa", key_size=1024).export_private_key()))


def test_a_missing_file_a_folder_and_a_file_too_large(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is missing, must be a private key \\(make one: ssh-keygen"):
        read_private_key(tmp_path / "none")
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\)"):
        read_private_key(tmp_path)
    with pytest.raises(ValueError, match="is larger than the 65536 bytes"):
        read_private_key(write(tmp_path, bytes(KEY_BYTES + 1)))
