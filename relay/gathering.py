"""Gathering: in bulk, what comes in small packets is read once in GATHER_SECONDS, since a wake costs a worker more than a packet does.

git writes a pack in small pieces, OpenSSH and sshd open their windows (RFC 4254 section 5.2) a few kilobytes at a time. Nobody waits for a
read that comes later while three things hold: a read before it was small, the flow is slower than the relay (`Pace`), and whoever takes the
bytes has GATHER_UNTAKEN_BYTES of them yet.
"""

from __future__ import annotations

from typing import Final

GATHER_SECONDS: Final = 0.002  # from a small read to the next one
GATHER_LESS_BYTES: Final = 128 * 1024  # in one read: the relay could take more
GATHER_UNTAKEN_BYTES: Final = 1 << 20  # that were sent to a client or a git host and not taken by its program: it is behind
GATHER_BYTES_PER_SECOND: Final = 256 << 20  # of a flow: a faster one would use up half of GATHER_UNTAKEN_BYTES in GATHER_SECONDS
PACE_SECONDS: Final = 0.05  # for which a flow is measured


class Pace:
    """How fast a flow is."""

    def __init__(self) -> None:
        self._since = 0.0
        self._moved = 0
        self._slow = False

    def is_slow(self, now: float, moved: int) -> bool:
        """Whether it was slower than GATHER_BYTES_PER_SECOND when last measured. `now` is the loop's time, `moved` its bytes so far."""
        seconds = now - self._since
        if seconds >= PACE_SECONDS:
            self._slow = moved - self._moved < GATHER_BYTES_PER_SECOND * seconds
            self._since, self._moved = now, moved
        return self._slow
