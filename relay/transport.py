"""The SSH transport of one client connection (RFC 4253): asyncssh's, with caps on what a stranger can make it hold, and without waste.

What is wasted by asyncssh, and is not here: options that are built anew for each login, decodings that cannot succeed, timers that are
made anew for each segment, and what relay.packets saves on the way between its handlers and the socket.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import asyncssh
from asyncssh.constants import DISC_PROTOCOL_ERROR, MSG_CHANNEL_OPEN, MSG_GLOBAL_REQUEST, MSG_REQUEST_FAILURE
from asyncssh.packet import PacketDecodeError, SSHPacket

from relay.kexinit import Once
from relay.packets import QUIET, Unanswered
from relay.userauth import LoginConnection

PACKET_BYTES = 35_000  # RFC 4253 section 6.1: what everybody must take; a client sends no larger ones
PACKET_LEAST_BYTES = 5  # padding length and least padding
UNAUTHENTICATED_INPUT_BYTES = 256 * 1024  # received and not processed, before authentication
UNAUTHENTICATED_PACKETS = 64  # key exchange, services, noise, and besides, for each attempt that is allowed:
ATTEMPT_PACKETS = 4
DEFERRED_PACKETS = 1_000  # answers that wait for the end of a key exchange
UNREAD_REPLIES_BYTES = 1 << 20  # written and not read by the client; then the client is not read either
UNREAD_LOOK_SECONDS = 0.05

_log = logging.getLogger("relay.transport")


class ClientConnection(LoginConnection):
    """One client's connection; `real_address` is who a trusted load balancer said that the client is, for which it was waited so long."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: asyncssh.SSHServerConnectionOptions,
        real_address: tuple[str, int] | None = None,
        waited_seconds: float = 0.0,
        attempts: int = 6,
        once: Once | None = None,
    ) -> None:
        super().__init__(loop, options, once or Once())
        self._max_recv_pktlen = PACKET_BYTES
        self._packets_left = UNAUTHENTICATED_PACKETS + ATTEMPT_PACKETS * attempts
        if waited_seconds:
            self._cancel_login_timer()
            self._login_timer = loop.call_later(max(0.0, options.login_timeout - waited_seconds), self._login_timer_callback)
        self._real_address = real_address
        self._reading_stopped = False
        self._heard = False

    def connection_made(self, transport: Any) -> None:
        if self._real_address is not None:
            self.set_extra_info(peername=self._real_address)
        super().connection_made(transport)
        if self._real_address is not None:
            self._peer_addr, self._peer_port = self._real_address

    # -- in --------------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes | memoryview, datatype: int | None = None) -> None:
        if self._transport is None:
            return
        if not self._auth_complete and len(self._inpbuf) + len(data) > UNAUTHENTICATED_INPUT_BYTES:
            self._force_close(asyncssh.ProtocolError("Too much input before authentication"))
            return
        self._heard = True
        super().data_received(data, datatype)
        transport = self._transport
        if transport is not None and not self._reading_stopped and transport.get_write_buffer_size() > UNREAD_REPLIES_BYTES:
            self._reading_stopped = True
            transport.pause_reading()
            self._loop.call_later(UNREAD_LOOK_SECONDS, self._read_again)

    def _recv_pkthdr(self) -> bool:
        complete = super()._recv_pkthdr()
        if complete and self._pktlen < PACKET_LEAST_BYTES:
            raise asyncssh.ProtocolError("Packet too short")
        return complete

    def _finish_recv_packet(self, pkttype: int, seq: int, task: Any = None, is_async: bool = False) -> None:
        """Strangers have no business that takes many packets: floods of ignored messages, key exchanges or offered keys end here."""
        if not self._auth_complete:
            self._packets_left -= 1
            if self._packets_left < 0 and self._transport is not None:
                self._end("Too many packets before authentication")
        super()._finish_recv_packet(pkttype, seq, task, is_async)

    def _process_global_request(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        """Answers at once: asyncssh queues behind requests to forward ports, which are never granted, without bound.

        The proof of host keys costs a signature for each key that is named, so none may be named twice.
        """
        fields = SSHPacket(packet.get_remaining_payload())
        name, want_reply = fields.get_string(), fields.get_boolean()
        own_keys = sum(4 + len(key) for key in self._all_server_host_keys)
        if name == b"keepalive@openssh.com" or (
            name == b"hostkeys-prove-00@openssh.com" and len(fields.get_remaining_payload()) <= own_keys
        ):
            super()._process_global_request(pkttype, pktid, packet)
        elif want_reply:
            self.send_packet(MSG_REQUEST_FAILURE)

    def _process_channel_open(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        with suppress(Unanswered):
            super()._process_channel_open(pkttype, pktid, packet)

    _packet_handlers = {  # noqa: RUF012 - asyncssh's own, which names functions, not methods
        **LoginConnection._packet_handlers,
        MSG_CHANNEL_OPEN: _process_channel_open,
        MSG_GLOBAL_REQUEST: _process_global_request,
    }

    def _end(self, why: str) -> None:
        """Says why, then closes."""
        self._send_disconnect(DISC_PROTOCOL_ERROR, why, "")
        self._force_close(asyncssh.ProtocolError(why))

    def _force_close(self, exc: Exception | None) -> None:
        """Nothing of what was received is looked at any more; asyncssh would go on to the end of the buffer."""
        self._inpbuf = b""
        super()._force_close(exc)

    def _read_again(self) -> None:
        """Replies that the client does not read must not pile up while it goes on asking."""
        transport = self._transport
        if transport is None:
            return
        if transport.get_write_buffer_size() > UNREAD_REPLIES_BYTES // 2:
            self._loop.call_later(UNREAD_LOOK_SECONDS, self._read_again)
        else:
            self._reading_stopped = False
            transport.resume_reading()

    # -- out -------------------------------------------------------------------------------------------------------------

    def deferred(self, count: int) -> None:
        if count > DEFERRED_PACKETS and self._transport is not None:
            self._deferred_packets.clear()
            self._end("A key exchange was begun and not finished")

    # -- keepalive -------------------------------------------------------------------------------------------------------

    def _reset_keepalive_timer(self) -> None:
        """asyncssh makes a new timer for every segment; here the one that runs looks whether anything was `_heard` meanwhile."""

    def _keepalive_timer_callback(self) -> None:
        if self._heard:
            self._heard = False
            self._keepalive_count = 0
            self._set_keepalive_timer()
        else:
            super()._keepalive_timer_callback()

    # -- faults ----------------------------------------------------------------------------------------------------------

    def internal_error(self, exc_info: Any = None, error_logger: Any = None) -> None:
        """A fault of ours in a packet handler ends this connection, and is told; asyncssh would hide it at level debug."""
        error = (exc_info or sys.exc_info())[1]
        if isinstance(error, PacketDecodeError | UnicodeDecodeError):  # no fault of ours: asyncssh lets these escape from its parser
            self._end(f"Malformed packet: {error}")
            return
        _log.error("a connection from %s was ended by a fault", self._peer_addr, exc_info=exc_info or True)
        super().internal_error(exc_info, QUIET)


def connection_factory(
    options: asyncssh.SSHServerConnectionOptions, loop: Any, attempts: int
) -> Callable[[tuple[str, int] | None, float], ClientConnection]:
    """Makes connections from options that were built once, without a file read or an executor."""
    once = Once()

    def make(real_address: tuple[str, int] | None, waited_seconds: float) -> ClientConnection:
        return ClientConnection(loop, options, real_address, waited_seconds, attempts, once)

    return make
