"""What a client that is not let in reads before the close (RFC 4253, sections 4.2 and 11.1).

1. The text as a line before the version line, for people and programs that know no packets; clients pass over it.
2. The version line and a disconnect message with the text, which clients print.

Before the key exchange packets are not encrypted, so this takes no key exchange and no key: one write, and a wait for the client to close.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Literal

from asyncssh.constants import DISC_HOST_NOT_ALLOWED_TO_CONNECT, DISC_TOO_MANY_CONNECTIONS, MSG_DISCONNECT
from asyncssh.packet import Byte, String, UInt32

FAREWELLS_MOST: Final = 32  # under way at once, in a worker; beyond it the connection is closed without a word
FAREWELLS_OF_SOURCE: Final = 4  # in FAREWELL_SECONDS, so that a flood from one source reads nothing and does not take those of all
FAREWELL_SECONDS: Final = 2.0  # for the client to read it and to close
FAREWELL_READ_BYTES: Final = 64 * 1024  # read meanwhile and thrown away: for bytes left unread the kernel would reset the connection

BLOCK_BYTES = 8  # RFC 4253 section 6: a packet's length is a multiple of it
PADDING_LEAST_BYTES = 4

Why = Literal["penalty", "connections", "source", "unauthenticated", "proxy"]

# Vague about others: behind one address there may be several people.
TEXTS: Final[dict[Why, tuple[int, str]]] = {
    "penalty": (DISC_HOST_NOT_ALLOWED_TO_CONNECT, "Too many failed logins from your address, try again later"),
    "source": (DISC_TOO_MANY_CONNECTIONS, "Too many connections from your address, try again later"),
    "connections": (DISC_TOO_MANY_CONNECTIONS, "Too many connections, try again in a moment"),
    "unauthenticated": (DISC_TOO_MANY_CONNECTIONS, "Too many connections, try again in a moment"),
    "proxy": (DISC_HOST_NOT_ALLOWED_TO_CONNECT, "You cannot connect in this way, ask who runs this relay which address to use"),
}


def message(version: str, why: Why) -> bytes:
    """The line before the version line, the version line, and the packet."""
    code, text = TEXTS[why]
    payload = Byte(MSG_DISCONNECT) + UInt32(code) + String(text) + String("")
    padding = -(5 + len(payload)) % BLOCK_BYTES
    if padding < PADDING_LEAST_BYTES:
        padding += BLOCK_BYTES
    packet = UInt32(1 + len(payload) + padding) + Byte(padding) + payload + bytes(padding)
    return f"{text}\r\nSSH-2.0-{version}\r\n".encode() + packet


class Farewells:
    """Those of a worker: never more than FAREWELLS_MOST under way, and FAREWELLS_OF_SOURCE to a source in FAREWELL_SECONDS."""

    def __init__(self, version: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._messages = {why: message(version, why) for why in TEXTS}
        self._under_way: set[_Farewell] = set()
        self._by_source: Counter[str] = Counter()  # in this window
        self._window_ends = 0.0

    def __len__(self) -> int:
        return len(self._under_way)

    def say(self, transport: asyncio.Transport, source: str, why: Why) -> None:
        """Tells the client why and closes; without a word when there are too many."""
        now = self._clock()
        if now >= self._window_ends:
            self._by_source.clear()
            self._window_ends = now + FAREWELL_SECONDS
        full = len(self._under_way) >= FAREWELLS_MOST or self._by_source.get(source, 0) >= FAREWELLS_OF_SOURCE
        if full or transport.is_closing():
            transport.abort()
            return
        self._by_source[source] += 1
        farewell = _Farewell(self, transport)
        self._under_way.add(farewell)
        transport.set_protocol(farewell)
        transport.write(self._messages[why])
        transport.write_eof()

    def close(self) -> None:
        """The worker stops."""
        for farewell in list(self._under_way):
            farewell.end()

    def ended(self, farewell: _Farewell) -> None:
        self._under_way.discard(farewell)


class _Farewell(asyncio.Protocol):
    """One client, until it closes, its time is up, or it has sent too much."""

    def __init__(self, all_of_them: Farewells, transport: asyncio.Transport) -> None:
        self._all = all_of_them
        self._transport = transport
        self._left = FAREWELL_READ_BYTES
        self._timer = asyncio.get_running_loop().call_later(FAREWELL_SECONDS, self.end)

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._all.ended(self)

    def end(self) -> None:
        self._transport.abort()
