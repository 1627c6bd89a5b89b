"""The listening sockets of all workers: bound once, kept over reloads for as long as their address is listened on, and dealt out.

A connection waits in the backlog of one socket until a worker that holds the socket accepts it. So a socket is closed only when
its address is listened on no more: one that is left over after a reload to fewer workers is dealt to the others.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping

from relay import sd
from relay.address import SYSTEMD, format_address, parse_address
from relay.server import bind


class Sockets:
    """The sockets of one configuration, by the address as it is written there."""

    def __init__(self, by_address: Mapping[str, list[socket.socket]]) -> None:
        self._by_address = dict(by_address)

    def __iter__(self) -> Iterator[socket.socket]:
        return (sock for sockets in self._by_address.values() for sock in sockets)

    def opened(self, listen: list[str], workers: int) -> Sockets:
        """Those for another configuration: addresses that are listened on already keep theirs, the others are bound.

        Each address gets a SO_REUSEPORT socket a worker, systemd's as many as it handed over. A port of 0 is chosen once and shared by
        all workers. Raises OSError, and leaves nothing open that was not before.
        """
        sockets = Sockets({address: list(self._by_address.get(address, ())) for address in listen})
        try:
            for address, held in sockets._by_address.items():
                if address == SYSTEMD:
                    if not held:
                        held += sd.listen_sockets()
                    continue
                host, port = parse_address(address, any_port=True)
                while len(held) < workers:
                    port = held[0].getsockname()[1] if held else port
                    try:
                        held.append(bind(host, port, reuse_port=True))
                    except OSError as error:
                        raise OSError(f"{address}: {error.strerror or error}") from None
        except BaseException:  # none of those that were opened anew is left behind; the old ones go on
            sockets.close(but=self)
            raise
        return sockets

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
