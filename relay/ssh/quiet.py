"""A logger that formats and writes nothing, in place of asyncssh's."""

from __future__ import annotations

from typing import Any


class Quiet:
    """Replaces asyncssh's logger at every level but debug (see relay.ssh.trace): asyncssh formats lines that are then dropped."""

    def get_child(self, *arguments: object, **named: object) -> Quiet:
        return self

    def isEnabledFor(self, level: int) -> bool:
        return False

    log = "".format  # accepts any arguments, and costs no Python frame
    debug = debug1 = debug2 = info = warning = error = packet = log


QUIET: Any = Quiet()
