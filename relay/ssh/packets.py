"""The packets of one client connection (RFC 4253), between asyncssh's handlers and the socket.

asyncssh spends CPU time here that this class saves: a write call and a MSG_IGNORE for each packet, a task for each message of a login,
log lines that are formatted and dropped. relay.ssh.wire saves the copies and key schedules of its ciphers.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from types import CoroutineType
from typing import Any

import asyncssh
from asyncssh.channel import SSHChannel
from asyncssh.connection import SSHServerConnection
from asyncssh.constants import (
    DISC_BY_APPLICATION,
    MSG_CHANNEL_FIRST,
    MSG_CHANNEL_LAST,
    MSG_IGNORE,
    MSG_UNIMPLEMENTED,
    MSG_USERAUTH_FIRST,
    MSG_USERAUTH_LAST,
)
from asyncssh.packet import PacketDecodeError, SSHPacket, UInt32

from relay.address import plain_address
from relay.errors import BrokeProtocol, RelayError
from relay.ssh import eager
from relay.ssh.backpressure import Flow
from relay.ssh.quiet import QUIET
from relay.ssh.wire import Incoming, Outgoing
from relay.text import printable

BULK_BYTES = 128 * 1024  # a read of this size begins a large upload
_READ_BYTES = 256 * 1024
REST_BYTES = 64 * 1024  # an unfinished packet up to this size is copied before the next read; a longer one is joined to it
_buffer = memoryview(bytearray(REST_BYTES + _READ_BYTES))  # shared by all connections: each read is processed before the next one begins


class Unanswered(Exception):
    """Raised by `session_requested`: the channel open request gets no answer, since the connection is about to end."""


INTERNET = (socket.AF_INET, socket.AF_INET6)


def inherited(listener: socket.socket) -> None:
    """Sets socket options that the kernel copies to each accepted socket: keepalive, and TCP_NODELAY (no Nagle's algorithm)."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if listener.family in INTERNET:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


_setsockopt = ctypes.CDLL(None).setsockopt
_ON = ctypes.c_int(1)


def acknowledge_now(descriptor: int) -> None:
    """Sets TCP_QUICKACK, in one call: uvloop's socket makes an object for each option, with a getsockname.

    If it fails, the socket is gone or the acknowledgement comes 40 ms later; either is seen elsewhere.
    """
    _setsockopt(descriptor, socket.IPPROTO_TCP, socket.TCP_QUICKACK, ctypes.byref(_ON), ctypes.sizeof(_ON))


class _Former:
    """A closed channel: messages that the client sends after the close (RFC 4254 section 5.3) are dropped."""

    log_received_packet = QUIET.log

    def process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> bool:
        return True


_FORMER = _Former()


class _Channels(dict[int, Any]):
    """The open channels by number; a number that was used before finds a closed channel instead of none."""

    def __init__(self, connection: PacketConnection) -> None:
        super().__init__()
        self._connection = connection

    def __missing__(self, number: int) -> Any:
        if number < self._connection._next_recv_chan:  # asyncssh counts up and never uses a number twice
            return _FORMER
        raise KeyError(number)


class Bulk(asyncio.BufferedProtocol):
    """Reads a large upload for its connection into one preallocated buffer, after the unfinished packet."""

    def __init__(self, connection: PacketConnection) -> None:
        self._connection = connection
        self._begin = 0

    @classmethod
    def begin(cls, connection: PacketConnection, transport: Any) -> None:
        """Called within `data_received`; takes effect with the next read."""
        transport.pause_reading()  # uvloop looks at the kind of protocol only when reading starts
        transport.set_protocol(cls(connection))
        transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        rest = self._connection.rest
        self._begin = len(rest)
        _buffer[: self._begin] = rest
        return _buffer[self._begin : self._begin + _READ_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        if self._begin:
            self._connection.rest = b""
        self._connection.data_received(_buffer[: self._begin + nbytes])

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()  # type: ignore[func-returns-value]

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()


class PacketConnection(SSHServerConnection):
    """asyncssh's connection with the direct path of relay.ssh.wire. `flush` writes all packets of one loop iteration at once."""

    logger = QUIET
    log_sent_packet = log_received_packet = QUIET.log

    @staticmethod
    def _get_next_conn() -> int:
        """A number for asyncssh's log lines, which the relay drops. asyncssh counts in an attribute of its class, so that each connection
        makes CPython drop its caches of the attributes of all classes of connections: 7 % of the CPU time of a session.
        """
        return 0

    def __init__(self, loop: asyncio.AbstractEventLoop, options: asyncssh.SSHServerConnectionOptions) -> None:
        super().__init__(loop, options)
        self._logger = QUIET
        self._channels = _Channels(self)
        self.said = False  # whether the client has sent anything
        self.cpu_seconds = 0.0  # CPU time of the first key exchange; what follows before the login is limited in number
        self.ended_by: Callable[[], RelayError] | None = None  # makes the error of its sessions, if the relay ended the connection
        self._socket: Any = None  # the transport; asyncssh's `_transport` is None as soon as it closes
        self._unsent: list[bytes | bytearray] = []
        self._flush_is_due = False
        self._handed = 0  # bytes written to the transport
        self._bulk = False
        self._attempts: list[Coroutine[Any, Any, None]] | None = (
            None  # coroutines of authentication that asyncssh starts within `_finish_userauth`
        )
        self.outgoing = Outgoing(self)
        self._incoming = Incoming(self)
        self.flow: Flow | None = None  # of its channels; asyncssh passes on neither the transport's pauses nor the end of a key exchange

    def connection_made(self, transport: Any) -> None:
        """As asyncssh's, without setting two socket options: the socket has them from the listening one (see `inherited`)."""
        self._transport = self._socket = transport
        peer = transport.get_extra_info("peername")
        if peer:
            self._peer_addr, self._peer_port = plain_address(str(peer[0])), peer[1]
        owner: Any = self._protocol_factory()
        self._owner = owner
        try:
            owner.connection_made(self)
            self._send_version()
        except Exception:  # noqa: BLE001 - as asyncssh treats it
            self._loop.call_soon(self.internal_error, sys.exc_info())

    def let_go(self) -> Any:
        """Returns the transport and ends the connection without it; only in `connection_made`, before anything was sent."""
        transport, self._transport = self._transport, None
        self._loop.call_soon(self._cleanup, None)
        return transport

    # -- in --------------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes | memoryview, datatype: int | None = None) -> None:
        """`data` is valid until this method returns."""
        if len(data) >= BULK_BYTES and not self._bulk and self._auth_complete and self._incoming.ready():
            self._bulk = True
            Bulk.begin(self, self._socket)
        incoming, handed = self._incoming, self._handed
        self._flush_is_due = True  # this method flushes at its end, so `_send` must not schedule another flush
        while data and self._transport is not None:  # after a disconnect the rest is ignored
            if incoming.ready():
                if self._inpbuf:
                    data, self._inpbuf = b"".join((self._inpbuf, data)), b""
                try:
                    taken, theirs = incoming.take(data)
                except asyncssh.DisconnectError as error:
                    self._disconnect(error)
                    break
                except Exception:  # noqa: BLE001 - as asyncssh treats what its own packet handlers raise
                    self.internal_error()
                    break
                if not theirs:
                    self._inpbuf = bytes(data[taken:])
                    break
                data = data[taken:]
            else:
                theirs = incoming.rest_of_packet() or len(data)
            super().data_received(bytes(data[:theirs]), datatype)
            data = data[theirs:]
        self.flush()
        if not self._auth_complete and self._handed == handed:
            self._acknowledge()

    def was_read(self, channel: SSHChannel[bytes], size: int) -> None:
        """As relay.ssh.wire.Connection.was_read."""

    @property
    def rest(self) -> bytes:
        """The unfinished packet, if it may be copied before the next read."""
        return self._inpbuf if len(self._inpbuf) <= REST_BYTES and self._incoming.ready() else b""

    @rest.setter
    def rest(self, rest: bytes) -> None:
        self._inpbuf = rest

    def _acknowledge(self) -> None:
        """Acknowledges at once what gets no answer during a login; the kernel would wait 40 ms for an answer to carry the acknowledgement.

        OpenSSH's client sets TCP_NODELAY only when it has logged in. Before, Nagle's algorithm holds back what it sends after its KEXINIT,
        and again after its NEWKEYS, until these are acknowledged.
        """
        if self._transport is None:
            return
        tcp = self._transport.get_extra_info("socket")
        if tcp is not None and tcp.family in INTERNET:
            acknowledge_now(tcp.fileno())

    def dispatch(self, payload: bytes) -> bool:
        """Hands a message that relay.ssh.wire has decrypted to its handler, as asyncssh does in _recv_packet; False: no more for now.

        Not for messages of a key exchange. Raises what the handler raises, and asyncssh's errors for what has no place here.
        """
        packet = SSHPacket(payload)
        kind, number = packet.get_byte(), self._recv_seq
        handler: Any = self
        if kind > MSG_USERAUTH_LAST:
            if not self._auth_complete:
                raise asyncssh.ProtocolError("Invalid request before authentication was complete")
            if MSG_CHANNEL_FIRST <= kind <= MSG_CHANNEL_LAST:
                try:
                    channel = packet.get_uint32()
                except PacketDecodeError:
                    raise asyncssh.ProtocolError("Incomplete channel request received") from None
                try:
                    handler = self._channels[channel]
                except KeyError:
                    raise asyncssh.ProtocolError(f"Invalid channel number {channel} received") from None
        elif kind >= MSG_USERAUTH_FIRST:
            handler = self._auth
            if handler is None:
                raise asyncssh.ProtocolError("Authentication not in progress")
        try:
            result = handler.process_packet(kind, number, packet)
        except PacketDecodeError as error:
            raise asyncssh.ProtocolError(str(error)) from None
        if isinstance(result, eager.Waiting):
            self._recv_handler = lambda: False
            task = super().create_task(result)
            task.add_done_callback(partial(self._finish_recv_packet, kind, number, is_async=True))
            return False
        if not result:
            self.send_packet(MSG_UNIMPLEMENTED, UInt32(number))
        self._finish_recv_packet(kind, number)
        return self._transport is not None

    # -- what asyncssh makes tasks of ------------------------------------------------------------------------------------

    def process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> Any:
        """Runs a handler. One that is a coroutine is stepped inline; if it awaits, the rest of it is returned."""
        handler = self._packet_handlers.get(pkttype)
        if handler is None:
            return False
        result = handler(self, pkttype, pktid, packet)
        return (self._begin(result) if isinstance(result, CoroutineType) else result) or True

    def create_task(self, coro: Any, task_logger: Any = None) -> asyncio.Task[None] | None:  # type: ignore[override]
        """Steps the coroutine inline; makes a task only if it awaits, else returns None."""
        if self._attempts is not None:
            self._attempts.append(coro)
            return None
        rest = coro if isinstance(coro, eager.Waiting) else self._begin(coro)
        return None if rest is None else super().create_task(rest, task_logger)

    def _begin(self, coro: Coroutine[Any, Any, None]) -> eager.Waiting | None:
        try:
            return eager.begin(coro)
        except asyncssh.DisconnectError as error:
            self._disconnect(error)
        except Exception:  # noqa: BLE001 - as asyncssh treats what its tasks raise
            self.internal_error()
        return None

    async def _finish_userauth(self, begin_auth: bool, method: bytes, packet: SSHPacket) -> None:
        """Starts an attempt when asyncssh has stored it in `_auth`, not in its constructor: it answers only while it is `_auth`."""
        self._attempts = []
        try:
            await super()._finish_userauth(begin_auth, method, packet)
        finally:
            begun, self._attempts = self._attempts, None
        for attempt in begun:
            auth = self._auth
            task = self.create_task(attempt)
            if task is not None and auth is not None:
                auth._task = task

    def _send_disconnect(self, code: int, reason: str, lang: str) -> None:
        """asyncssh calls this for every DisconnectError of a handler too."""
        if code != DISC_BY_APPLICATION and self.ended_by is None:
            self.ended_by = partial(BrokeProtocol, printable(reason))
        super()._send_disconnect(code, reason, lang)

    def _disconnect(self, error: asyncssh.DisconnectError) -> None:
        self._send_disconnect(error.code, error.reason, error.lang)
        self._force_close(error)

    # -- out -------------------------------------------------------------------------------------------------------------

    def send_packet(self, pkttype: int, *args: bytes, handler: Any = None) -> None:
        """Sends no MSG_IGNORE: asyncssh puts one before every packet against a weakness of CBC, which the relay never offers."""
        if pkttype != MSG_IGNORE and not self.outgoing.packet(pkttype, args):
            super().send_packet(pkttype, *args, handler=handler)
            if self._deferred_packets:
                self.deferred(len(self._deferred_packets))

    def _send_deferred_packets(self) -> None:
        super()._send_deferred_packets()
        if self.flow is not None:
            self.flow.wake()

    def pause_writing(self) -> None:
        if self.flow is not None:
            self.flow.pause_writing()

    def resume_writing(self) -> None:
        if self.flow is not None:
            self.flow.resume_writing()

    def deferred(self, count: int) -> None:
        """`count` packets wait for the end of a key exchange; called after one was added."""

    def send_with_next_flush(self, send: Callable[[], None]) -> None:
        """What `send` sends goes out with the next flush, at the latest after the next read.

        If it began a key exchange it is flushed in this loop iteration: no other packet would follow.
        """
        comes, self._flush_is_due = self._flush_is_due, True
        send()
        self._flush_is_due = comes
        if not self._kex_complete and self._unsent and not comes:
            self._flush_is_due = True
            self._loop.call_soon(self.flush)

    def _send(self, data: bytes | bytearray) -> None:
        """Collects the packets of one loop iteration for one write."""
        if self._transport is None:
            return
        self._unsent.append(data)
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self.flush)

    def send_now(self, data: bytes) -> None:
        """Writes packets at once, behind the collected ones."""
        if self._unsent:
            self._unsent.append(data)
            self.flush()
        elif not self._socket.is_closing():
            self._handed += len(data)
            self._socket.write(data)

    def flush(self) -> None:
        """Writes the collected packets. Also called before asyncssh aborts the transport, so that a disconnect message is sent."""
        self._flush_is_due = False
        if self._unsent:
            unsent, self._unsent = self._unsent, []
            if not self._socket.is_closing():
                data = unsent[0] if len(unsent) == 1 else b"".join(unsent)
                self._handed += len(data)
                self._socket.write(data)

    @property
    def unsent(self) -> int:
        """Bytes in the transport's write buffer."""
        return self._socket.get_write_buffer_size() if self._socket is not None else 0

    @property
    def taken(self) -> int:
        """Bytes that the socket has accepted so far; while this grows the client reads."""
        return self._handed - self.unsent
