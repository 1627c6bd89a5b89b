"""Reads the PROXY header that a load balancer sends before SSH, then passes the transport on to the client connection."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Literal, cast

from relay.address import plain_address
from relay.admission.farewell import Farewells, Why
from relay.admission.limits import source_of
from relay.admission.proxy_protocol import BadHeader, Need, Trusted, looks_like, parse
from relay.config import Config
from relay.events import Observer
from relay.text import counted

_log = logging.getLogger("relay.proxy")


class ProxyHeaderReader(asyncio.Protocol):
    """`allow`: a header is believed from `trusted`, and may be missing; `require`: it must come first, from `trusted` only.

    It is in `unfinished` until the header has been read; at most unauthenticated_connections may be there.
    """

    def __init__(
        self,
        config: Config,
        trusted: Trusted,
        make: Callable[[tuple[str, int] | None, float], asyncio.Protocol],
        observer: Observer,
        unfinished: set[ProxyHeaderReader],
        farewells: Farewells,
    ) -> None:
        self._require = config.proxy_protocol.mode == "require"
        self._limits = config.limits
        self._trusted = trusted
        self._make = make
        self._observer = observer
        self._unfinished = unfinished
        self._farewells = farewells
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._started = time.monotonic()
        self._received = b""
        self._peer = ("unknown", 0)
        unfinished.add(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        if not peer:  # a load balancer's health check that was reset before it was accepted
            self._observer.connection_refused(self._peer[0], "no_auth", "it had gone when it was accepted")
            self.abort()
            return
        self._peer = (plain_address(str(peer[0])), int(peer[1]))
        if self._trusted.believes(self._peer[0]):
            if len(self._unfinished) > self._limits.unauthenticated_connections:
                self._refuse(f"{counted(len(self._unfinished), 'connection', 'have')} not sent their PROXY header yet", "limited")
                return
            grace = self._limits.login_grace_seconds
            self._timer = asyncio.get_running_loop().call_later(grace, self._refuse, "no PROXY header in time", "grace")
        elif self._require:
            self._refuse(f"{self._peer[0]} is not among the trusted, and a PROXY header is required")
        else:
            self._hand_over(None, b"")

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        self._received += data
        if not self._require:
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
        self._hand_over(parsed.source, self._received[parsed.consumed :])

    def _hand_over(self, client: tuple[str, int] | None, rest: bytes) -> None:
        """`client` is None for LOCAL and UNKNOWN: the connection is the balancer's own. The time so far counts as login time."""
        transport = self._leave()
        assert transport is not None
        connection = self._make(client, time.monotonic() - self._started)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        if rest:
            connection.data_received(rest)

    def _refuse(self, detail: str, outcome: Literal["proxy", "grace", "limited"] = "proxy") -> None:
        transport = self._leave()
        if transport is not None:
            _log.warning("refused: %s", detail)
            self._observer.connection_refused(self._peer[0], outcome, detail)
            why: Why = "connections" if outcome == "limited" else "proxy"
            self._farewells.say(transport, source_of(self._peer[0]), why)

    def abort(self) -> None:
        """The worker stops."""
        transport = self._leave()
        if transport is not None:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def _leave(self) -> asyncio.Transport | None:
        transport, self._transport = self._transport, None
        self._unfinished.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        return transport
