"""The client's side of one session: an SSH channel (RFC 4254 sections 5 and 6) with limits and backpressure down to the socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

import asyncssh
from asyncssh.channel import SSHServerChannel
from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_CHANNEL_FAILURE,
    MSG_CHANNEL_REQUEST,
    MSG_CHANNEL_SUCCESS,
    MSG_CHANNEL_WINDOW_ADJUST,
)
from asyncssh.packet import PacketDecodeError, SSHPacket, String, UInt32

from relay.errors import ClientGone, RelayError, Stalled
from relay.git.command import valid_protocol
from relay.model import Exit
from relay.ssh.algorithms import RECEIVE_PACKET_BYTES, RECEIVE_WINDOW_BYTES
from relay.ssh.backpressure import Flow
from relay.ssh.packets import PacketConnection
from relay.ssh.quiet import QUIET

SEND_HIGH_BYTES = 64 * 1024  # when so much waits for the client's window the git host is not read
SEND_LOW_BYTES = 16 * 1024
GIT_PROTOCOL_MAX_BYTES = 256
RECEIVE_WINDOW_EARLY_BYTES = 64 * 1024  # a client may send so much before its git host is connected
TAKEN_LOOK_SECONDS = 0.02
JOIN_BYTES = 4_096  # waiting pieces are joined up to this size: each costs about a hundred bytes besides its data

_EXTENDED_STDERR = 1  # SSH_EXTENDED_DATA_STDERR, RFC 4254 section 5.2


class Channel(SSHServerChannel[bytes]):
    """Serves exec, shell, subsystem and GIT_PROTOCOL, refuses every other request, and reports when the client cannot take more.

    When a client breaks the protocol on a channel only that channel is closed; asyncssh would end the connection with all its sessions.
    """

    logger = QUIET

    def __init__(self, connection: PacketConnection, flow: Flow) -> None:
        super().__init__(
            connection,
            connection._loop,
            False,  # no pty
            False,  # no line editor
            False,
            0,
            0,
            None,
            "strict",
            RECEIVE_WINDOW_EARLY_BYTES,
            RECEIVE_PACKET_BYTES,
        )
        self._connection = connection  # asyncssh's `_conn` is None after the end
        self._flow = flow
        self._outgoing = connection.outgoing
        self._share = flow.budget.share(self._budget_allows)
        self._broken = False  # the client broke the protocol on this channel: further messages are ignored
        self._on_broken: Callable[[str], bool] | None = None
        self._on_drained: Callable[[], None] | None = None
        self._empty: asyncio.Future[None] | None = None
        self._gone = False
        self._client_closed = False  # the client has closed; the relay answers after the exit status
        self.cut = False  # the channel ended before the client's socket accepted all that was written
        self._unread = 0  # bytes in asyncssh's buffer that the git host has not accepted
        self._received = flow.budget.share(lambda: None)  # the same bytes; counted, never paused
        self._upstream_unread = flow.budget.share(self._budget_allows)
        self._kept = flow.budget.share(lambda: None)  # for a replay; counted, never paused
        self._client_window = 0  # its size when it is whole
        self.host_untaken = 0  # bytes of the client's bulk that the git host's command had not taken, when it was last told
        self.protocol: str | None = None  # GIT_PROTOCOL
        self.set_write_buffer_limits(SEND_HIGH_BYTES, SEND_LOW_BYTES)

    # -- requests --------------------------------------------------------------------------------------------------------

    def process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> Any:
        """A malformed message, or one that breaks the protocol, ends this channel, not the connection."""
        try:
            return super().process_packet(pkttype, pktid, packet)
        except PacketDecodeError as error:
            self._broke(f"message {pkttype} is malformed: {error}")
        except asyncssh.ProtocolError as error:
            self._broke(error.reason)
        return True

    def _process_request(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        """Answers at once (RFC 4254 section 5.4); asyncssh queues requests, and ends the connection for a malformed one."""
        name, want_reply = packet.get_string(), packet.get_boolean()
        if self._closed_by_client or self._broken:
            return
        serve = self._SERVED.get(name)
        try:
            served = serve is not None and serve(self, packet)
        except PacketDecodeError:
            served = False
        if want_reply and self._send_state not in ("close_pending", "closed"):
            self.send_packet(MSG_CHANNEL_SUCCESS if served else MSG_CHANNEL_FAILURE)
        if served and name != b"env" and self._session is not None:
            self._session.session_started()
            self.resume_reading()

    def _start_session(self, command: str | None = None, subsystem: str | None = None) -> bool:
        """One exec, shell or subsystem can succeed on a channel (RFC 4254 section 6.5); after a refused one the client may try another."""
        self._client_window = self._send_window  # nothing was sent yet
        before = self._session_started
        started = super()._start_session(command, subsystem)
        self._session_started = before or started
        return started

    def _process_exec_request(self, packet: SSHPacket) -> bool:
        """A command that is not UTF-8 reaches the session, which refuses and counts it; asyncssh would not answer."""
        line = packet.get_string()
        packet.check_end()
        return self._start_session(command=line.decode("utf-8", "surrogateescape"))

    def _process_env_request(self, packet: SSHPacket) -> bool:
        name = packet.get_string()
        value = packet.get_string()
        packet.check_end()
        if name != b"GIT_PROTOCOL":
            return False
        protocol = valid_protocol(value[: GIT_PROTOCOL_MAX_BYTES + 1])
        if protocol is None:
            return False
        self.protocol = protocol
        return True

    log_sent_packet = log_received_packet = QUIET.log  # asyncssh formats a line for each packet at every log level; see relay.ssh.trace

    # -- in --------------------------------------------------------------------------------------------------------------

    @property
    def _closed_by_client(self) -> bool:
        return self._client_closed or self._recv_state in ("close_pending", "closed")

    def on_broken(self, call: Callable[[str], bool]) -> None:
        """`call` gets the reason when the client breaks the protocol; unless it returns True the channel is closed at once."""
        self._on_broken = call

    def _broke(self, what: str) -> None:
        if self._broken or self._closed_by_client or self._send_state in ("close_pending", "closed"):
            return
        self._broken = True
        if self._on_broken is None or not self._on_broken(what):
            self.abort()

    def _process_data(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        data = packet.get_string()
        packet.check_end()
        if self._closed_by_client or self._broken or self._send_state in ("close_pending", "closed"):
            return
        if self._recv_state != "open":
            self._broke("data after its EOF")
        elif len(data) > self._recv_window:
            self._broke(f"{len(data)} bytes of data in a window of {self._recv_window}")
        else:
            self._accept_data(data)

    def _process_extended_data(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        """RFC 4254 section 5.2 defines no extended data from a client."""
        self._broke("extended data, which has no meaning from a client")

    def _process_eof(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        packet.check_end()
        if self._recv_state == "open" and not self._broken:
            super()._process_eof(pkttype, pktid, packet)

    def _process_window_adjust(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        if not self._closed_by_client:
            super()._process_window_adjust(pkttype, pktid, packet)

    def _process_response(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        """The relay sends no channel request that wants a reply, so a reply is ignored."""

    def widen(self) -> None:
        """The git host is connected: opens the window to its full size, unless the budget of all sessions is spent."""
        if self._conn is not None and not self._flow.budget.over:
            more, self._init_recv_window = RECEIVE_WINDOW_BYTES - self._init_recv_window, RECEIVE_WINDOW_BYTES
            silent = self._recv_window == RECEIVE_WINDOW_EARLY_BYTES
            self._recv_window += more
            if silent:  # the client has sent nothing, so it does not wait for window: the adjust can go out with the git host's first data
                self._connection.send_with_next_flush(lambda: self.send_packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(more)))
            else:
                self.send_packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(more))

    def _accept_data(self, data: bytes, datatype: int | None = None) -> None:
        """Counts waiting data against the budget; it cannot be refused, since the window allowed the client to send it."""
        if self._broken:
            return
        if self._recv_paused and data and self._send_state not in ("close_pending", "closed"):
            self._unread += len(data)
            self._received.hold(self._unread)
            if self._recv_buf and len(self._recv_buf[-1][0]) + len(data) <= JOIN_BYTES and self._recv_buf[-1][1] == datatype:
                self._recv_window -= len(data)
                self._recv_buf[-1] = (self._recv_buf[-1][0] + data, datatype)
                return
        super()._accept_data(data, datatype)

    def _flush_recv_buf(self, exc: Exception | None = None) -> None:
        while self._recv_buf and not self._recv_paused:
            data, datatype = self._recv_buf.pop(0)
            self._unread -= len(data)
            self._deliver_data(data, datatype)
        super()._flush_recv_buf(exc)
        if not self._recv_buf:
            self._unread = 0  # asyncssh may have discarded its buffer
        self._received.hold(self._unread)

    def _deliver_data(self, data: bytes, datatype: int | None) -> None:
        """Opens the window by what the git host accepted; asyncssh would by what arrived, and buffer a whole push for a slow git host."""
        taken = self._init_recv_window - self._recv_window - self._unread
        if taken > self._init_recv_window / 2:
            self._recv_window += taken
            self.send_packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(taken))
        if self._session is not None:
            self._session.data_received(data, datatype)

    # -- backpressure ----------------------------------------------------------------------------------------------------

    def on_drained(self, call: Callable[[], None] | None) -> None:
        """`call` is called when the channel is no longer full."""
        self._on_drained = call

    @property
    def full(self) -> bool:
        if not (self._send_buf_len or self._share.held or self._flow.transport_full) and self._connection._kex_complete:
            return False  # nothing waits
        over = self._share.hold(self._held)
        if self._flow.transport_full or not self._kex_done:
            self._flow.wait(self)
            return True
        return over or self._send_paused

    @property
    def _held(self) -> int:
        """Bytes that the budget counts: the channel's buffer, and the socket's write buffer while that is full."""
        return self.waiting if self._flow.transport_full else self.get_write_buffer_size()

    @property
    def _kex_done(self) -> bool:
        """During a key exchange asyncssh collects channel data in an unbounded list, so the channel counts as full."""
        return self._conn is None or self._conn._kex_complete

    @property
    def untaken(self) -> int:
        """Bytes that wait for the client's window."""
        return self.get_write_buffer_size()

    @property
    def unadjusted(self) -> int:
        """Bytes that were sent and for which the client has not opened its window again: they are under way, or its program is behind."""
        return self._client_window - self._send_window

    @property
    def waiting(self) -> int:
        """Bytes that wait for the client's window or in the socket's write buffer."""
        connection = self._conn
        transport = connection._transport if connection is not None else None
        return self.get_write_buffer_size() + (transport.get_write_buffer_size() if transport is not None else 0)

    def upstream_unread(self, count: int) -> bool:
        """Counts `count` bytes that wait in the git host's connection. True: receive no more until `on_drained`'s call."""
        return self._upstream_unread.hold(count)

    def upstream_untaken(self, count: int) -> None:
        """As relay.splice.Client.upstream_untaken."""
        self.host_untaken = count

    def keeps(self, count: int) -> bool:
        """Counts `count` bytes that are kept for a replay. False: all sessions hold too much, and this one more than FREE_BYTES."""
        return not self._kept.hold(count)

    def drained(self) -> None:
        self._share.hold(self._held)
        if self._on_drained is not None and not self._gone:
            self._on_drained()

    def _budget_allows(self) -> None:
        self._loop.call_soon(self.drained)

    def writable_again(self) -> None:
        """Called by the SSH session: the buffer has drained to its low mark."""
        if self._empty is not None and not self._empty.done() and self.get_write_buffer_size() == 0:
            self._empty.set_result(None)
        self.drained()

    def write(self, data: bytes | memoryview, datatype: int | None = None) -> None:
        """Sends directly as much as the client's window allows; the rest is copied and queued. `data` is not kept."""
        if self._send_state == "open" and not self._send_buf:
            sent = self._outgoing.send(self, data, datatype)
            if sent == len(data):
                return
            if sent:
                data = data[sent:]
        if not self.is_closing():  # else connection_lost is about to be called
            super().write(bytes(data), datatype)

    def write_stderr(self, data: bytes | memoryview) -> None:
        self.write(data, _EXTENDED_STDERR)

    def _flush_send_buf(self) -> None:
        """Sends what is queued as far as the client's window goes: directly, and what is left as asyncssh does, a packet a call."""
        queued = self._send_buf
        while queued and self._send_window:
            data, datatype = queued[0]
            with memoryview(data) as view:
                sent = self._outgoing.send(self, view, datatype)
            if not sent:
                break
            self._send_buf_len -= sent
            if sent == len(data):
                del queued[0]
            else:
                del data[:sent]
        super()._flush_send_buf()

    # -- the end ---------------------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """False when only EOF was sent, unlike asyncssh's: the exit status must still be sent."""
        return self._gone or self._send_state in ("close_pending", "closed")

    async def finish(self, how: Exit, stall_seconds: float) -> None:
        """Sends what is queued, EOF, the exit status or signal, and the close. asyncssh's `exit()` would send the exit before queued data.

        Raises ClientGone when the channel ends before that, Stalled when the client reads nothing for stall_seconds.
        """
        if self.is_closing():
            raise ClientGone("the channel was closed before the exit status was sent")
        self.write_eof()
        while size := self.get_write_buffer_size():
            self._empty = self._loop.create_future()
            self.set_write_buffer_limits(0, 0)
            try:
                async with asyncio.timeout(stall_seconds):
                    await self._empty
            except TimeoutError:
                if self.get_write_buffer_size() == size:
                    raise _stalled(f"the client took none of the last {size} bytes for {stall_seconds:g} s") from None
            if self._gone:
                raise ClientGone("the channel was closed before the exit status was sent")
        await self._until_taken(stall_seconds)
        self._send_exit(how)
        self.close()

    def _process_close(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        """After EOF both ways a client may close before the exit status, as OpenSSH's ControlMaster does, and still wants it."""
        if self._closed_by_client:
            return
        if self._send_state == "eof" and self._recv_state in ("eof_pending", "eof"):
            self._client_closed = True
        else:
            super()._process_close(pkttype, pktid, SSHPacket(b""))  # trailing bytes are ignored, since no other close will follow

    def _close_send(self) -> None:
        connection_open = self._send_state != "closed"
        # with several channels the bytes in the write buffer may be another one's
        unsent = len(self._connection._channels) == 1 and self._connection.unsent > 0
        self.cut = self.cut or self.get_write_buffer_size() > 0 or unsent
        super()._close_send()
        if self._client_closed and connection_open:
            self._recv_state = "close_pending"
            self._flush_recv_buf()

    @property
    def over(self) -> bool:
        """Both sides have closed; asyncssh calls the session's connection_lost only in the next loop iteration."""
        return self._send_state == "closed" and self._recv_state == "closed"

    async def _until_taken(self, stall_seconds: float) -> None:
        """Waits until the socket has accepted what was written before this call; other channels may write more. Raises as `finish`."""
        connection = self._connection
        if not connection.unsent:
            return
        connection.flush()
        everything, taken, since = connection.taken + connection.unsent, connection.taken, self._loop.time()
        while connection.taken < everything:
            await asyncio.sleep(TAKEN_LOOK_SECONDS)
            if self._gone:
                raise ClientGone("the connection ended before the last bytes were read")
            if connection.taken != taken:
                taken, since = connection.taken, self._loop.time()
            elif self._loop.time() - since >= stall_seconds:
                raise _stalled(f"the client read none of the last {everything - taken} bytes for {stall_seconds:g} s")

    def _send_exit(self, how: Exit) -> None:
        """Sends exit-status or exit-signal (RFC 4254 section 6.10); asyncssh would cut a status to eight bits."""
        if how.signal is not None:
            no, yes = b"\0", b"\1"
            core = yes if how.core_dumped else no
            self._send_request(b"exit-signal", String(how.signal), core, String(how.message), String(""))
        else:
            self._send_request(b"exit-status", UInt32(how.status or 0))

    _SERVED: ClassVar[dict[bytes, Callable[[Channel, SSHPacket], bool]]] = {
        b"env": _process_env_request,
        b"exec": _process_exec_request,
        b"shell": SSHServerChannel._process_shell_request,
        b"subsystem": SSHServerChannel._process_subsystem_request,
    }

    _packet_handlers = {  # noqa: RUF012 - asyncssh's own, which names functions: overriding the methods alone has no effect
        MSG_CHANNEL_WINDOW_ADJUST: _process_window_adjust,
        MSG_CHANNEL_DATA: _process_data,
        MSG_CHANNEL_EXTENDED_DATA: _process_extended_data,
        MSG_CHANNEL_EOF: _process_eof,
        MSG_CHANNEL_CLOSE: _process_close,
        MSG_CHANNEL_REQUEST: _process_request,
        MSG_CHANNEL_SUCCESS: _process_response,
        MSG_CHANNEL_FAILURE: _process_response,
    }

    @property
    def ended_by(self) -> RelayError | None:
        """Why the relay ended the whole connection, if it did; valid in the session's connection_lost."""
        make = self._connection.ended_by
        return make() if make is not None else None

    def gone(self) -> None:
        """Called by the SSH session's connection_lost: the channel has ended."""
        self._gone = True
        self._share.close()
        self._received.close()
        self._upstream_unread.close()
        self._kept.close()
        self._on_drained = self._on_broken = None  # both lead back to the session, and so to the connection to the git host
        self._flow.forget(self)
        if self._empty is not None and not self._empty.done():
            self._empty.set_result(None)


def _stalled(detail: str) -> Stalled:
    error = Stalled(detail)
    error.fault = "client"
    return error
