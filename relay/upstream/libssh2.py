"""One authenticated SSH connection to a git host: a non-blocking libssh2 session driven by the loop's reader and writer callbacks.

The sole importer of ssh2. The rules of libssh2 1.11.1 that are kept here, each of which is silent corruption or a hang when broken:

* A session has one outgoing packet. An operation that met EAGAIN with output pending *owns* the session until it is done.
* A write is retried with the same bytes: one frozen chunk of at most WRITE_BYTES, kept until it is accepted.
* Every read asks for READ_BYTES, stdout and stderr alike, or window adjusts are credited that were never sent.
* No call that can send is made unless poll() says that the socket takes output, and its buffer is large: a packet that is
  only partly sent when a key exchange begins wedges the session for ever.
* One session serves one exec at a time; a channel is opened ahead.
"""

from __future__ import annotations

import asyncio
import select
import socket
import termios
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ssh2.error_codes import LIBSSH2_ERROR_EAGAIN as AGAIN
from ssh2.exceptions import AuthenticationError, ChannelRequestDenied, SSH2Error
from ssh2.session import (
    LIBSSH2_METHOD_COMP_CS,
    LIBSSH2_METHOD_COMP_SC,
    LIBSSH2_METHOD_CRYPT_CS,
    LIBSSH2_METHOD_CRYPT_SC,
    LIBSSH2_METHOD_HOSTKEY,
    LIBSSH2_METHOD_KEX,
    LIBSSH2_METHOD_MAC_CS,
    LIBSSH2_METHOD_MAC_SC,
    LIBSSH2_SESSION_BLOCK_INBOUND,
    LIBSSH2_SESSION_BLOCK_OUTBOUND,
    Session,
)
from ssh2.utils import handle_error_codes

from relay.errors import Lost, NoExit, RelayError, Stalled, Unavailable
from relay.model import Exit
from relay.upstream.descriptor import Descriptor
from relay.upstream.exit_status import Library
from relay.upstream.hostkeys import HostKeys, fingerprint
from relay.upstream.reading import STDERR, STDOUT, Reading
from relay.upstream.tcp import connect, ioctl_int

READ_BYTES = 256 * 1024  # one size for all reads, below 1.5 MiB
WRITE_BYTES = 32_700  # what libssh2 puts into one packet
JOIN_BYTES = 4_096  # pieces that wait are joined up to here: many tiny ones would take twenty times their size
READS_A_WAKE = 4  # then other sessions have their turn
WRITES_A_WAKE = 16
UNSURE_SECONDS = 0.05  # libssh2 met EAGAIN and did not say which direction it waits for
KEEPALIVES_UNANSWERED = 3  # a git host that is stopped answers none; a busy one answers all
KEEPALIVE_LEAST_SECONDS = 2  # libssh2 counts whole seconds and takes 1 for 2
SPINS_A_LOOK = 5_000  # wakes in a row that moved nothing; then it is looked at whether anything is consumed

# Modern first; nothing older is offered. No encrypt-then-MAC: libssh2 1.11.1 overflows there (GHSA-6c79-444r-wx26).
_KEX = "curve25519-sha256,curve25519-sha256@libssh.org"
_CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,aes256-ctr,aes128-ctr"
_MACS = "hmac-sha2-256,hmac-sha2-512"


@dataclass(frozen=True, slots=True)
class Login:
    """Who the relay is at a git host, and which host keys prove the host."""

    user: str
    private_key: bytes  # OpenSSH format, in memory
    host_keys: HostKeys


class Peer(Protocol):
    """Who receives what the git host sends; none of these may raise."""

    def upstream_data(self, data: memoryview) -> None:
        """`data` is good until this returns."""

    def upstream_stderr(self, data: memoryview) -> None: ...

    def upstream_accepted(self) -> None:
        """Bytes left for the git host."""

    def upstream_eof(self) -> None:
        """No more output will come, though the command runs on and may take input; not told when the end comes with it."""

    def upstream_ended(self, how: Exit | RelayError) -> None:
        """Exactly once; nothing follows."""


_library: Library | None = None


