"""The compiled parts of git-ssh-relay-native that this process uses, and in one line what it means that one is missing."""

from __future__ import annotations

from relay.ssh.gcm import UNUSED
from relay.upstream.libssh2 import loaded_library
from relay.upstream.libssh2.binding import WHY_STOCK

INSTALL = "pip install 'git-ssh-relay[native]'"


def used() -> list[str]:
    """Those that are used, of the closed set NATIVE_PARTS of the metrics."""
    return [*(["libssh2"] if loaded_library().build else []), *([] if UNUSED else ["gcm"])]


def unsafe() -> str:
    """What a stock libssh2 means; empty with the hardened one."""
    library = loaded_library()
    if library.build:
        return ""
    why = WHY_STOCK or "it has no name of a hardened build"
    danger = "a machine that poses as a git host can corrupt the relay's memory before its host key is compared"
    return f"libssh2 {library.version} is not the hardened one ({why}): {danger}, and streams cost more CPU time; {INSTALL}"


def slow() -> str:
    """What it means that relay_gcm is not used; empty when it is."""
    return f"relay_gcm is not used: {UNUSED}" if UNUSED else ""


def warning() -> str:
    """Both in one line, for the log."""
    return "; ".join(filter(None, (unsafe(), slow())))
