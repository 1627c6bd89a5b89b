"""The streams of a running command (RFC 4254): its queued input, its output, which is given to a peer, and its exit."""

from __future__ import annotations

import asyncio
import socket
import termios
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Any, Protocol

from relay.errors import Lost, NoExit, RelayError, Stalled
from relay.gathering import GATHER_LESS_BYTES, GATHER_SECONDS, GATHER_UNTAKEN_BYTES, Pace
from relay.model import Exit
from relay.upstream.libssh2.binding import LIBSSH2_ERROR_EAGAIN as AGAIN
from relay.upstream.libssh2.binding import LIBSSH2_SESSION_BLOCK_INBOUND, LIBSSH2_SESSION_BLOCK_OUTBOUND, SocketSendError, SSH2Error
from relay.upstream.libssh2.channel_io import STDERR, STDOUT, Chunk
from relay.upstream.libssh2.tcp import ioctl_int
from relay.upstream.libssh2.transport import READ_BYTES, State, Transport, reading, writing

WRITE_BYTES = 32_700  # as much as libssh2 puts into one packet
AHEAD_BYTES = 1 << 20  # of bulk that `send` writes itself in one iteration of the loop; then other sessions run
PACKETS_A_CHUNK = 8  # with the hardened library, which needs no look at the socket before each packet
JOIN_BYTES = 4_096  # queued pieces are joined up to this size: a tiny bytes object takes twenty times its length
READS_A_WAKE = 4  # reads in one call of `_pump`, before other sessions run
WRITES_A_WAKE = 16
GATHER_AFTER_BYTES = 1 << 20  # of output since the client last sent something: of bulk like this the client does not feel GATHER_SECONDS
WINDOW_BYTES = (2 << 20) + READ_BYTES  # the most that libssh2 lets a git host send before any of it is read
KEEPALIVES_UNANSWERED = 3  # in a row, then the session is lost: sshd answers them however busy the command is
KEEPALIVE_LEAST_SECONDS = 2  # libssh2 counts whole seconds and treats 1 as 2
SPINS_A_LOOK = 5_000  # wakes in a row that moved nothing, after which `_is_wedged` checks whether the socket is read at all


class Peer(Protocol):
    """Receives what the git host sends. No method may raise."""

    def upstream_data(self, data: memoryview) -> None:
        """`data` is valid until this returns."""

    def upstream_stderr(self, data: memoryview) -> None: ...

    def upstream_unread(self, count: int) -> bool:
        """While paused: `count` bytes wait in the connection, or soon will. True: receive no more until `receive_again` or `resume`."""

    def upstream_accepted(self) -> None:
        """libssh2 has taken some of the queued input."""

    def upstream_eof(self) -> None:
        """The command has ended its output, but runs on and may take input. Not called when the exit comes with the EOF."""

    def upstream_ended(self, how: Exit | RelayError) -> None:
        """Called exactly once; no other call follows."""

    @property
    def owed(self) -> float | None:
        """For how many seconds the git host has waited for the client; None if the git host may owe output itself."""

    def give_way(self) -> bool:
        """Called while sessions wait for a connection. Ends the session if its client has been idle for too long; whether it did."""


class Stdin(Enum):
    """A command's stdin, in this order and never back: `send_eof` begins the end, `_send_eof` completes it."""

    OPEN = "open"
    ENDING = "ending"  # the EOF follows what is still queued
    ENDED = "ended"  # libssh2 has taken the EOF


