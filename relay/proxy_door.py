"""What stands before a client connection when a load balancer says who the client is: reads one PROXY header, then steps aside."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Literal, cast

from relay.events import Observer
from relay.proxy_protocol import BadHeader, Header, Need, Trusted, looks_like, parse
from relay.transport import ClientConnection

_log = logging.getLogger("relay.proxy")


class ProxyDoor(asyncio.Protocol):
    """`allow`: a header is believed from `trusted`, and may be missing; `require`: it must come first, from `trusted` only."""

    def __init__(
        self,
        mode: Literal["off", "allow", "require"],
        trusted: Trusted,
        grace_seconds: float,
        make: Callable[[tuple[str, int] | None], ClientConnection],
        observer: Observer,
    ) -> None:
        self._mode = mode
        self._trusted = trusted
        self._grace_seconds = grace_seconds
        self._make = make
        self._observer = observer
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._received = b""
        self._peer = ("unknown", 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername") or ("unknown", 0)
        self._peer = (str(peer[0]), int(peer[1]))
        if self._trusted.believes(self._peer[0]):
            self._timer = asyncio.get_running_loop().call_later(self._grace_seconds, self._refuse, "no PROXY header in time", "grace")
        elif self._mode == "require":
            self._refuse(f"{self._peer[0]} is not among the trusted, and a PROXY header is required")
        else:
            self._hand_over(None, b"")

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        self._received += data
        if self._mode == "allow":
            header = looks_like(self._received)
            if header is None:
                return
            if not header:
                self._hand_over(None, self._received)
                return
        try:
            parsed = parse(self._received)
        except BadHeader as error:
            self._refuse(f"bad PROXY header from {self._peer[0]}: {error}")
            return
        if isinstance(parsed, Need):
            return
        self._hand_over(self._client(parsed), self._received[parsed.consumed :])

    def _client(self, header: Header) -> tuple[str, int] | None:
        """None for LOCAL and UNKNOWN: the balancer speaks for itself."""
        return (header.source.address, header.source.port) if header.source is not None else None

    def _hand_over(self, client: tuple[str, int] | None, rest: bytes) -> None:
        transport, self._transport = self._transport, None
        assert transport is not None
        if self._timer is not None:
            self._timer.cancel()
        connection = self._make(client)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        if rest:
            connection.data_received(rest)

    def _refuse(self, detail: str, outcome: Literal["proxy", "grace"] = "proxy") -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            if self._timer is not None:
                self._timer.cancel()
            _log.warning("refused: %s", detail)
            self._observer.connection_refused(self._peer[0], outcome, detail)
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
