"""A connection that serves sessions: login (RFC 4252), a channel opened ahead, and one command after another."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from relay.address import format_address
from relay.config import HostAlgorithms
from relay.errors import Unavailable
from relay.upstream.hostkeys import HostKeys
from relay.upstream.libssh2.binding import LIBSSH2_ERROR_EAGAIN as AGAIN
from relay.upstream.libssh2.binding import AuthenticationError, ChannelFailure, ChannelRequestDenied, SSH2Error, handle_error_codes
from relay.upstream.libssh2.channel_io import STDOUT
from relay.upstream.libssh2.streams import KEEPALIVE_LEAST_SECONDS, Streams
from relay.upstream.libssh2.tcp import connect
from relay.upstream.libssh2.transport import State
from relay.upstream.libssh2.words import UNREADABLE_KEY

ASK_SECONDS = KEEPALIVE_LEAST_SECONDS + 1  # between keepalives to an idle host: libssh2 counts whole seconds and sends none sooner


@dataclass(frozen=True, slots=True)
class Login:
    """Who the relay is at a git host, and which host keys prove the host."""

    user: str
    private_key: bytes  # OpenSSH format, in memory
    host_keys: HostKeys
    algorithms: HostAlgorithms = "modern"
    credentials: Callable[[], tuple[bytes, bytes]] | None = None  # gives a private key and its certificate's line for each login instead
    clocks: Callable[[], str] | None = None  # what the log adds when a git host refuses the certificate


class Connection(Streams):
    """Dial, then prepare, then any number of (run, attach, ended, prepare), then close."""

    def __init__(self, sock: socket.socket, address: str, keepalive_seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(sock, address, keepalive_seconds, loop)
        self.sessions = 0  # served so far
        self._on_lost: Callable[[Connection], None] | None = None
        self._refused_env: set[str] = set()
        self._inputs = 0  # how often the connection had input while idle
        self._asked = (-1e9, 0)  # when the last keepalive was sent while idle, and `_inputs` then
        self._answered: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<upstream {self.address} {self._state.value} sessions={self.sessions} out={self._out_bytes}>"

    # -- dial ------------------------------------------------------------------------------------------------------------

    @classmethod
    async def dial(cls, host: str, port: int, login: Login, keepalive_seconds: float) -> Connection:
        """Connects, exchanges keys, compares the host key, then authenticates, and opens a channel ahead.

        `keepalive_seconds`, at least KEEPALIVE_LEAST_SECONDS, is how often a running command's git host is asked whether it lives.
        No time limit of its own: the caller cancels. Raises Unavailable with the reason of the step that failed.
        """
        loop = asyncio.get_running_loop()
        address = format_address(host, port)
        connection = cls(await connect(host, port, address, loop), address, keepalive_seconds, loop)
        try:
            await connection._handshake(login.host_keys, login.algorithms)
            await connection._authenticate(login)
            await connection.prepare()
        except BaseException:  # the caller's cancellation, which is its time limit, too
            connection.close()
            raise
        return connection

    async def _authenticate(self, login: Login) -> None:
        private, public = login.credentials() if login.credentials is not None else (login.private_key, None)
        try:
            await self._complete(lambda: self._session.userauth_publickey_frommemory(login.user, private, "", public))
        except SSH2Error as error:
            said = self._say(error)
            if isinstance(error, UNREADABLE_KEY):
                raise Unavailable(f"{self.address}: the private key for user {login.user!r} is of no use: {said}", reason="auth") from None
            # libssh2 has one error, a kind of AuthenticationError, for a signature refused and for a connection that ends before the answer
            if type(error) is not AuthenticationError and self._hung_up():
                detail = f"{self.address}: the connection ended in authentication: {said}"
                raise Unavailable(detail, reason="handshake", passing=True) from None
            clocks = f"; {login.clocks()}" if login.clocks is not None else ""
            raise Unavailable(f"{self.address}: the key of user {login.user!r} was refused: {said}{clocks}", reason="auth") from None

    async def prepare(self) -> None:
        """Opens a channel ahead, so that the next exec need not wait for it. Raises Unavailable(reason="channel")."""
        again = self._channel is not None
        try:
            if again:
                self._hold(True)  # the close and the next open in one write
                # both sides have sent CLOSE: this sends what is left and frees the channel
                await self._complete(lambda: self._channel.close())
                self._channel = None
            try:
                self._channel = await self._complete(lambda: self._session.open_session())
            except ChannelFailure:
                if not again:
                    raise
                # A host that allows one channel at a time (sshd's MaxSessions 1) has read the close and the open together, and frees the
                # old channel after it has read both. With its refusal the old channel is gone.
                self._channel = await self._complete(lambda: self._session.open_session())
            self._pointer = self._reader.pointer(self._channel)
            self._hold(False)
        except SSH2Error as error:
            detail = f"{self.address}: no channel could be opened: {self._say(error)}"
            raise Unavailable(detail, reason="channel", passing=self._hung_up()) from None
        self._enter(State.READY)
        self._watch_idle()
        if self._state is State.CLOSED:
            raise Unavailable(f"{self.address}: the git host closed the connection", reason="channel", passing=True)

    # -- idle ------------------------------------------------------------------------------------------------------------

    def on_lost(self, call: Callable[[Connection], None] | None) -> None:
        """`call` is called once if the git host ends the connection while it is idle."""
        self._on_lost = call

    @property
    def heard(self) -> float:
        """When the git host last sent something to a running command, or the connection became ready; on the loop's clock."""
        return self._heard

    async def alive(self) -> None:
        """Sends a keepalive (a global request, RFC 4254 section 4) on an idle connection; returns when the git host answered.

        Returns as well when a session has taken the connection, or takes it meanwhile: the session will notice. No time limit of its own:
        the caller cancels. Raises Unavailable when the connection is closed.
        """
        now = self._loop.time()
        if self._state is State.READY and now - self._asked[0] >= ASK_SECONDS:
            self._asked = (now, self._inputs)
            if self._writable():
                try:
                    self._session.keepalive_config(True, KEEPALIVE_LEAST_SECONDS)
                    self._session.keepalive_send()
                except SSH2Error as error:
                    raise Unavailable(f"{self.address}: an idle connection is broken: {self._say(error)}", reason="channel") from None
        while self._state is State.READY and self._inputs == self._asked[1]:
            answered = self._answered = self._loop.create_future()
            await answered
        if self._state is State.CLOSED:
            raise Unavailable(f"{self.address}: the git host closed an idle connection", reason="channel")

    def _wake_asker(self) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def _idle_input(self) -> None:
        self._inputs += 1
        self._wake_asker()
        self._idle_readable()

    def _watch_idle(self) -> None:
        self._heard = self._loop.time()
        self._listen(self._idle_input, None)
        # uvloop reports a reset only once, perhaps to the wait for the channel: read at once
        self._idle_readable()

    def _idle_readable(self) -> None:
        """Handles an idle connection's input: a key exchange, a global request, or its end."""
        try:
            self._reader.read(self._pointer, STDOUT)
            alive = not self._channel.eof()
        except SSH2Error:
            alive = False
        if not alive and self._state is State.READY:
            call, self._on_lost = self._on_lost, None
            self.close()
            if call is not None:
                call(self)

    # -- run -------------------------------------------------------------------------------------------------------------

    async def run(self, command: str, environment: list[tuple[str, str]]) -> None:
        """Starts `command` on the channel that was opened ahead; returns when the git host has accepted it.

        Variables that the host refuses are left out, and not offered again on this connection.
        Raises Unavailable(reason="exec"); the connection cannot be used again then.
        """
        self._enter(State.RUNNING)
        self._wake_asker()
        self._on_lost = None
        self._listen(None, None)  # the idle connection's reader would throw away the command's first output
        self.sessions += 1
        try:
            self._library.before_exec(self._channel)
            self._hold(True)  # the variables and the exec in one write
            for name, value in environment:
                await self._set_variable(name, value)
            await self._complete(lambda: self._channel.execute(command))
            self._hold(False)
        except SSH2Error as error:
            detail = f"{self.address}: the command was not accepted: {self._say(error)}"
            raise Unavailable(detail, reason="exec", passing=self._hung_up()) from None

    async def _set_variable(self, name: str, value: str) -> None:
        if self._library.sets_env_unasked:
            send = partial(self._library.setenv, self._pointer, name.encode(), value.encode())
            if (code := send()) == AGAIN:
                code = await self._complete(send)
            handle_error_codes(code)
        elif name not in self._refused_env:
            try:
                await self._complete(lambda: self._channel.setenv(name, value))
            except ChannelRequestDenied:
                self._refused_env.add(name)

    def close(self) -> None:
        self._on_lost = None
        super().close()
        self._wake_asker()