class Streams(Transport):
    """The streams of one command at a time, from `attach` until `Peer.upstream_ended`."""

    def __init__(self, sock: socket.socket, address: str, keepalive_seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(sock, address, loop)
        self._keepalive_seconds = keepalive_seconds
        self._reader = reading()
        self._writer = writing()
        self._pointer = 0  # the channel's, in C
        self._chunk_bytes = WRITE_BYTES * (PACKETS_A_CHUNK if self._hardened else 1)
        self._heard = loop.time()  # when the socket was last readable
        # the running exec
        self._peer: Peer | None = None
        self._owner: Callable[[], None] | None = None
        self._out: deque[bytes] = deque()
        self._out_begin = 0  # how much of the first piece has been taken
        self._out_bytes = 0
        self._chunk: Chunk | None = None
        self._stdin = Stdin.OPEN
        self._output_ended = False  # the git host's EOF
        self._paused = False
        self._withheld = False  # while paused: nothing is received from the socket either
        self._need_output = False
        self._window_shut = False
        self._window_whole = 0  # the git host's window before any input
        self._again: asyncio.Handle | None = None
        self._pumping = False
        self._unasked = 0  # bytes of output since the client last sent something
        self._pace = Pace()
        self._gathering: asyncio.TimerHandle | None = None  # the end of the time in which output gathers in the socket
        self._ahead = 0  # bytes that `send` has written itself in this iteration of the loop
        self._keepalive: asyncio.TimerHandle | None = None
        self._signs = (0.0, 0, 0)  # of life at the last keepalive: last read, bytes moved, bytes in the socket's send queue
        self._unanswered = 0
        self._moved = 0  # bytes in both directions, for the watchdog
        self._spins = 0  # wakes in a row that moved nothing
        self._spun = (-1, -1.0)  # at the last check of `_is_wedged`: unread bytes in the socket, and when it was last readable

    def attach(self, peer: Peer) -> None:
        """Gives `peer` what the git host sends, from now on until `Peer.upstream_ended`."""
        assert self._state is State.RUNNING, self
        self._peer = peer
        self._stdin = Stdin.OPEN  # each command has its own
        self._output_ended = self._paused = self._withheld = self._window_shut = False
        self._spins, self._spun = 0, (-1, -1.0)
        self._unasked = self._unanswered = 0
        self._window_whole = self._channel.window_write()
        self._keepalive = self._loop.call_later(self._keepalive_seconds, self._keep_alive)
        self._pump_soon()

    @property
    def pending(self) -> int:
        """Bytes of input that are queued: libssh2 has not taken them yet."""
        return self._out_bytes

    @property
    def untaken(self) -> int:
        """Bytes of input for which the git host has not opened its window again: queued here, under way, or its command is behind."""
        return self._out_bytes + self._window_whole - self._channel.window_write() if self._channel is not None else 0

    def send(self, data: bytes) -> None:
        """Queues data for the stdin; a packet or more of it is written at once. The peer limits how much is queued (see `pending`)."""
        if self._peer is None or self._stdin is not Stdin.OPEN:
            return
        if self._out and len(self._out[-1]) + len(data) <= JOIN_BYTES:
            self._out[-1] += data
        else:
            self._out.append(data)
        self._out_bytes += len(data)
        self._unasked = 0
        if self._owner is not None or self._window_shut or self._need_output:
            return
        if len(data) < WRITE_BYTES or self._pumping:
            self._pump_soon()
            return
        if not self._ahead:
            self._loop.call_soon(self._next_iteration)
        self._ahead += len(data)
        if self._ahead > AHEAD_BYTES:
            self._pump_soon()
        else:
            self._pump()

    def _next_iteration(self) -> None:
        self._ahead = 0

    def send_eof(self) -> None:
        """Ends the command's stdin (EOF) after what is queued."""
        if self._peer is not None and self._stdin is Stdin.OPEN:
            self._stdin = Stdin.ENDING
            self._pump_soon()

    @property
    def unread(self) -> int:
        """Bytes of output that were received but not given to the peer yet; at most WINDOW_BYTES."""
        return self._reader.queued(self._pointer) if self._channel is not None else 0

    @property
    def owed(self) -> float | None:
        """As Peer.owed."""
        return self._peer.owed if self._peer is not None else None

    def give_way(self) -> bool:
        """As Peer.give_way."""
        return self._peer is not None and self._peer.give_way()

    def pause(self) -> None:
        """Gives the peer no more output. The git host stops sending when its window is used up (RFC 4254 section 5.2).

        Packets are still received, so that keepalives, requests and key exchanges of the git host are answered.
        """
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = self._withheld = False
            self._pump_soon()

    def receive_again(self) -> None:
        """The peer takes back its answer to `Peer.upstream_unread`: receive, though output is not given to it yet."""
        if self._withheld:
            self._withheld = False
            self._pump_soon()

    def _pump_soon(self) -> None:
        if self._again is None and self._peer is not None:
            self._again = self._loop.call_soon(self._pump)

    def _on_readable(self) -> None:
        self._heard = self._loop.time()
        self._take_in()
        if self._paused and self._unasked >= GATHER_AFTER_BYTES:
            self._gather()  # the client is behind

    def _take_in(self) -> None:
        """Pumps after a wake, or after output has gathered; in bulk it may gather again."""
        before = self._moved
        self._pump()
        if self._unasked >= GATHER_AFTER_BYTES and 0 < self._moved - before < GATHER_LESS_BYTES and not self._out:
            self._gather()

    def _gather(self) -> bool:
        """Lets bulk output, or window adjusts, gather in the socket for the next read: each small packet costs a wake. False: not now."""
        if self._reading is None or self._again is not None or self._owner is not None:
            return False  # there is more to wait for, or more to do at once
        if not self._pace.is_slow(self._loop.time(), self._moved):
            return False
        self._hear_nothing()
        self._gathering = self._loop.call_later(GATHER_SECONDS, self._take_in)
        return True

    def _pump(self) -> None:
        """Moves what can be moved: the owner's pending operation first, then output, then input, then the end."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if self._peer is None:
            return
        moved, self._need_output, self._window_shut = self._moved, False, False
        behind, window = False, 0  # whether the git host is, with its input
        self._pumping = True
        try:
            if self._owner is not None:
                owner, self._owner, self._unsent = self._owner, None, None
                owner()
            if self._owner is None:
                self._write_out()
            if self._owner is None and not self._paused:
                self._read_in()
            elif self._owner is None and not self._withheld:
                self._receive()
            if self._window_shut and self._owner is None and self._peer is not None:
                window = self._channel.window_write()
                behind = self._window_whole - window >= GATHER_UNTAKEN_BYTES and self._moved != moved
                if window and not behind:
                    self._pump_soon()  # the read consumed a WINDOW_ADJUST; no readable event will follow, so pump again
        except SSH2Error as error:
            self._broken(error)
            return
        finally:
            self._pumping = False
        if self._peer is None:
            return
        if self._moved != moved:
            self._spins = 0
        else:
            self._spins += 1
            if self._spins % SPINS_A_LOOK == 0 and self._is_wedged():
                self._end(Stalled(f"{self.address}: libssh2 makes no progress though its socket is ready ({self!r})"))
                return
        self._request_events()
        if behind and not self._gather() and window:
            self._pump_soon()

    def _is_wedged(self) -> bool:
        """Whether since the last check, SPINS_A_LOOK wakes ago, libssh2 has read nothing of what waits in the socket."""
        unread = ioctl_int(self._fd, termios.FIONREAD)
        before, self._spun = self._spun, (unread, self._heard)
        return before == self._spun or (unread > 0 and before[0] == unread)

    def _write_out(self) -> None:
        for _ in range(WRITES_A_WAKE):
            if self._chunk is None:
                if not self._out:
                    break
                self._chunk = self._next_chunk()
            if not self._writable():
                self._need_output = True
                return
            if not self._write_chunk():
                return
        else:
            self._pump_soon()
            return
        if self._stdin is Stdin.ENDING:
            self._send_eof()

    def _next_chunk(self) -> Chunk:
        """One packet's worth; small pieces are joined, so that a chatty client does not make tiny packets."""
        first, begin, most = self._out[0], self._out_begin, self._chunk_bytes
        left = len(first) - begin
        if left > most:
            self._out_begin += most
            return Chunk(first, begin, most)
        self._out.popleft()
        self._out_begin = 0
        if not self._out or left + len(self._out[0]) > most:
            return Chunk(first, begin, left)
        parts, size = [first[begin:]], left
        while self._out and size + len(self._out[0]) <= most:
            size += len(self._out[0])
            parts.append(self._out.popleft())
        return Chunk(b"".join(parts), 0, size)

    def _write_chunk(self) -> bool:
        """Offers the frozen chunk; True when it was taken whole. Otherwise the remainder stays, the same bytes."""
        chunk = self._chunk
        assert chunk is not None
        rc, taken = self._writer.write(self._pointer, chunk)
        if taken:
            self._moved += taken
            self._out_bytes -= taken
            chunk.forget(taken)
            complete = chunk.size == 0
            if complete:
                self._chunk = None
            if self._peer is not None:
                self._peer.upstream_accepted()
            if complete or self._peer is None:
                return complete
        if rc == AGAIN:
            if self._channel.window_write() == 0:
                self._window_shut = True  # nothing is pending in libssh2: an adjust must be read first
            else:
                self._set_owner(self._retry_write, lambda: self._writer.write(self._pointer, chunk))
        return False

    def _set_owner(self, owner: Callable[[], None], unsent: Callable[[], Any]) -> None:
        self._owner, self._unsent = owner, unsent

    def _retry_write(self) -> None:
        self._write_chunk()

    def _send_eof(self) -> None:
        if not self._writable():
            self._need_output = True
            return
        if self._channel.send_eof() == AGAIN:
            self._set_owner(self._send_eof, lambda: self._channel.send_eof())
        else:
            self._stdin = Stdin.ENDED
            self._moved += 1

    def _read_in(self) -> None:
        peer = self._peer
        assert peer is not None
        for _ in range(READS_A_WAKE):
            if not (self._hardened or self._writable()):  # a read may send a window adjust
                self._need_output = True
                return
            got, data = self._reader.read(self._pointer, STDOUT)
            if got > 0:
                self._moved += got
                self._unasked += got
                peer.upstream_data(data)
                if self._peer is None:
                    return
            got_stderr = got
            if got != AGAIN or self._reader.queued(self._pointer):  # else the read above has emptied the socket, and nothing is of stderr
                got_stderr, data = self._reader.read(self._pointer, STDERR)
            if got_stderr > 0:
                self._moved += got_stderr
                peer.upstream_stderr(data)
                if self._peer is None:
                    return
            if got <= 0 and got_stderr <= 0:
                if AGAIN in (got, got_stderr) and self._session.block_directions() & LIBSSH2_SESSION_BLOCK_OUTBOUND:
                    self._set_owner(self._retry_read, lambda: self._reader.read(self._pointer, STDOUT))
                elif self._channel.eof():
                    self._await_close()
                elif self._reader.queued(self._pointer):
                    break  # the read of stderr received stdout packets too; no readable event will follow, so read again
                return
            if self._paused:
                return
        self._pump_soon()

    def _retry_read(self) -> None:
        """A WINDOW_ADJUST is partly sent: repeats the same read, with the same size, before anything else, even while paused."""
        self._read_in()

    def _receive(self) -> None:
        """While paused: receives packets, so that the git host's requests are answered; its output waits in libssh2.

        An error is ignored here: the first read after `resume` raises it again, after the peer got the output before it.
        """
        peer = self._peer
        assert peer is not None
        if not self._writable():
            self._need_output = True
            return
        if peer.upstream_unread(self.unread + READ_BYTES):
            self._withheld = True
            return
        try:
            got = self._reader.receive(self._pointer)
        except SSH2Error:
            self._withheld = True
            return
        if got == AGAIN and self._session.block_directions() & LIBSSH2_SESSION_BLOCK_OUTBOUND:
            self._set_owner(self._receive, lambda: self._reader.receive(self._pointer))
            return
        # at the TCP connection's end the socket stays readable: stop waiting for it
        self._withheld = peer.upstream_unread(self.unread) or (got != AGAIN and self._hung_up())

    def _await_close(self) -> None:
        """Both streams have ended and were read: waits for the channel's close, which follows the exit status, then ends."""
        if self._channel.wait_closed() == AGAIN:
            if not self._output_ended and self._peer is not None:
                self._output_ended = True
                self._peer.upstream_eof()
            return
        told = self._library.after_close(self._channel)
        if told is None:
            self._end(NoExit(f"{self.address}: the channel was closed without exit status or signal"), keep=True)
        else:
            self._end(told, keep=True)

    def _request_events(self) -> None:
        """Asks the loop for the events that the libssh2 session waits for."""
        wants_output = self._need_output
        # while the socket takes no output, no call may read either
        wants_input = (not self._withheld or self._window_shut) and not wants_output
        if self._owner is not None:
            directions = self._session.block_directions()
            wants_input = bool(directions & LIBSSH2_SESSION_BLOCK_INBOUND)
            wants_output = bool(directions & LIBSSH2_SESSION_BLOCK_OUTBOUND)
            if directions == 0:  # a hint only, and it can be wrong
                wants_input = wants_output = True
            elif wants_output and not self._poll.poll(0):
                wants_input = False  # the partly sent packet is completed first: unread input would wake the loop again and again
        self._listen(self._on_readable if wants_input else None, self._pump if wants_output else None)

    def _keep_alive(self) -> None:
        """Sends a keepalive, which sshd answers however long git computes.

        Bytes that leave the socket count as a sign of life too: while the socket is full no keepalive can be sent.
        """
        unsent = ioctl_int(self._fd, termios.TIOCOUTQ)  # a keepalive adds to it
        heard, moved, unsent_before = self._signs
        if self._paused or self._heard != heard or self._moved != moved or unsent < unsent_before:
            self._unanswered = 0
        elif self._unanswered == KEEPALIVES_UNANSWERED:
            self._end(Lost(f"{self.address}: no sign of life for {self._loop.time() - self._heard:.0f} s"))
            return
        self._signs = (self._heard, self._moved, unsent)
        self._unanswered += 1
        self._keepalive = self._loop.call_later(self._keepalive_seconds, self._keep_alive)
        if self._paused or self._owner is not None or not self._writable():
            return
        try:
            self._session.keepalive_config(True, KEEPALIVE_LEAST_SECONDS)
            self._session.keepalive_send()
        except SSH2Error as error:
            self._broken(error)

    # -- end -------------------------------------------------------------------------------------------------------------

    def _broken(self, error: SSH2Error) -> None:
        """The transport failed. What was received before is delivered first; an exit status among it is how the command ended."""
        said = self._say(error)
        told: Exit | None = None
        peer = self._peer
        assert peer is not None
        self._stop_watching()
        if isinstance(error, SocketSendError):  # the host has closed the connection: what it sent before is still in the socket (tcp(7))
            with suppress(SSH2Error):  # raised after the last packet
                self._read_out(peer)
            if self._peer is None:
                return
        try:
            self._descriptor.isolate()
            if self._unsent is not None:
                done = self._unsent()
                self._unsent = self._owner = None
                if isinstance(done, tuple) and isinstance(done[1], memoryview) and done[0] > 0:
                    peer.upstream_data(done[1])  # it was a read whose WINDOW_ADJUST was partly sent
            self._read_out(peer)
            if self._peer is not None and self._channel.eof() and self._channel.wait_closed() != AGAIN:
                told = self._library.after_close(self._channel)
        except SSH2Error:
            told = None  # nothing more can be read; `said` is why the connection was lost
        if self._peer is not None:
            self._end(told if told is not None else Lost(f"{self.address}: {said}"))

    def _read_out(self, peer: Peer) -> None:
        """Gives the peer all received output of both streams, even while paused: `upstream_ended` follows."""
        while self._peer is not None:
            got, data = self._reader.read(self._pointer, STDOUT)
            if got > 0:
                peer.upstream_data(data)
                continue
            got_stderr, data = self._reader.read(self._pointer, STDERR)
            if got_stderr <= 0:
                break
            peer.upstream_stderr(data)

    def abort(self) -> None:
        """Ends the running command by closing the connection, without an EOF. The peer is not called again."""
        self._peer = None
        self.close()

    def _end(self, how: Exit | RelayError, keep: bool = False) -> None:
        """Reports the end to the peer. `keep`: the command ended cleanly, so the connection may serve again after `prepare`."""
        peer, self._peer = self._peer, None
        self._stop()
        if not keep or self._owner is not None:
            self.close()
        self._forget_output()
        if peer is not None:
            peer.upstream_ended(how)

    def _stop(self) -> None:
        super()._stop()
        for timer in (self._again, self._gathering, self._keepalive):
            if timer is not None:
                timer.cancel()
        self._again = self._gathering = self._keepalive = None

    def _forget_output(self) -> None:
        self._out.clear()
        self._out_begin = 0
        self._out_bytes = 0
        self._chunk = None
        self._owner = self._unsent = None

    def close(self) -> None:
        self._peer = None
        super().close()
        self._forget_output()
