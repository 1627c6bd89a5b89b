"""systemd's protocols: socket activation (sd_listen_fds(3)) and service notification (sd_notify(3))."""

from __future__ import annotations

import logging
import os
import socket
import time

_FIRST_FD = 3  # SD_LISTEN_FDS_START

_log = logging.getLogger("relay.systemd")


def listen_sockets() -> list[socket.socket]:
    """The listening TCP sockets of socket activation. Only the first call gets them, as they are removed from the environment.

    Raises OSError when systemd passed none, or something other than listening TCP sockets.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal() or count == "0":
        raise OSError("systemd handed over no socket (LISTEN_FDS is not set for this process)")
    sockets = [socket.socket(fileno=fd) for fd in range(_FIRST_FD, _FIRST_FD + int(count))]
    for sock in sockets:
        sock.set_inheritable(False)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM or not listens:
            for each in sockets:
                each.close()
            raise OSError("systemd handed over something that is no listening TCP socket (ListenStream=host:port, Accept=no)")
    return sockets


def notify(state: str) -> None:
    """Sends `state` to the service manager; does nothing without $NOTIFY_SOCKET, and logs a failure."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
            sock.sendto(state.encode(), address)
    except OSError as error:
        _log.warning("systemd was not notified of %s: %s", state.splitlines()[0], error)


def reloading() -> str:
    """The state for `notify` at the start of a reload; Type=notify-reload requires the time."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def stopping(seconds: float) -> str:
    """The state for `notify` at the start of a drain of `seconds`, which may exceed TimeoutStopSec."""
    return f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}"
