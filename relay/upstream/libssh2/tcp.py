"""A tuned, non-blocking TCP connection to a git host."""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import os
import socket
import struct

from relay.errors import Unavailable

SEND_BUFFER_BYTES = 1 << 20  # large, so that a packet is hardly ever partly sent


async def connect(host: str, port: int, address: str, loop: asyncio.AbstractEventLoop) -> socket.socket:
    """A non-blocking, tuned TCP connection; a name is resolved and its addresses are tried in order."""
    try:
        ipaddress.ip_address(host)
        found = [(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port))]
    except ValueError:
        try:
            found = [(family, to[:2]) for family, _, _, _, to in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)]  # type: ignore[misc]
        except OSError as error:
            raise Unavailable(f"{address}: name not resolved: {error.strerror or error}", reason="dial") from None
    problem: OSError | None = None
    for family, to in found:
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise Unavailable(f"{address}: no socket: {error}", reason="dial") from None
        try:
            sock.setblocking(False)
            _tune(sock)
            await loop.sock_connect(sock, to)
            return sock
        except OSError as error:
            sock.close()
            problem = error
        except BaseException:  # a cancellation: no other address is tried
            sock.close()
            raise
    said = os.strerror(problem.errno) if problem is not None and problem.errno is not None else problem
    raise Unavailable(f"{address}: {said}", reason="dial")


def ioctl_int(fd: int, request: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, request, b"\0" * 4))[0])


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
