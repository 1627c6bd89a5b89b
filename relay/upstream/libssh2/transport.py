"""The transport to a git host (RFC 4253): a socket, the libssh2 session on it, the key exchange, and `close`, which frees both.

Except while a command's streams run, it does one operation at a time (`_complete`). The rules for libssh2 are in the package's docstring.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from relay.address import format_address
from relay.config import HostAlgorithms
from relay.errors import Unavailable
from relay.upstream import hello
from relay.upstream.algorithms import offer
from relay.upstream.hello import HEARD_BYTES
from relay.upstream.hostkeys import HostKeys, fingerprint
from relay.upstream.libssh2.binding import (
    LIBRARY,
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
    SSH2Error,
    handle_error_codes,
)
from relay.upstream.libssh2.binding import LIBSSH2_ERROR_EAGAIN as AGAIN
from relay.upstream.libssh2.channel_io import Reading, Writing
from relay.upstream.libssh2.descriptor import Descriptor
from relay.upstream.libssh2.library import Library, session_pointer
from relay.upstream.libssh2.tcp import connect
from relay.upstream.libssh2.words import words
from relay.upstream.tap import Tap

READ_BYTES = 256 * 1024  # the size of every read; must be below 1.5 MiB
UNSURE_SECONDS = 0.05  # until the next try after an EAGAIN for which libssh2 names no direction

STRANGER_SECONDS = 2  # for the version after a line that is none; a server with a greeting sends both together

_library: Library | None = None


def loaded_library() -> Library:
    """The libssh2 of this process. Raises UnknownLibrary if it is a build whose exit statuses cannot be read reliably."""
    global _library
    if _library is None:
        _library = Library(LIBRARY)
    return _library


_reading: Reading | None = None


def reading() -> Reading:
    """The buffer that all connections of this process read into."""
    global _reading
    if _reading is None:
        _reading = Reading(loaded_library(), READ_BYTES, AGAIN, handle_error_codes)
    return _reading


_writing: Writing | None = None


def writing() -> Writing:
    """The writer that all connections of this process share."""
    global _writing
    if _writing is None:
        _writing = Writing(loaded_library(), AGAIN, handle_error_codes)
    return _writing


class State(StrEnum):
    """What a connection to a git host is doing; `_NEXT` has the transitions."""

    NEW = "new"  # connected, the host key not compared yet
    KNOWN = "known"  # the host key was compared: login, and opening the first channel
    READY = "ready"  # idle, with a channel open
    RUNNING = "running"  # a command, and then closing its channel and opening the next
    CLOSED = "closed"


_NEXT = {
    State.NEW: (State.KNOWN, State.CLOSED),
    State.KNOWN: (State.READY, State.CLOSED),
    State.READY: (State.RUNNING, State.CLOSED),
    State.RUNNING: (State.READY, State.CLOSED),
    State.CLOSED: (),
}


class Transport:
    """From the TCP connection to the compared host key. `Streams` and `Connection` add the states after that."""

    def __init__(self, sock: socket.socket, address: str, loop: asyncio.AbstractEventLoop) -> None:
        self.address = address
        self._loop = loop
        self._library = loaded_library()
        self._descriptor = Descriptor(sock)
        self._fd = self._descriptor.fileno()
        self._hardened = bool(self._library.build)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._session: Any = Session()
        self._session.set_blocking(False)
        self._session_pointer = session_pointer(self._session)
        self._holds = False  # small packets are held back
        self._channel: Any = None
        self._state = State.NEW
        self._reading: Callable[[], None] | None = None  # called when the socket has input
        self._hears_input = False  # whether the loop watches the socket for input
        self._writing: Callable[[], None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._unsent: Callable[[], Any] | None = None  # the C call whose packet may be partly sent

    def _enter(self, state: State) -> None:
        assert state in _NEXT[self._state], f"{self!r} cannot become {state.value}"
        self._state = state

    # -- key exchange ----------------------------------------------------------------------------------------------------

    async def _handshake(self, host_keys: HostKeys, algorithms: HostAlgorithms = "modern") -> None:
        ours = offer(algorithms, self._hardened)
        ciphers, macs = ",".join(ours.ciphers), ",".join(ours.macs)
        prefer = (
            (LIBSSH2_METHOD_KEX, ",".join(ours.key_exchanges)),
            (LIBSSH2_METHOD_HOSTKEY, ",".join(host_keys.types)),
            (LIBSSH2_METHOD_CRYPT_CS, ciphers),
            (LIBSSH2_METHOD_CRYPT_SC, ciphers),
            (LIBSSH2_METHOD_MAC_CS, macs),
            (LIBSSH2_METHOD_MAC_SC, macs),
            (LIBSSH2_METHOD_COMP_CS, "none"),
            (LIBSSH2_METHOD_COMP_SC, "none"),
        )
        tap = Tap(self._library, self._session, HEARD_BYTES)
        try:
            for method, value in prefer:
                self._session.method_pref(method, value)
            await self._greet(tap)
            blob, _ = self._session.hostkey()
        except (SSH2Error, TimeoutError) as error:  # the latter from `_greet` alone
            said = hello.why(bytes(tap.heard), ours, host_keys.types, offer("compatible", self._hardened))
            if not said:
                said = self._say(error) if isinstance(error, SSH2Error) else "the git host sent no SSH version"
            passing = self._session is not None and self._hung_up() and hello.is_restarting(bytes(tap.heard), ours, host_keys.types)
            raise Unavailable(f"{self.address}: key exchange failed: {said}", reason="handshake", passing=passing) from None
        finally:
            if self._session is not None:  # else `close` has freed it
                tap.remove()
        if not host_keys.match(blob):
            raise Unavailable(
                f"{self.address}: HOST KEY MISMATCH: offered {fingerprint(blob)}, pinned {', '.join(host_keys.fingerprints)}",
                reason="host_key",
            )
        self._enter(State.KNOWN)

    async def _greet(self, tap: Tap) -> None:
        """The handshake. Raises TimeoutError STRANGER_SECONDS after a line that is no SSH version, if no version followed."""
        strange = over = False
        async with asyncio.timeout(None) as limit:

            def step() -> Any:
                nonlocal strange
                result = self._session.handshake(self._descriptor)
                if not over and hello.is_stranger(tap.heard) is not strange:  # not when `close` calls this once more
                    strange = not strange
                    limit.reschedule(self._loop.time() + STRANGER_SECONDS if strange else None)
                return result

            try:
                await self._complete(step)
            finally:
                over = True

    def _writable(self) -> bool:
        """Whether a call that can send may be made; always with the hardened library, which completes its packet before a key exchange."""
        return self._hardened or bool(self._poll.poll(0))

    async def _complete(self, operation: Callable[[], Any]) -> Any:
        """Calls `operation` until it is done; the session must have no other. Not for the streams of a running command."""
        while True:
            if self._state is State.CLOSED:
                raise Unavailable(f"{self.address}: closed")
            if self._writable():
                result = operation()
                if not (isinstance(result, int) and result == AGAIN):
                    self._unsent = None
                    return result
                self._unsent = operation
                self._hold(False)  # it may wait for the answer to what is held back
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

    def _hold(self, on: bool) -> None:
        """While on, small packets are held back, so that several leave in one write and one segment; only with the hardened library."""
        if self._holds != on:
            self._holds = on
            if (code := self._library.hold(self._session_pointer, on)) != AGAIN:
                handle_error_codes(code)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _hung_up(self) -> bool:
        """Whether the far side has ended the TCP connection."""
        poll = select.poll()
        poll.register(self._fd, select.POLLRDHUP)
        return bool(poll.poll(0))

    def _say(self, error: SSH2Error) -> str:
        return words(error, self._session)

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
        """The loop's callback for the whole life of the connection: adding a reader for each step costs two system calls a step."""
        if self._reading is not None:
            self._reading()
        else:
            self._hear_nothing()

    def _hear_nothing(self) -> None:
        """Stops waiting for input until `_listen` is called."""
        self._reading = None
        if self._hears_input:
            self._hears_input = False
            self._loop.remove_reader(self._fd)

    def _stop_watching(self) -> None:
        """Stops watching the socket; must precede replacing the descriptor."""
        self._listen(None, None)
        self._hear_nothing()

    # -- end -------------------------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether `prepare` may make it ready again."""
        return self._state is not State.CLOSED

    def _stop(self) -> None:
        """Stops the events of the socket, and timers."""
        self._listen(None, None)

    def close(self) -> None:
        """Frees everything at once, without an EOF to the git host and without a leak, even with a packet half sent. Idempotent."""
        if self._state is State.CLOSED:
            return
        idle = self._state in (State.READY, State.KNOWN)
        self._enter(State.CLOSED)
        self._stop()
        self._stop_watching()
        if idle:
            try:
                self._session.disconnect()  # so that the git host's log names the relay as the one that disconnected
            except SSH2Error:
                pass  # the connection is closed already
        if self._unsent is not None:
            # libssh2 leaks a packet that is half sent when its session is freed: complete it into a socket that nobody reads
            try:
                self._descriptor.isolate()
                self._unsent()
            except SSH2Error:
                pass  # it is freed below all the same
        self._descriptor.bury()
        self._unsent = None
        self._channel = None
        self._session = None  # frees; the descriptor, which the session holds, is closed after it
        del self._descriptor  # now, not when the garbage collector finds this object
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(Unavailable(f"{self.address}: closed"))


async def probe(host: str, port: int, host_keys: HostKeys, algorithms: HostAlgorithms = "modern") -> None:
    """Exchanges keys with a git host, compares its host key, and disconnects without a login.

    No time limit of its own: the caller cancels. Raises Unavailable: dial, handshake, host_key.
    """
    loop = asyncio.get_running_loop()
    address = format_address(host, port)
    transport = Transport(await connect(host, port, address, loop), address, loop)
    try:
        await transport._handshake(host_keys, algorithms)
    finally:
        transport.close()
