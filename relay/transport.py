"""The SSH transport of one client connection (RFC 4253): asyncssh's, with caps on what a stranger can make it hold, and without waste.

What is wasted by asyncssh, and is not here: options that are built anew for each login, decodings that cannot succeed, timers that are
made anew for each segment, and what relay.packets saves on the way between its handlers and the socket.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Any

import asyncssh
from asyncssh.connection import SSHServerConnection
from asyncssh.constants import DISC_PROTOCOL_ERROR, MSG_GLOBAL_REQUEST, MSG_KEXINIT, MSG_REQUEST_FAILURE
from asyncssh.packet import PacketDecodeError, SSHPacket

from relay.packets import QUIET, PacketConnection

PACKET_BYTES = 35_000  # RFC 4253 section 6.1: what everybody must take; a client sends no larger ones
PACKET_LEAST_BYTES = 5  # padding length and least padding
UNAUTHENTICATED_INPUT_BYTES = 256 * 1024  # received and not processed, before authentication
UNAUTHENTICATED_PACKETS = 64  # key exchange, services, noise, and besides, for each attempt that is allowed:
ATTEMPT_PACKETS = 4
DEFERRED_PACKETS = 1_000  # answers that wait for the end of a key exchange
UNREAD_REPLIES_BYTES = 1 << 20  # written and not read by the client; then the client is not read either
UNREAD_LOOK_SECONDS = 0.05

_log = logging.getLogger("relay.transport")


class Judge:
    """The server logic, as far as the transport can tell it what asyncssh does not; one that is no Judge is told nothing.

    A class, since to ask whether something fits a Protocol takes longer than to decrypt a packet.
    """

    def bad_signature(self) -> None:
        raise NotImplementedError

    def failure_due(self) -> None:
        """Raises DisconnectError when it is one too many: a client that is told both goes on asking, and loses why it was disconnected."""
        raise NotImplementedError

    def is_candidate(self) -> bool:
        """Whether the key that was validated last is somebody's."""
        raise NotImplementedError

    async def validate_certificate(self, username: str, blob: bytes) -> asyncssh.SSHKey | None:
        """The key whose signature is looked for next; asyncssh would decode the certificate and tell neither its key id nor its serial."""
        raise NotImplementedError


_saslprep = asyncssh.saslprep.saslprep


def _prepared(text: str) -> str:
    """SASLprep (RFC 4013) of a user name, asked three times a login: printable ASCII is what it leaves alone."""
    return text if text.isascii() and text.isprintable() else _saslprep(text)


setattr(asyncssh.connection, "saslprep", _prepared)  # noqa: B010 - mypy knows the function's own parameter name


class ClientConnection(PacketConnection):
    """One client's connection; `real_address` is who a trusted load balancer said that the client is, for which it was waited so long."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: asyncssh.SSHServerConnectionOptions,
        real_address: tuple[str, int] | None = None,
        waited_seconds: float = 0.0,
        attempts: int = 6,
    ) -> None:
        super().__init__(loop, options)
        self._max_recv_pktlen = PACKET_BYTES
        self._packets_left = UNAUTHENTICATED_PACKETS + ATTEMPT_PACKETS * attempts
        if waited_seconds:
            self._cancel_login_timer()
            self._login_timer = loop.call_later(max(0.0, options.login_timeout - waited_seconds), self._login_timer_callback)
        self._real_address = real_address
        self._reading_stopped = False
        self._first_failure = True
        self._heard = False

    def connection_made(self, transport: Any) -> None:
        if self._real_address is not None:
            self.set_extra_info(peername=self._real_address)
        super().connection_made(transport)
        if self._real_address is not None:
            self._peer_addr, self._peer_port = self._real_address

    # -- in --------------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        if self._transport is None:
            return
        if not self._auth_complete and len(self._inpbuf) + len(data) > UNAUTHENTICATED_INPUT_BYTES:
            self._force_close(asyncssh.ProtocolError("Too much input before authentication"))
            return
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

    async def _process_kexinit(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        """What a client sent ahead is passed over unless both prefer the same key exchange and host key (RFC 4253 section 7).

        asyncssh keeps it when the client's first choice is agreed upon; Dropbear then sends it again, and would be disconnected.
        """
        fields = SSHPacket(packet.get_remaining_payload())
        await super()._process_kexinit(pkttype, pktid, packet)
        fields.get_bytes(16)  # cookie
        key_exchange, host_key, *_ = [fields.get_namelist() for _ in range(10)]
        alike = key_exchange[:1] == self._kex_algs[:1] and host_key[:1] == list(self._server_host_keys)[:1]
        self._ignore_first_kex = fields.get_boolean() and not alike

    _packet_handlers = {  # noqa: RUF012 - asyncssh's own, which names functions, not methods
        **SSHServerConnection._packet_handlers,
        MSG_KEXINIT: _process_kexinit,
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

    def send_packet(self, pkttype: int, *args: bytes, handler: Any = None) -> None:
        super().send_packet(pkttype, *args, handler=handler)
        if len(self._deferred_packets) > DEFERRED_PACKETS and self._transport is not None:
            self._deferred_packets.clear()
            self._end("A key exchange was begun and not finished")

    # -- authentication --------------------------------------------------------------------------------------------------

    async def reload_config(self) -> None:
        """Nothing of the options depends on the user: asyncssh would build them anew for every login."""

    async def _validate_client_certificate(self, username: str, key_data: bytes) -> Any:
        """asyncssh decodes every key as a certificate first; the type's name (RFC 4253 section 6.6) says whether it is one."""
        length = int.from_bytes(key_data[:4], "big")
        if b"-cert-v0" not in key_data[4 : 4 + length]:
            return None
        return await self._owner.validate_certificate(username, key_data) if isinstance(self._owner, Judge) else None

    async def validate_public_key(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        valid = await super().validate_public_key(username, key_data, msg, signature)
        if not valid and msg and isinstance(self._owner, Judge) and self._owner.is_candidate():
            self._owner.bad_signature()
        return valid

    def send_userauth_failure(self, partial_success: bool) -> None:
        first, self._first_failure = self._first_failure, False
        if isinstance(self._owner, Judge) and not first:  # the first asks by "none" which methods there are
            self._owner.failure_due()
        super().send_userauth_failure(partial_success)

    # -- keepalive -------------------------------------------------------------------------------------------------------

    def _reset_keepalive_timer(self) -> None:
        """asyncssh makes a new timer for every segment; here the one that runs looks whether anything was heard meanwhile."""
        self._heard = True

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

    def make(real_address: tuple[str, int] | None, waited_seconds: float) -> ClientConnection:
        return ClientConnection(loop, options, real_address, waited_seconds, attempts)

    return make
