"""A private key of the relay, named by its path."""

from __future__ import annotations

import asyncssh

from relay.config.load import Loaded
from relay.config.toml import Problems
from relay.openssh.private_key import read_private_key


def private_key(loaded: Loaded, key: str, name: str, problems: Problems) -> asyncssh.SSHKey | None:
    """The key in the file `name`; None when it cannot be read, which is a problem of the setting `key`."""
    if "PRIVATE KEY" in name:  # must not appear in an error as the name of a missing file
        problems.add(key, "is a private key itself, must be the path of the file that holds it")
        return None
    try:
        return read_private_key(loaded.resolve(name))
    except ValueError as error:
        problems.add(key, str(error))
        return None
