"""The SSH trace of `[log] level = "debug"`: client connections that log their messages, and what asyncssh itself says about them.

relay.server chooses the class of all its connections once. At any other level this module is not even imported, so the trace costs nothing.
Of messages it logs the names that they hold (a method, a type, a request), never their other contents.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncssh
from asyncssh import constants
from asyncssh.constants import (
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_CHANNEL_FIRST,
    MSG_CHANNEL_LAST,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_REQUEST,
    MSG_DISCONNECT,
    MSG_GLOBAL_REQUEST,
    MSG_IGNORE,
    MSG_USERAUTH_REQUEST,
)
from asyncssh.logging import SSHLogger, logger
from asyncssh.packet import PacketDecodeError, SSHPacket

from relay.address import format_address
from relay.ssh.channel import Channel
from relay.ssh.client_connection import ClientConnection
from relay.ssh.kex import SharedHandshakeState
from relay.ssh.wire import Outgoing
from relay.text import counted, printable

ASYNCSSH_DEBUG_LEVEL = 2  # algorithms, channels, requests; 3 would dump packets

_UNTOLD = (MSG_IGNORE, MSG_CHANNEL_DATA, MSG_CHANNEL_EXTENDED_DATA)  # one each for every piece of data
_NAMES = {
    60: "MSG_USERAUTH_PK_OK",
    **{number: name for name, number in vars(constants).items() if name.startswith("MSG_") and not name.endswith(("_FIRST", "_LAST"))},
}


def described(kind: int, payload: bytes) -> str:
    """One message: its name (RFC 4250), its channel, and the names in it that say what is asked for."""
    packet = SSHPacket(payload[1:])
    words = [f"{_NAMES.get(kind, 'message')} ({kind}), {counted(len(payload), 'byte')}"]
    try:
        if MSG_CHANNEL_FIRST <= kind <= MSG_CHANNEL_LAST:
            words.append(f"channel {packet.get_uint32()}")
        if kind == MSG_USERAUTH_REQUEST:
            user, _, method = packet.get_string(), packet.get_string(), packet.get_string()
            words.append(f"user {_shown(user)}, method {_shown(method)}")
            if method == b"publickey":
                proves, algorithm = packet.get_boolean(), packet.get_string()
                words.append(f"{_shown(algorithm)} {'signed' if proves else 'offered'}")
        elif kind in (MSG_GLOBAL_REQUEST, MSG_CHANNEL_REQUEST):
            name, wants = packet.get_string(), packet.get_boolean()
            words.append(f"{_shown(name)}{', wants a reply' if wants else ''}")
        elif kind == MSG_CHANNEL_OPEN:
            words.append(_shown(packet.get_string()))
        elif kind == MSG_DISCONNECT:
            words.append(f"code {packet.get_uint32()}: {_shown(packet.get_string())}")
    except PacketDecodeError:
        words.append("malformed")
    return ", ".join(words)


def _shown(name: bytes) -> str:
    return printable(name.decode("utf-8", "replace"), 100)


class _Traced:
    """Logs a message each time asyncssh would log its packet; `logger` is asyncssh's, with the client's address."""

    _logger: SSHLogger

    @property
    def logger(self) -> SSHLogger:
        return self._logger

    def log_sent_packet(self, pkttype: int, pktid: int | None, packet: bytes | SSHPacket, note: str = "") -> None:
        self._tell("sent", pkttype, packet)

    def log_received_packet(self, pkttype: int, pktid: int | None, packet: bytes | SSHPacket, note: str = "") -> None:
        self._tell("received", pkttype, packet)

    def _tell(self, what: str, kind: int, packet: bytes | SSHPacket) -> None:
        if kind not in _UNTOLD:
            payload = packet.get_full_payload() if isinstance(packet, SSHPacket) else packet
            self._logger.debug1(f"{what} {described(kind, payload)}")  # no arguments: the log counts repeated lines by their template


class TracedChannel(_Traced, Channel):
    """A channel whose messages, and whose session's state, are logged."""


class TracedOutgoing(Outgoing):
    def __init__(self, connection: TracedConnection) -> None:
        super().__init__(connection)
        self._traced = connection

    def packet(self, kind: int, parts: tuple[bytes, ...]) -> bool:
        sent = super().packet(kind, parts)
        if sent:
            self._traced.log_sent_packet(kind, None, bytes((kind,)) + b"".join(parts))
        return sent


class TracedConnection(_Traced, ClientConnection):
    """A client connection whose messages are logged, on the same way through the relay as any other's."""

    channel_class = TracedChannel

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: asyncssh.SSHServerConnectionOptions,
        real_address: tuple[str, int] | None = None,
        waited_seconds: float = 0.0,
        attempts: int = 6,
        once: SharedHandshakeState | None = None,
    ) -> None:
        # nothing is remembered of other key exchanges: asyncssh compares, and logs, the algorithms each time
        super().__init__(loop, options, real_address, waited_seconds, attempts, SharedHandshakeState(kinds_most=0))
        asyncssh.set_debug_level(ASYNCSSH_DEBUG_LEVEL)
        self._logger = logger
        self.outgoing = TracedOutgoing(self)

    def connection_made(self, transport: Any) -> None:
        peer = self._real_address or transport.get_extra_info("peername")
        if peer:
            self._logger = logger.get_child(context=format_address(str(peer[0]), int(peer[1])))
        self._logger.debug1("accepted")
        super().connection_made(transport)

    def dispatch(self, payload: bytes) -> bool:
        self.log_received_packet(payload[0], None, payload)
        return super().dispatch(payload)

    def _force_close(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._logger.debug1("ends: %s", "closed" if exc is None else printable(f"{type(exc).__name__}: {exc}"))
        super()._force_close(exc)
