"""The file descriptor that a libssh2 session owns, and the two socketpair ends that may replace it.

libssh2 does socket I/O while a session is freed, and a descriptor number is handed out again as soon as it is closed: a session
that outlives its descriptor writes into, and reads from, another connection. So the descriptor is owned by the session
object itself (`Session.sock`), and is closed by `__del__`, that is after `libssh2_session_free` has run.

Before that it is replaced (dup2, which also closes the TCP connection) by one of two socketpair ends. They are made once a process,
so that a session can be ended when no descriptor is left:

* `bury`: reads give end of file, writes fail. Freeing never blocks, never leaks, never reaches the network.
* `isolate`: reads would block, writes are discarded. A partly sent packet can be completed, and packets that libssh2 has
  received can still be read.
"""

from __future__ import annotations

import os
import socket

_DRAIN_BYTES = 1 << 20


class Descriptor:
    """A non-blocking TCP socket's descriptor; closed when the last reference goes."""

    __slots__ = ("_fd", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()

    def fileno(self) -> int:
        return self._fd

    def bury(self) -> None:
        os.dup2(_dead_ends().dead, self._fd, inheritable=False)

    def isolate(self) -> None:
        ends = _dead_ends()
        ends.drain()
        os.dup2(ends.sink, self._fd, inheritable=False)

    def __del__(self) -> None:
        self._sock.close()


class _DeadEnds:
    """Descriptors that live as long as the process."""

    def __init__(self) -> None:
        dead, other = socket.socketpair()
        other.close()
        sink, drain = socket.socketpair()
        for end in (dead, sink, drain):
            end.setblocking(False)
        self.dead, self.sink, self._drain = dead.detach(), sink.detach(), drain.detach()

    def drain(self) -> None:
        try:
            while os.read(self._drain, _DRAIN_BYTES):
                pass
        except BlockingIOError:
            return


_ends: tuple[int, _DeadEnds] | None = None


def _dead_ends() -> _DeadEnds:
    """This process's ends; a forked child makes its own, as a sink that two processes share could fill."""
    global _ends
    if _ends is None or _ends[0] != os.getpid():
        _ends = (os.getpid(), _DeadEnds())
    return _ends[1]


def prepare() -> None:
    """Makes the dead ends ahead, while descriptors are left."""
    _dead_ends()