def library() -> Library:
    """The libssh2 in this process; raises exit_status.UnknownLibrary when it cannot be trusted with exit statuses."""
    global _library
    if _library is None:
        _library = Library()
    return _library


_reading: Reading | None = None


def reading() -> Reading:
    """The buffer that all connections of this process read into."""
    global _reading
    if _reading is None:
        _reading = Reading(library(), READ_BYTES, AGAIN, handle_error_codes)
    return _reading


class Connection:
    """Dial, then prepare, then any number of (run, attach, ended, prepare), then close."""

    def __init__(self, sock: socket.socket, address: str, keepalive_seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self.address = address
        self._keepalive_seconds = keepalive_seconds
        self.sessions = 0  # served so far
        self._loop = loop
        self._library = library()
        self._descriptor = Descriptor(sock)
        self._fd = self._descriptor.fileno()
        self._hardened = bool(self._library.build)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._session: Any = Session()
        self._session.set_blocking(False)
        self._channel: Any = None
        self._reader = reading()
        self._pointer = 0  # of the channel
        self._state = "new"  # new, ready, running, closed
        self._reading: Callable[[], None] | None = None  # who is to be told that there is input
        self._hears_input = False  # whether the loop tells us
        self._writing: Callable[[], None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._on_lost: Callable[[Connection], None] | None = None
        self._refused_env: set[str] = set()
        self._heard = loop.time()  # when the socket was last readable
        # the running exec
        self._peer: Peer | None = None
        self._owner: Callable[[], None] | None = None
        self._unsent: Callable[[], Any] | None = None  # the C call whose packet may be partly sent
        self._out: deque[bytes] = deque()
        self._out_bytes = 0
        self._chunk: bytes | None = None
        self._eof = "no"  # no, wanted, sent
        self._output_ended = False  # the git host's EOF
        self._paused = False
        self._need_output = False
        self._window_shut = False
        self._again: asyncio.Handle | None = None
        self._keepalive: asyncio.TimerHandle | None = None
        self._signs = (0.0, 0, 0)  # of life, at the last keepalive
        self._unanswered = 0
        self._moved = 0  # bytes both ways, for the watchdog
        self._spins = 0
        self._spun = (-1, -1.0)  # unread bytes and last readable time at the last look

    def __repr__(self) -> str:
        return f"<upstream {self.address} {self._state} sessions={self.sessions} out={self._out_bytes}>"

    # -- dial ------------------------------------------------------------------------------------------------------------

    @classmethod
    async def dial(cls, host: str, port: int, login: Login, keepalive_seconds: float) -> Connection:
        """Connects, exchanges keys, compares the host key, then authenticates, and opens a channel ahead.

        `keepalive_seconds`, at least KEEPALIVE_LEAST_SECONDS, is how often a running command's git host is asked whether it lives.
        No time limit of its own: the caller cancels. Raises Unavailable with the reason of the step that failed.
        """
        loop = asyncio.get_running_loop()
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        connection = cls(await connect(host, port, address, loop), address, keepalive_seconds, loop)
        try:
            await connection._handshake(login)
            await connection._authenticate(login)
            await connection.prepare()
        except BaseException:
            connection.close()
            raise
        return connection

    async def _handshake(self, login: Login) -> None:
        prefer = (
            (LIBSSH2_METHOD_KEX, _KEX),
            (LIBSSH2_METHOD_HOSTKEY, ",".join(login.host_keys.types)),
            (LIBSSH2_METHOD_CRYPT_CS, _CIPHERS),
            (LIBSSH2_METHOD_CRYPT_SC, _CIPHERS),
            (LIBSSH2_METHOD_MAC_CS, _MACS),
            (LIBSSH2_METHOD_MAC_SC, _MACS),
            (LIBSSH2_METHOD_COMP_CS, "none"),
            (LIBSSH2_METHOD_COMP_SC, "none"),
        )
        try:
            for method, value in prefer:
                self._session.method_pref(method, value)
            await self._complete(lambda: self._session.handshake(self._descriptor))
            blob, _ = self._session.hostkey()
        except SSH2Error as error:
            raise Unavailable(f"{self.address}: key exchange failed: {self._say(error)}", reason="handshake") from None
        if not login.host_keys.match(blob):
            raise Unavailable(
                f"{self.address}: HOST KEY MISMATCH: offered {fingerprint(blob)}, pinned {', '.join(login.host_keys.fingerprints)}",
                reason="host_key",
            )

    async def _authenticate(self, login: Login) -> None:
        try:
            await self._complete(lambda: self._session.userauth_publickey_frommemory(login.user, login.private_key))
        except AuthenticationError as error:
            raise Unavailable(f"{self.address}: the key of user {login.user!r} was refused: {self._say(error)}", reason="auth") from None
        except SSH2Error as error:
            raise Unavailable(f"{self.address}: authentication failed: {self._say(error)}", reason="auth") from None

    async def prepare(self) -> None:
        """Opens a channel ahead, so that the next exec need not wait for it. Raises Unavailable(reason="channel")."""
        try:
            if self._channel is not None:
                self._descriptor.cork(self._hardened)  # the close and the next open in one segment
                # both sides have closed: this sends the last of it and frees the channel
                await self._complete(lambda: self._channel.close())
                self._channel = None
            self._channel = await self._complete(lambda: self._session.open_session())
            self._pointer = self._reader.pointer(self._channel)
        except SSH2Error as error:
            raise Unavailable(f"{self.address}: no channel could be opened: {self._say(error)}", reason="channel") from None
        self._descriptor.cork(False)
        self._state = "ready"
        self._watch_idle()
        if self._state == "closed":
            raise Unavailable(f"{self.address}: the git host closed the connection", reason="channel")

    # -- idle ------------------------------------------------------------------------------------------------------------

    def on_lost(self, call: Callable[[Connection], None] | None) -> None:
        """`call` is told once when the far side ends the connection while it is ready."""
        self._on_lost = call

    def _watch_idle(self) -> None:
        self._heard = self._loop.time()
        self._listen(self._idle_readable, None)
        # uvloop tells of a reset once and then never again: it may have told whoever waited for the channel
        self._idle_readable()

    def _idle_readable(self) -> None:
        """A ready connection has news: a key exchange, a global request, or its end."""
        try:
            self._reader.read(self._pointer, STDOUT)
            alive = not self._channel.eof()
        except SSH2Error:
            alive = False
        if not alive and self._state == "ready":
            call, self._on_lost = self._on_lost, None
            self.close()
            if call is not None:
                call(self)

    # -- run -------------------------------------------------------------------------------------------------------------

    async def run(self, command: str, environment: list[tuple[str, str]]) -> None:
        """Starts `command` on the channel that was opened ahead; returns when the git host has accepted it.

        Variables that the host refuses are left out, and not offered again on this connection.
        Raises Unavailable(reason="exec"); the connection is then of no more use.
        """
        assert self._state == "ready", self
        self._state = "running"
        self._on_lost = None
        self._listen(None, None)  # the idle connection's reader throws away what it reads: this command's first output
        self.sessions += 1
        try:
            self._library.before_exec(self._channel)
            self._descriptor.cork(self._hardened)  # the variables and the exec in one segment
            for name, value in environment:
                await self._set_variable(name, value)
            await self._complete(lambda: self._channel.execute(command))
        except SSH2Error as error:
            raise Unavailable(f"{self.address}: the command was not accepted: {self._say(error)}", reason="exec") from None

    async def _set_variable(self, name: str, value: str) -> None:
        if self._library.sets_env_unasked:
            code = await self._complete(lambda: self._library.setenv(self._channel, name.encode(), value.encode()))
            handle_error_codes(code)
        elif name not in self._refused_env:
            try:
                await self._complete(lambda: self._channel.setenv(name, value))
            except ChannelRequestDenied:
                self._refused_env.add(name)

    def attach(self, peer: Peer) -> None:
        """From now on `peer` is told what the git host sends, until it is told the end."""
        assert self._state == "running", self
        self._peer = peer
        self._eof = "no"
        self._output_ended = self._paused = self._window_shut = False
        self._spins, self._spun = 0, (-1, -1.0)
        self._unanswered = 0
        self._keepalive = self._loop.call_later(self._keepalive_seconds, self._keep_alive)
        self._later()

    @property
    def pending(self) -> int:
        """Bytes that the client sent and the git host's connection has not taken yet."""
        return self._out_bytes

    def send(self, data: bytes) -> None:
        """Queues data for the command's stdin; the peer limits how much (see `pending`)."""
        if self._peer is None or self._eof != "no":
            return
        if self._out and len(self._out[-1]) + len(data) <= JOIN_BYTES:
            self._out[-1] += data
        else:
            self._out.append(data)
        self._out_bytes += len(data)
        if self._owner is None and not self._window_shut and not self._need_output:
            self._later()

    def send_eof(self) -> None:
        """Half-closes: the command's stdin ends after what was queued."""
        if self._peer is not None and self._eof == "no":
            self._eof = "wanted"
            self._later()

    def pause(self) -> None:
        """Stops reading; the git host stops when its window of 2 MiB is used up."""
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._later()

    def _later(self) -> None:
        if self._again is None and self._peer is not None:
            self._again = self._loop.call_soon(self._pump)

    def _on_readable(self) -> None:
        self._heard = self._loop.time()
        self._pump()

    def _pump(self) -> None:
        """Moves what can be moved: the owner's pending operation first, then output, then input, then the end."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._peer is None:
            return
        moved, self._need_output, self._window_shut = self._moved, False, False
        try:
            if self._owner is not None:
                owner, self._owner, self._unsent = self._owner, None, None
                owner()
            if self._owner is None:
                self._write_out()
            if self._owner is None and not self._paused:
                self._read_in()
        except SSH2Error as error:
            self._broken(error)
            return
        if self._peer is None:
            return
        if self._moved != moved:
            self._spins = 0
        else:
            self._spins += 1
            if self._spins % SPINS_A_LOOK == 0 and self._is_wedged():
                self._end(Stalled(f"{self.address}: libssh2 makes no progress though its socket is ready ({self!r})"))
                return
        self._watch()

    def _is_wedged(self) -> bool:
        """Since the last look, thousands of wakes ago, nothing moved, and the socket's input was neither read nor added to."""
        unread = ioctl_int(self._fd, termios.FIONREAD)
        before, self._spun = self._spun, (unread, self._heard)
        return before == self._spun or (unread > 0 and before[0] == unread)

    def _writable(self) -> bool:
        """Whether a call that may send can be made: the hardened library finishes a partly sent packet before a key exchange."""
        return self._hardened or bool(self._poll.poll(0))

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
            self._later()
            return
        if self._eof == "wanted":
            self._send_eof()

    def _next_chunk(self) -> bytes:
        """One packet's worth; small pieces are joined, so that a chatty client does not make tiny packets."""
        chunk = self._out.popleft()
        if len(chunk) > WRITE_BYTES:
            self._out.appendleft(chunk[WRITE_BYTES:])
            return chunk[:WRITE_BYTES]
        if self._out and len(chunk) + len(self._out[0]) <= WRITE_BYTES:
            parts, size = [chunk], len(chunk)
            while self._out and size + len(self._out[0]) <= WRITE_BYTES:
                size += len(self._out[0])
                parts.append(self._out.popleft())
            chunk = b"".join(parts)
        return chunk

    def _write_chunk(self) -> bool:
        """Offers the frozen chunk; True when it was taken whole. Otherwise the remainder stays, the same bytes."""
        assert self._chunk is not None
        rc, taken = self._channel.write(self._chunk)
        if taken:
            self._moved += taken
            self._out_bytes -= taken
            self._chunk = self._chunk[taken:] or None
            complete = self._chunk is None
            if self._peer is not None:
                self._peer.upstream_accepted()
            if complete or self._peer is None:
                return complete
        if rc == AGAIN:
            if self._channel.window_write() == 0:
                self._window_shut = True  # nothing is pending in libssh2: an adjust must be read first
            else:
                self._own(self._retry_write, lambda: self._channel.write(self._chunk))
        return False

    def _own(self, owner: Callable[[], None], unsent: Callable[[], Any]) -> None:
        self._owner, self._unsent = owner, unsent

    def _retry_write(self) -> None:
        self._write_chunk()

    def _send_eof(self) -> None:
        if not self._writable():
            self._need_output = True
            return
        if self._channel.send_eof() == AGAIN:
            self._own(self._send_eof, lambda: self._channel.send_eof())
        else:
            self._eof = "sent"
            self._moved += 1

    def _read_in(self) -> None:
        peer = self._peer
        assert peer is not None
        for _ in range(READS_A_WAKE):
            if not self._writable():  # a read may send a window adjust
                self._need_output = True
                return
            got, data = self._reader.read(self._pointer, STDOUT)
            if got > 0:
                self._moved += got
                peer.upstream_data(data)
                if self._peer is None:
                    return
            got_stderr, data = self._reader.read(self._pointer, STDERR)
            if got_stderr > 0:
                self._moved += got_stderr
                peer.upstream_stderr(data)
                if self._peer is None:
                    return
            if got <= 0 and got_stderr <= 0:
                if AGAIN in (got, got_stderr) and self._session.block_directions() & LIBSSH2_SESSION_BLOCK_OUTBOUND:
                    self._own(self._retry_read, lambda: self._reader.read(self._pointer, STDOUT))
                elif self._channel.eof():
                    self._await_close()
                elif self._reader.queued(self._pointer):
                    break  # came with the second read, of the other stream: the socket has no more news of it
                return
            if self._paused:
                return
        self._later()

    def _retry_read(self) -> None:
        """A window adjust is partly sent: the same read, the same size, before anything else; it runs even while paused."""
        self._read_in()

    def _await_close(self) -> None:
        """Both streams have ended and are read; the exit status comes before the channel's close."""
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

    def _watch(self) -> None:
        """Tells the loop what the session waits for."""
        wants_output = self._need_output
        wants_input = (not self._paused or self._window_shut) and not wants_output  # as long as no call can be made none can read it
        if self._owner is not None:
            directions = self._session.block_directions()
            wants_input = bool(directions & LIBSSH2_SESSION_BLOCK_INBOUND)
            wants_output = bool(directions & LIBSSH2_SESSION_BLOCK_OUTBOUND)
            if directions == 0:  # a hint only, and it can be wrong
                wants_input = wants_output = True
            elif wants_output and not self._poll.poll(0):
                wants_input = False  # what is sent in part goes first; input that nobody reads meanwhile would wake again and again
        self._listen(self._on_readable if wants_input else None, self._pump if wants_output else None)

    def _keep_alive(self) -> None:
        """Asks the git host's sshd for a sign of life, which it gives however long git computes.

        Bytes that leave are a sign too: output that waits for room in the socket keeps the question from being sent.
        """
        unsent = ioctl_int(self._fd, termios.TIOCOUTQ)  # a question adds to it
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
        """The transport failed. What had been received is delivered first; if the end was among it, that is the end."""
        said = self._say(error)
        told: Exit | None = None
        peer = self._peer
        assert peer is not None
        self._deafen()
        try:
            self._descriptor.isolate()
            if self._unsent is not None:
                done = self._unsent()
                self._unsent = self._owner = None
                if isinstance(done, tuple) and isinstance(done[1], memoryview) and done[0] > 0:
                    peer.upstream_data(done[1])  # a read, whose window adjust had been partly sent
            while self._peer is not None:
                got, data = self._reader.read(self._pointer, STDOUT)
                if got > 0:
                    peer.upstream_data(data)
                    continue
                got_stderr, data = self._reader.read(self._pointer, STDERR)
                if got_stderr <= 0:
                    break
                peer.upstream_stderr(data)
            if self._peer is not None and self._channel.eof() and self._channel.wait_closed() != AGAIN:
                told = self._library.after_close(self._channel)
        except SSH2Error:
            told = None  # libssh2 gives no more; `said` is why
        if self._peer is not None:
            self._end(told if told is not None else Lost(f"{self.address}: {said}"))

    def abort(self) -> None:
        """Ends the running command by ending the connection, never by an EOF; the peer is told nothing more."""
        self._peer = None
        self.close()

    def _end(self, how: Exit | RelayError, keep: bool = False) -> None:
        """Tells the peer; a connection that ended cleanly may serve again after `prepare`."""
        peer, self._peer = self._peer, None
        self._stop()
        if not keep or self._owner is not None:
            self.close()
        self._forget_output()
        if peer is not None:
            peer.upstream_ended(how)

    @property
    def usable(self) -> bool:
        """Whether `prepare` may make it ready again."""
        return self._state != "closed"

    def _stop(self) -> None:
        self._listen(None, None)
        for timer in (self._again, self._keepalive):
            if timer is not None:
                timer.cancel()
        self._again = self._keepalive = None

    def _forget_output(self) -> None:
        self._out.clear()
        self._out_bytes = 0
        self._chunk = None
        self._owner = self._unsent = None

    def close(self) -> None:
        """Frees everything at once: never an EOF upstream, never a leak, whatever was half sent. Idempotent."""
        if self._state == "closed":
            return
        idle = self._state == "ready"
        self._state = "closed"
        self._on_lost = None
        self._peer = None
        self._stop()
        self._deafen()
        if idle:
            try:
                self._session.disconnect()  # so that the git host's log says who left
            except SSH2Error:
                pass  # it is gone already
        if self._unsent is not None:
            # freeing a session that has a packet half sent leaks it: finish the packet where nobody reads
            try:
                self._descriptor.isolate()
                self._unsent()
            except SSH2Error:
                pass  # freed below all the same
        self._descriptor.bury()
        self._forget_output()
        self._channel = None
        self._session = None  # frees; the descriptor, which the session holds, is closed after it
        del self._descriptor  # here, and not when a collector finds this object
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(Unavailable(f"{self.address}: closed"))

    # -- the loop --------------------------------------------------------------------------------------------------------

    def _listen(self, readable: Callable[[], None] | None, writable: Callable[[], None] | None) -> None:
        if readable is not None and not self._hears_input:
            self._hears_input = True
            self._loop.add_reader(self._fd, self._has_input)
        if writable is not None:
            if self._writing != writable:
                self._loop.add_writer(self._fd, writable)
        elif self._writing:
            self._loop.remove_writer(self._fd)
        self._reading, self._writing = readable, writable

    def _has_input(self) -> None:
        """One callback for the connection's life: asking the loop anew for each step costs two system calls a step."""
        if self._reading is not None:
            self._reading()
        else:
            self._hears_input = False
            self._loop.remove_reader(self._fd)

    def _deafen(self) -> None:
        """Before the descriptor is replaced."""
        self._listen(None, None)
        if self._hears_input:
            self._hears_input = False
            self._loop.remove_reader(self._fd)

    async def _complete(self, operation: Callable[[], Any]) -> Any:
        """Calls until it is done, which makes it the session's one operation; for steps outside of an exec's streams."""
        while True:
            if self._state == "closed":
                raise Unavailable(f"{self.address}: closed")
            if self._writable():
                result = operation()
                if not (isinstance(result, int) and result == AGAIN):
                    self._unsent = None
                    return result
                self._unsent = operation
                self._descriptor.cork(False)  # what it waits for may be the answer to what is held back
                directions = self._session.block_directions()
            else:
                directions = LIBSSH2_SESSION_BLOCK_OUTBOUND
            self._waiter = self._loop.create_future()
            timer = None
            if directions == 0:
                timer = self._loop.call_later(UNSURE_SECONDS, self._wake)
            self._listen(
                self._wake if directions & LIBSSH2_SESSION_BLOCK_INBOUND or not directions else None,
                self._wake if directions & LIBSSH2_SESSION_BLOCK_OUTBOUND else None,
            )
            try:
                await self._waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
                self._listen(None, None)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _say(self, error: SSH2Error) -> str:
        """libssh2's own words, and the binding's class where it has none."""
        said = str(self._session.last_error()).strip() if self._session is not None else ""
        return f"{type(error).__name__} {error} {said}".strip()
