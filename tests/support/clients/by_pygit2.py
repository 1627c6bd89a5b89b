"""Clone and push by libgit2: by_pygit2 KEY clone URL FOLDER, or in the working copy by_pygit2 KEY push REMOTE BRANCH"""

from __future__ import annotations

import sys
from typing import Any

import pygit2


class Callbacks(pygit2.RemoteCallbacks):
    """One key; the host key must be the one in ~/.ssh/known_hosts, which libgit2 checks itself."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key

    def credentials(self, url: str, username_from_url: str | None, allowed_types: Any) -> pygit2.Keypair:
        return pygit2.Keypair(username_from_url or "git", f"{self._key}.pub", self._key, "")

    def certificate_check(self, certificate: None, valid: bool, host: bytes) -> bool:
        return valid

    def push_update_reference(self, refname: str, message: str | None) -> None:
        if message is not None:
            raise pygit2.GitError(f"{refname}: {message}")


def main(key: str, action: str, first: str, second: str) -> int:
    callbacks = Callbacks(key)
    try:
        if action == "clone":
            pygit2.clone_repository(first, second, callbacks=callbacks)
        else:
            pygit2.Repository(".").remotes[first].push([f"refs/heads/{second}"], callbacks=callbacks)
    except pygit2.GitError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
