"""The listening sockets of all workers: bound once, kept over reloads for as long as their address is listened on, and dealt out.

A connection waits in the backlog of one socket until a worker that holds the socket accepts it. So a socket is closed only when
its address is listened on no more: one that is left over after a reload to fewer workers is dealt to the others.

SO_REUSEPORT lets every process of the same user join a port, so a second relay would silently take a share of the first one's clients.
Hence the first socket of an address is bound without the option, which the kernel refuses when anybody else listens there, and gets it
once it listens. The other sockets join with the option.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from relay.address import SYSTEMD, format_address, parse_address
from relay.process import systemd
from relay.server import BACKLOG, LISTEN_AGAIN_SECONDS, LISTEN_TRIES, _bound

TCP_TABLES: Mapping[int, Path] = {socket.AF_INET: Path("/proc/net/tcp"), socket.AF_INET6: Path("/proc/net/tcp6")}
LISTEN_STATE = "0A"


class Sockets:
    """The sockets of one configuration, by the address as it is written there."""

    def __init__(self, by_address: Mapping[str, list[socket.socket]], known: frozenset[int] = frozenset()) -> None:
        self._by_address = dict(by_address)
        self._known = known  # inodes of all sockets since the start: a worker that drains may hold one that is closed here

    def __iter__(self) -> Iterator[socket.socket]:
        return (sock for sockets in self._by_address.values() for sock in sockets)

    def opened(self, listen: list[str], workers: int) -> Sockets:
        """Those for another configuration: addresses that are listened on already keep theirs, the others are bound.

        Each address gets a SO_REUSEPORT socket a worker, systemd's as many as it handed over. A port of 0 is chosen once and shared by
        all workers. Raises OSError, also when another process listens there, and leaves nothing open that was not before.
        """
        sockets = Sockets({address: list(self._by_address.get(address, ())) for address in listen}, self._known)
        try:
            for address, held in sockets._by_address.items():
                if address == SYSTEMD:
                    if not held:
                        held += systemd.listen_sockets()
                    continue
                host, port = parse_address(address, any_port=True)
                while len(held) < workers:
                    try:
                        sock = bind(host, held[0].getsockname()[1], reuse_port=True) if held else sockets._first(host, port)
                    except OSError as error:
                        raise OSError(f"{address}: {why_not(error, address)}") from None
                    held.append(sock)
                    sockets._known |= {_inode(sock)}
        except BaseException:  # none of those that were opened anew is left behind; the old ones go on
            sockets.close(but=self)
            raise
        return sockets

    def _first(self, host: str, port: int) -> socket.socket:
        """The first socket of an address; raises OSError when another process listens there, also on a part of it.

        This relay's own sockets may overlap with it: 127.0.0.1:22 with 0.0.0.0:22, or one that the worker of an earlier configuration
        is about to close. The kernel cannot tell those from a stranger's, so the table of listeners does, before and after the bind:
        before, so that no client of the stranger gets here; after, because the stranger may have come in between.
        """
        try:
            sock = bind(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or self._stranger_listens(host, port):
                raise
            sock = bind(host, port, reuse_port=True)
            if self._stranger_listens(host, port, sock):
                sock.close()
                raise
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return sock

    def _stranger_listens(self, host: str, port: int, mine: socket.socket | None = None) -> bool:
        known = self._known if mine is None else self._known | {_inode(mine)}
        return any(inode not in known for inode in _listeners(host, port))

    def dealt(self, workers: int) -> list[list[socket.socket]]:
        """A list for each worker. Every worker has each address, every socket a worker; systemd's belong to all of them."""
        hands: list[list[socket.socket]] = [[] for _ in range(workers)]
        for address, held in self._by_address.items():
            for hand in hands if address == SYSTEMD else ():
                hand += held
            for number, sock in enumerate(held if address != SYSTEMD else ()):
                hands[number % workers].append(sock)
        return hands

    def addresses(self) -> list[str]:
        """What is listened on, each once; of a port 0 the one that was chosen."""
        return sorted({format_address(*sock.getsockname()[:2]) for sock in self})

    def close(self, but: Sockets | None = None) -> None:
        """Closes all but those that `but` holds too."""
        kept = set(but or ())
        for sock in self:
            if sock not in kept:
                sock.close()


def _inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def _listeners(host: str, port: int) -> Iterator[int]:
    """The inodes of the sockets that listen on this address, on a part of it, or on all addresses. Raises OSError."""
    family, _, _, _, (ip, *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    wanted = socket.inet_pton(family, str(ip))
    for line in TCP_TABLES[family].read_text().splitlines()[1:]:
        fields = line.split()
        local, state, inode = fields[1], fields[3], int(fields[9])
        address, _, local_port = local.partition(":")
        if state != LISTEN_STATE or int(local_port, 16) != port:
            continue
        # the kernel prints the address as numbers of 32 bits in the machine's byte order
        bound = b"".join(struct.pack("=I", int(address[at : at + 8], 16)) for at in range(0, len(address), 8))
        if bound == wanted or not any(bound) or not any(wanted):
            yield inode


def why_not(error: OSError, address: str = "") -> str:
    """Why nothing listens at `address`, without its name, which asyncio says in words of its own; and what helps."""
    said = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror or str(error)
    if error.errno != errno.EACCES or not address:
        return said
    _, port = parse_address(address, any_port=True)
    allow = f"or net.ipv4.ip_unprivileged_port_start = {port} (sysctl), or be a port from 1024 on"
    return f"{said}: a port below net.ipv4.ip_unprivileged_port_start needs CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities), {allow}"


def bind(host: str, port: int, reuse_port: bool = False) -> socket.socket:
    """A listening TCP socket; raises OSError. Without `reuse_port` no other socket listens on the address: EADDRINUSE otherwise.

    SO_REUSEADDR lets several processes bind one address until one listens. When two call listen() at the same moment, the kernel may
    refuse both. So a refused listen() is tried again: then one gets the address, and the other's bind() is refused.
    """
    left = LISTEN_TRIES
    while True:
        sock = _bound(host, port, reuse_port)
        left -= 1
        try:
            sock.listen(BACKLOG)
            return sock
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRINUSE or not left:
                raise
        time.sleep(random.uniform(0, LISTEN_AGAIN_SECONDS))  # noqa: S311 # so that two processes do not stay in step
