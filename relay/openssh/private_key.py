"""Private key files: the relay's host keys, and the keys with which it logs in to git hosts."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import asyncssh
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from relay.openssh.public_key import HOST_KEY_TYPES, check_blob

KEY_BYTES = 65_536  # no private key file is larger


def read_private_key(path: Path) -> asyncssh.SSHKey:
    """The ed25519, ecdsa or RSA key in a file without passphrase that only its owner may open. The mode is checked for root too.

    If the relay does not run as root, a file that belongs to root may be readable by its group: systemd (LoadCredential) and Kubernetes
    (fsGroup) pass secrets to a service this way, and the service cannot change the mode.

    Raises ValueError with what is wrong and what is allowed; the text never repeats what the file holds.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(KEY_BYTES + 1)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing, must be a private key (make one: ssh-keygen -t ed25519 -N '' -f {path})") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}), must be a private key") from None
    mode, handed = status.st_mode, status.st_uid == 0 and os.geteuid() != 0
    if mode & (0o037 if handed else 0o077):
        raise ValueError(f"{path} is open to group or others (mode {stat.S_IMODE(mode):04o}), must be 0600: chmod 600 {path}")
    if len(data) > KEY_BYTES:
        raise ValueError(f"{path} is larger than the {KEY_BYTES} bytes that are allowed")
    try:
        key = asyncssh.import_private_key(data)
    except (asyncssh.KeyImportError, ValueError):
        if _protected(data):
            raise ValueError(f"{path} is protected by a passphrase, must not be (take it off: ssh-keygen -p -N '' -f {path})") from None
        raise ValueError(f"{path} is not a private key, must be one in OpenSSH or PEM format") from None
    kind = key.get_algorithm()
    if kind not in HOST_KEY_TYPES:
        raise ValueError(f"{path} is a key of type {kind}, allowed are {', '.join(HOST_KEY_TYPES)}")
    try:
        check_blob(key.public_data, kind)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return key


def _protected(data: bytes) -> bool:
    """Whether the key needs a passphrase; cryptography raises TypeError for that."""
    load = serialization.load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else serialization.load_pem_private_key
    try:
        load(data, None)
    except TypeError:
        return True
    except (ValueError, UnsupportedAlgorithm):
        return False
    return False
