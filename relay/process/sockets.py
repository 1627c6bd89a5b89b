"""The listening sockets of all workers: bound once, kept over reloads while their address is configured, and distributed to the workers.

A connection waits in the backlog of one socket until a worker that holds this socket accepts it. So a socket is closed only when
its address is no longer configured; after a reload to fewer workers the surplus sockets go to the remaining workers.

SO_REUSEPORT lets every process of the same user join a port, so a second relay would silently take a share of the first one's clients.
Therefore the first socket of an address is bound without the option, and the kernel refuses that when another process listens there.
The option is set once this socket listens; the other sockets join with the option.
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
    """The sockets of one configuration, by address as written in `listen`."""

    def __init__(self, by_address: Mapping[str, list[socket.socket]], known: frozenset[int] = frozenset()) -> None:
        self._by_address = dict(by_address)
        self._known = known  # inodes of all sockets since the start, as a draining worker may hold one that is closed here

    def __iter__(self) -> Iterator[socket.socket]:
        return (sock for sockets in self._by_address.values() for sock in sockets)

    def opened(self, listen: list[str], workers: int) -> Sockets:
        """The sockets for another configuration: addresses of the present one keep their sockets, new addresses are bound.

        Each address gets one SO_REUSEPORT socket for each worker, `systemd` those that systemd passed. With port 0 the system chooses
        one port for all workers. Raises OSError, also when another process listens there; then the new sockets are closed again.
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
        except BaseException:  # close the new sockets, keep those in use
            sockets.close(but=self)
            raise
        return sockets

    def _first(self, host: str, port: int) -> socket.socket:
        """The first socket of an address; raises OSError when another process listens there, or on an overlapping address.

        This relay's own sockets may overlap: 127.0.0.1:22 with 0.0.0.0:22, or one that a draining worker still holds. The kernel
        refuses those like foreign ones, so the kernel's table of listeners is searched for foreign sockets before and after the bind:
        before, so that no client of the other process gets here; after, because it may have begun to listen in between.
        """
        try:
            sock = bind(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or self._foreign_socket_listens(host, port):
                raise
            sock = bind(host, port, reuse_port=True)
            if self._foreign_socket_listens(host, port, sock):
                sock.close()
                raise
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return sock

    def _foreign_socket_listens(self, host: str, port: int, mine: socket.socket | None = None) -> bool:
        known = self._known if mine is None else self._known | {_inode(mine)}
        return any(inode not in known for inode in _listeners(host, port))

    def dealt(self, workers: int) -> list[list[socket.socket]]:
        """The sockets of each worker. For each worker a socket of every address; no socket is left over. systemd's go to all workers."""
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
    """The inodes of the sockets that listen on this address or on an overlapping one. Raises OSError."""
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
    """The reason why the relay cannot listen at `address`, and for a privileged port the remedy; leaves out asyncio's own wording."""
    reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else error.strerror or str(error)
    if error.errno != errno.EACCES or not address:
        return reason
    _, port = parse_address(address, any_port=True)
    allow = f"or net.ipv4.ip_unprivileged_port_start = {port} (sysctl), or be a port from 1024 on"
    return f"{reason}: a port below net.ipv4.ip_unprivileged_port_start needs CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities), {allow}"


def bind(host: str, port: int, reuse_port: bool = False) -> socket.socket:
    """A listening TCP socket. Raises OSError; without `reuse_port` also when another socket listens on the address (EADDRINUSE).

    SO_REUSEADDR lets several processes bind one address until one of them listens. When two call listen() at the same moment, the
    kernel may refuse both. So a refused listen() is retried: one process gets the address, and bind() refuses the other.
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
        time.sleep(random.uniform(0, LISTEN_AGAIN_SECONDS))  # noqa: S311 # random, so that two processes do not retry in step
