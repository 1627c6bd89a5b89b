"""The SSH transport of one client connection (RFC 4253): asyncssh's, with limits on what an unauthenticated client can make it hold.

It also saves CPU time that asyncssh spends on options built anew for each login and on timers made anew for each segment; what
relay.ssh.packets, kex and userauth save is described there.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from ipaddress import IPv6Address, ip_address
from typing import Any

import asyncssh
from asyncssh.channel import SSHChannel
from asyncssh.constants import (
    DISC_PROTOCOL_ERROR,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_DEBUG,
    MSG_GLOBAL_REQUEST,
    MSG_IGNORE,
    MSG_KEX_FIRST,
    MSG_KEX_LAST,
    MSG_KEXINIT,
    MSG_NEWKEYS,
    MSG_REQUEST_FAILURE,
    MSG_REQUEST_SUCCESS,
    OPEN_ADMINISTRATIVELY_PROHIBITED,
    OPEN_CONNECT_FAILED,
    OPEN_RESOURCE_SHORTAGE,
    OPEN_UNKNOWN_CHANNEL_TYPE,
)
from asyncssh.packet import PacketDecodeError, SSHPacket, String

from relay.admission.limits import Allowance
from relay.errors import RelayError
from relay.gathering import GATHER_LESS_BYTES, GATHER_SECONDS, GATHER_UNTAKEN_BYTES, Pace
from relay.ssh.algorithms import SEND_PACKET_LEAST_BYTES
from relay.ssh.channel import Channel
from relay.ssh.kex import SharedHandshakeState
from relay.ssh.packets import Unanswered
from relay.ssh.quiet import QUIET
from relay.ssh.userauth import LoginConnection

PACKET_BYTES = 256 * 1024  # as OpenSSH's PACKET_MAX_SIZE: its client sends an environment variable of any size in one packet
STRANGER_PACKET_BYTES = 35_000  # RFC 4253 section 6.1: every implementation must accept this much; before the login no client needs more
PACKET_LEAST_BYTES = 5  # padding length and least padding
UNAUTHENTICATED_INPUT_BYTES = 256 * 1024  # received and not processed, before authentication
UNAUTHENTICATED_PACKETS = 64  # key exchange, services, MSG_IGNORE; and for each attempt that is allowed:
ATTEMPT_PACKETS = 4
DEFERRED_PACKETS = 1_000  # replies that wait for the end of a key exchange
UNREAD_REPLIES_BYTES = 1 << 20  # in the write buffer; beyond it the relay stops reading from the client
UNREAD_REPLIES = 1_000  # to requests that came while the write buffer was not empty; a reply alone in a write costs uvloop 900 bytes more
UNREAD_LOOK_SECONDS = 0.05
REQUESTS_PER_SECOND = 1_000  # of an authenticated client; beyond it the relay pauses reading from it
REQUESTS_BURST = 20_000  # of them at once
KEY_EXCHANGE_REQUESTS = 100  # a key exchange, and the proof of a host key, cost as much as so many requests

_FREE = frozenset(  # messages that do not count as requests; asyncssh's client sends a MSG_IGNORE before each packet
    (
        *range(MSG_IGNORE, MSG_DEBUG + 1),
        MSG_NEWKEYS,
        *range(MSG_KEX_FIRST, MSG_KEX_LAST + 1),
        MSG_CHANNEL_WINDOW_ADJUST,
        MSG_CHANNEL_DATA,
        MSG_CHANNEL_EXTENDED_DATA,
    )
)
_FORWARDS = (b"direct-tcpip", b"direct-streamlocal@openssh.com", b"forwarded-tcpip", b"x11", b"auth-agent@openssh.com", b"tun@openssh.com")

_log = logging.getLogger("relay.transport")


class LoginTimeout(asyncssh.ConnectionLost):
    """The client did not log in within the grace time."""

    def __init__(self) -> None:
        super().__init__("Login timeout expired")


class KeepaliveTimeout(asyncssh.ConnectionLost):
    """The client sent nothing for so long, not even an answer to a keepalive."""

    def __init__(self) -> None:
        super().__init__("Client not responding to keepalive")


def _is_same(one: str, other: str) -> bool:
    """Whether two texts name the same address; either may be IPv4-mapped or have a scope."""
    addresses = [ip_address(text.partition("%")[0]) for text in (one, other)]
    plain = [(address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address for address in addresses]
    return plain[0] == plain[1]


class ClientConnection(LoginConnection):
    """One client's connection. `real_address`: the client's, from a PROXY header; `waited_seconds` were spent on reading that header."""

    channel_class: type[Channel] = Channel

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: asyncssh.SSHServerConnectionOptions,
        real_address: tuple[str, int] | None = None,
        waited_seconds: float = 0.0,
        attempts: int = 6,
        once: SharedHandshakeState | None = None,
    ) -> None:
        super().__init__(loop, options, once or SharedHandshakeState())
        self._max_recv_pktlen = STRANGER_PACKET_BYTES
        self._packets_left = UNAUTHENTICATED_PACKETS + ATTEMPT_PACKETS * attempts
        if waited_seconds:
            self._cancel_login_timer()
            self._login_timer = loop.call_later(max(0.0, options.login_timeout - waited_seconds), self._login_timer_callback)
        self._real_address = real_address
        self._reading_stopped = False
        self._heard = False
        self._read_bytes = 0  # of channels' data and window adjusts, with what came before them
        self._pace = Pace()
        self._requests = 0  # in the last read
        self._unread_replies = 0  # at most
        self._read_again_bytes = 0  # reading goes on when no more are in the write buffer
        self._allowance: Allowance | None = None  # made at the first request after the login
        self._held_back = False  # reading is paused until the allowance is positive again, so keepalives cannot be answered
        self._slowed = False  # reading was paused at least once, and that was logged

    def connection_made(self, transport: Any) -> None:
        if self._real_address is not None:
            peer = transport.get_extra_info("peername")
            # the load balancer's own health checks may send a header too, which names the balancer
            self.set_extra_info(peername=self._real_address, named_by_header=not peer or not _is_same(str(peer[0]), self._real_address[0]))
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
        self._heard = self.said = True
        if self._session_id:
            super().data_received(data, datatype)
        else:
            began = time.thread_time()
            super().data_received(data, datatype)
            self.cpu_seconds += time.thread_time() - began
        transport = self._transport
        if transport is None or self._reading_stopped:
            return
        unread = transport.get_write_buffer_size()
        wait = self._spend(unread) if self._requests else 0.0
        if wait or unread > UNREAD_REPLIES_BYTES or self._unread_replies > UNREAD_REPLIES:
            self._reading_stopped, self._held_back = True, wait > 0
            many = self._unread_replies > UNREAD_REPLIES
            self._read_again_bytes = (min(unread, UNREAD_REPLIES_BYTES) if many else UNREAD_REPLIES_BYTES) // 2
            transport.pause_reading()
            self._loop.call_later(max(wait, UNREAD_LOOK_SECONDS), self._read_again)

    def was_read(self, channel: SSHChannel[bytes], size: int) -> None:
        """Lets small packets gather before the next read (relay.gathering), where the connection carries bulk of one channel alone."""
        self._read_bytes += size
        if (
            size < GATHER_LESS_BYTES
            and self._transport is not None
            and isinstance(channel, Channel)
            and (channel.unadjusted >= GATHER_UNTAKEN_BYTES or channel.host_untaken >= GATHER_UNTAKEN_BYTES)
            and len(self._channels) == 1
            and not self._reading_stopped
            and self._pace.is_slow(self._loop.time(), self._handed + self._read_bytes)
        ):
            self._transport.pause_reading()
            self._loop.call_later(GATHER_SECONDS, self._gathered)

    def _gathered(self) -> None:
        if self._transport is not None and not self._reading_stopped:
            self._transport.resume_reading()

    def _spend(self, unread: int) -> float:
        """Charges the requests of the last read; returns for how many seconds to pause reading. `unread`: bytes in the write buffer."""
        requests, self._requests = self._requests, 0
        self._unread_replies = self._unread_replies + requests if unread else 0
        if self._allowance is None:
            self._allowance = Allowance(REQUESTS_PER_SECOND, REQUESTS_BURST)
        wait = self._allowance.spend(requests)
        if wait and not self._slowed:
            self._slowed = True
            _log.warning(
                "a connection from %s is read more slowly: it sends more than %d requests a second", self._peer_addr, REQUESTS_PER_SECOND
            )
        return wait

    def _recv_pkthdr(self) -> bool:
        complete = super()._recv_pkthdr()
        if complete and self._pktlen < PACKET_LEAST_BYTES:
            raise asyncssh.ProtocolError("Packet too short")
        return complete

    def _finish_recv_packet(self, pkttype: int, seq: int, task: Any = None, is_async: bool = False) -> None:
        """Limits the packets before authentication, against floods of ignored messages, key exchanges or offered keys."""
        if not self._auth_complete:
            self._packets_left -= 1
            if self._packets_left < 0 and self._transport is not None:
                self._end("Too many packets before authentication")
        elif pkttype not in _FREE:
            self._requests += KEY_EXCHANGE_REQUESTS if pkttype == MSG_KEXINIT else 1
        super()._finish_recv_packet(pkttype, seq, task, is_async)

    async def send_userauth_success(self) -> None:
        await super().send_userauth_success()
        self._max_recv_pktlen = PACKET_BYTES

    def _process_global_request(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        """Answers at once (RFC 4254 section 4); asyncssh queues requests without limit behind a tcpip-forward."""
        name, want_reply = packet.get_string(), packet.get_boolean()
        if name == b"keepalive@openssh.com":
            answer = MSG_REQUEST_SUCCESS
        elif name == b"hostkeys-prove-00@openssh.com":
            self._prove_host_keys(packet, want_reply)
            return
        else:
            answer = MSG_REQUEST_FAILURE
        if want_reply:
            self.send_packet(answer)

    def _prove_host_keys(self, packet: SSHPacket, want_reply: bool) -> None:
        """OpenSSH's PROTOCOL, section 2.5: signs for each host key that the client names. It must not name a key twice."""
        named = []
        try:
            while packet:
                named.append(packet.get_string())
            keys = [self._all_server_host_keys[key] for key in named]
            if any(getattr(key, "certified", False) for key in keys):
                keys = []  # a certificate is not announced, so it is not proven
        except (PacketDecodeError, KeyError):
            keys = []
        if not want_reply:
            return
        if not keys or len(set(named)) < len(named):
            self.send_packet(MSG_REQUEST_FAILURE)
            return
        self._requests += KEY_EXCHANGE_REQUESTS * len(keys)
        prefix = String("hostkeys-prove-00@openssh.com") + String(self._session_id)
        proofs = [String(key.sign(prefix + String(blob))) for key, blob in zip(keys, named, strict=True)]
        self.send_packet(MSG_REQUEST_SUCCESS, *proofs)

    def _process_channel_open(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        """Refuses what cannot be opened (RFC 4254 section 5.1); asyncssh ends the connection for a malformed request."""
        fields = SSHPacket(packet.get_remaining_payload())
        kind, sender, _, packet_bytes = fields.get_string(), fields.get_uint32(), fields.get_uint32(), fields.get_uint32()
        if kind in _FORWARDS:
            self.send_channel_open_failure(sender, OPEN_ADMINISTRATIVELY_PROHIBITED, "nothing is forwarded here", "")
        elif kind != b"session":
            self.send_channel_open_failure(sender, OPEN_UNKNOWN_CHANNEL_TYPE, "only sessions are served here", "")
        elif packet_bytes < SEND_PACKET_LEAST_BYTES:
            self.send_channel_open_failure(sender, OPEN_RESOURCE_SHORTAGE, "the maximum packet size is too small", "")
        elif fields:
            self.send_channel_open_failure(sender, OPEN_CONNECT_FAILED, "the request for a session is malformed", "")
        else:
            with suppress(Unanswered):
                super()._process_channel_open(pkttype, pktid, packet)

    _packet_handlers = {  # noqa: RUF012 - asyncssh's own, which names functions, not methods
        **LoginConnection._packet_handlers,
        MSG_GLOBAL_REQUEST: _process_global_request,
        MSG_CHANNEL_OPEN: _process_channel_open,
    }

    def _end(self, why: str) -> None:
        """Sends a disconnect message with the reason, then closes."""
        self._send_disconnect(DISC_PROTOCOL_ERROR, why, "")
        self._force_close(asyncssh.ProtocolError(why))

    def _force_close(self, exc: Exception | None) -> None:
        """Drops what was received; asyncssh would process the buffer to its end."""
        self._inpbuf = b""
        super()._force_close(exc)

    def _read_again(self) -> None:
        """Resumes reading once the client has read its replies: they must not pile up while it sends more requests."""
        transport = self._transport
        if transport is None:
            return
        self._held_back = False
        if transport.get_write_buffer_size() > self._read_again_bytes:
            self._loop.call_later(UNREAD_LOOK_SECONDS, self._read_again)
        else:
            self._reading_stopped = False
            self._unread_replies = 0
            transport.resume_reading()

    # -- out -------------------------------------------------------------------------------------------------------------

    def deferred(self, count: int) -> None:
        if count > DEFERRED_PACKETS and self._transport is not None:
            self._deferred_packets.clear()
            self._end("A key exchange was begun and not finished")

    # -- keepalive -------------------------------------------------------------------------------------------------------

    def _reset_keepalive_timer(self) -> None:
        """Does nothing: asyncssh makes a new timer for every segment; here the running one checks `_heard` when it fires."""

    def _keepalive_timer_callback(self) -> None:
        if self._heard or self._held_back:
            self._heard = False
            self._keepalive_count = 0
            self._set_keepalive_timer()
        elif self._keepalive_count >= self._keepalive_count_max:
            self.connection_lost(KeepaliveTimeout())
        else:
            super()._keepalive_timer_callback()

    def _login_timer_callback(self) -> None:
        self._login_timer = None
        self.connection_lost(LoginTimeout())

    # -- faults ----------------------------------------------------------------------------------------------------------

    def internal_error(self, exc_info: Any = None, error_logger: Any = None) -> None:
        """Logs an internal error in a packet handler and ends the connection; asyncssh would log it at level debug."""
        error = (exc_info or sys.exc_info())[1]
        if isinstance(
            error, PacketDecodeError | UnicodeDecodeError
        ):  # the client's fault: asyncssh's parser raises these for malformed packets
            self._end(f"Malformed packet: {error}")
            return
        _log.error("a connection from %s was ended by a fault", self._peer_addr, exc_info=exc_info or True)
        self.ended_by = partial(RelayError, f"{type(error).__name__}: {error}")
        super().internal_error(exc_info, QUIET)


def connection_factory(
    options: asyncssh.SSHServerConnectionOptions, loop: Any, attempts: int, kind: type[ClientConnection] = ClientConnection
) -> Callable[[tuple[str, int] | None, float], ClientConnection]:
    """Makes connections of class `kind` from options that were built once."""
    once = SharedHandshakeState()

    def make(real_address: tuple[str, int] | None, waited_seconds: float) -> ClientConnection:
        return kind(loop, options, real_address, waited_seconds, attempts, once)

    return make
