"""Gathering: in bulk, small packets wait in the socket and are read once in GATHER_SECONDS, since a wake costs a worker more than a packet.

git writes a pack in small pieces; OpenSSH's client and sshd open their windows (RFC 4254 section 5.2) a few kilobytes at a time. No program
waits for the later read while three things hold: the read before it was small, the flow is slower than GATHER_BYTES_PER_SECOND (`Pace`),
and the program that takes the bytes, the client's or the git host's, has GATHER_UNTAKEN_BYTES of them to take yet. The output of a git host
that is slower than the relay gathers too, once there was a mebibyte of it: its client waits two milliseconds more and does not feel them.
"""

from __future__ import annotations

from typing import Final

GATHER_SECONDS: Final = 0.002  # from a small read to the next one
GATHER_LESS_BYTES: Final = 128 * 1024  # in one read: the relay could take more
GATHER_UNTAKEN_BYTES: Final = 1 << 20  # sent to a client or a git host and not taken by its program: the program is behind
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
