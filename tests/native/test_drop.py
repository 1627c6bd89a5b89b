"""Sessions that are dropped in the middle leave no memory behind."""

from __future__ import annotations

import ctypes
import gc
import socket
import threading
from collections.abc import Callable

import pytest

from tests.native.client import CHUNK, EAGAIN, Client
from tests.native.hostile import Hostile
from tests.native.inetd import new_key

SESSIONS = 20
SESSION_BYTES = 78_000  # two packet buffers and a banner: the least that one leaked session has
CIPHER = "aes128-gcm@openssh.com"


class Mallinfo(ctypes.Structure):
    """struct mallinfo2 of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def in_use() -> int:
    """Bytes that are allocated by malloc, after a collection."""
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def stuck(act: Callable[[Client], None]) -> None:
    """A client in a session with a server that no longer reads: `act`, then drop it as a failed session is dropped."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    done = threading.Event()

    def serve() -> None:
        with theirs:
            Hostile(theirs, CIPHER).serve_exec(window=2**30)
            done.wait(30)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with Client(ours) as client:
            client.handshake(CIPHER)
            client.login("git", new_key()[0])
            client.execute("command")
            act(client)
    finally:
        done.set()
        thread.join(30)


def partly_sent(client: Client) -> None:
    """Leave a packet partly sent."""
    while client.channel.write(bytes(CHUNK))[0] != EAGAIN:
        pass


def close_unanswered(client: Client) -> None:
    """Close the channel and do not wait for the answer."""
    client.channel.close()


def nothing(client: Client) -> None:
    """Do nothing before the drop."""


@pytest.mark.parametrize("act", [partly_sent, close_unanswered, nothing])
def test_dropped_session_is_freed(act: Callable[[Client], None], hardened: str) -> None:
    """The session's memory is freed, though the socket would block."""
    stuck(act)
    before = in_use()
    for _ in range(SESSIONS):
        stuck(act)
    assert in_use() - before < SESSION_BYTES * SESSIONS // 4
