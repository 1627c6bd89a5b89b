"""Carries a session's bytes between the client's channel and the git host's connection, both ways at once.

Symmetry: when one side cannot take more, the other is paused; when one side half-closes, the other is half-closed after all
that was sent before. Per chunk nothing is logged or measured: two integers grow.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from relay.errors import ClientGone, Denied, RelayError, Stalled
from relay.events import SessionRecord
from relay.model import Exit, printable

CLIENT_TO_UPSTREAM_HIGH_BYTES = 256 * 1024  # then the client is not read
CLIENT_TO_UPSTREAM_LOW_BYTES = 64 * 1024

NO_REPOSITORY = b"does not appear to be a git repository"  # git's setup: "fatal: '%s' does not appear to be a git repository"
GIT_FATAL = 128
NOT_THERE_MOST_BYTES = 4096
ARCHIVE_ACK = b"0008ACK\n0000"  # git-upload-archive says so before it has looked at the repository, and tells its fate in sideband 2


class Client(Protocol):
    """The client's channel (RFC 4254 section 5): stdout and stderr out, stdin in."""

    def write(self, data: bytes | memoryview) -> None:
        """Sends or copies; `data` is not kept."""

    def write_stderr(self, data: bytes | memoryview) -> None: ...

    def write_eof(self) -> None: ...

    @property
    def full(self) -> bool:
        """Whether no more should be written until `Splice.client_drained` is told."""

    @property
    def waiting(self) -> int:
        """Bytes written that the client's window or socket has not taken yet."""

    def upstream_unread(self, count: int) -> bool:
        """`count` bytes wait in the git host's connection. True: receive no more of them until `Splice.client_drained` is told."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Upstream(Protocol):
    """The git host's side of the command, see relay.upstream.libssh2."""

    @property
    def pending(self) -> int: ...

    def attach(self, peer: Splice) -> None: ...

    def send(self, data: bytes) -> None: ...

    def send_eof(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def receive_again(self) -> None: ...

    def abort(self) -> None: ...


class Intake(Protocol):
    """Takes the client's bytes: who reads them first (relay.gate) until it steps aside, the git host, and nobody once it has ended."""

    @property
    def pending(self) -> int: ...

    def send(self, data: bytes) -> None: ...

    def send_eof(self) -> None: ...


class Watch(Intake, Protocol):
    """Stands at the intake until it knows enough."""

    @property
    def has_words(self) -> bool:
        """Whether it may have something to tell the client after the git host's last."""

    def attach(self, splice: Splice, client: Client, upstream: Upstream) -> None: ...

    def host_ended(self) -> bool:
        """Whether the session goes on without the git host; then the watch ends it."""

    def client_gone(self) -> bool:
        """Whether the watch ends the session its way."""

    def close(self) -> None:
        """The session is over."""


class _Nobody:
    """For what a client still sends when its git host has ended: the connection may serve another session by then."""

    pending = 0

    def send(self, data: bytes) -> None:
        pass

    def send_eof(self) -> None:
        pass


class Splice:
    """One session's two directions, from its making on; `run` returns the git host's exit or raises why there is none."""

    def __init__(self, client: Client, upstream: Upstream, record: SessionRecord, stall_seconds: float, watch: Watch | None = None) -> None:
        self._client = client
        self._upstream = upstream
        self._watch = watch  # until it steps aside
        self._intake: Intake = upstream if watch is None else watch
        self._record = record
        self._stall_seconds = stall_seconds
        self._client_paused = False
        self._upstream_paused = False
        self._not_there: bytes | None = None  # git's words for it, held back until it is known that nothing else was said
        archive = record.command is not None and record.command.service == "git-upload-archive"
        self._opening: bytes | None = b"" if archive else None  # of stdout, held back for the same reason
        self._ended_output = False  # the client was told the git host's EOF
        self._accepted = 0  # bytes that left for the git host, for the stall watch
        self._done: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        if watch is not None:
            watch.attach(self, client, upstream)
        upstream.attach(self)  # at once: what the client sent early may come before `run`, and the upstream takes it only now

    async def run(self) -> Exit:
        """Raises ClientGone, Lost, NoExit, Stalled, or what `stop` was given. The upstream is aborted unless it ended by itself."""
        loop = asyncio.get_running_loop()
        watch = _StallWatch(self, self._stall_seconds, loop)
        try:
            return await self._done
        finally:
            watch.stop()
            self._client.upstream_unread(0)
            if self._watch is not None:
                self._watch.close()
            self._watch, self._intake, self._upstream_paused = None, _Nobody(), False
            if not self._done.done() or self._done.cancelled() or self._done.exception() is not None:
                self._upstream.abort()

    @property
    def untouched(self) -> bool:
        """Nothing was carried, neither a byte nor the git host's EOF: another git host may still have the session."""
        return not (self._record.bytes_in or self._record.bytes_out or self._ended_output)

    def stop(self, error: RelayError) -> bool:
        """Ends the session with `error`; the git host sees its connection go, never an EOF. False when it had ended already."""
        if self._done.done():
            return False
        self._upstream.abort()
        self._done.set_exception(error)
        return True

    def step_aside(self) -> None:
        """From the watch: what the client says goes straight to the git host from now on."""
        self._watch = None
        self._intake = self._upstream

    def end(self, how: Exit) -> None:
        """From the watch: the session is over though the git host had no part in it."""
        if not self._done.done():
            self._done.set_result(how)

    # -- the client says -------------------------------------------------------------------------------------------------

    def client_data(self, data: bytes) -> None:
        self._record.bytes_in += len(data)
        intake = self._intake
        intake.send(data)
        if not self._client_paused and intake.pending > CLIENT_TO_UPSTREAM_HIGH_BYTES:
            self._client_paused = True
            self._client.pause_reading()

    def client_eof(self) -> None:
        self._intake.send_eof()

    def client_drained(self) -> None:
        if not self._upstream_paused:
            return
        if self._client.full:
            self._upstream.receive_again()
            return
        self._upstream_paused = False
        self._client.upstream_unread(0)
        self._upstream.resume()

    def client_gone(self, detail: str, error: RelayError | None = None) -> None:
        """The channel is gone; with `error` because the relay ended the connection. A watch may end the session its own way."""
        if self._done.done() or self._watch is None or not self._watch.client_gone():
            self.stop(error or ClientGone(detail))

    # -- the git host says -----------------------------------------------------------------------------------------------

    def upstream_data(self, data: bytes | memoryview) -> None:
        if self._opening is not None:
            self._archive_opens(bytes(data))
            return
        if self._not_there is not None:
            self._let_go()
        self._record.bytes_out += len(data)
        client = self._client
        client.write(data)
        if client.full and not self._upstream_paused:
            self._upstream_paused = True
            self._upstream.pause()

    def upstream_stderr(self, data: memoryview) -> None:
        if not self._record.bytes_out and (self._not_there is not None or self._opening is not None or NO_REPOSITORY in bytes(data)):
            # a client must not learn the path, nor that the repository is missing rather than not theirs
            self._not_there = (self._not_there or b"") + data
            if len(self._not_there) > NOT_THERE_MOST_BYTES:
                self._let_go()
            return
        self._record.bytes_out += len(data)
        client = self._client
        client.write_stderr(data)
        if client.full and not self._upstream_paused:
            self._upstream_paused = True
            self._upstream.pause()

    def _archive_opens(self, data: bytes) -> None:
        """Holds the ACK and a first packet of sideband 2 back; the archive itself, or anything else, lets go of both."""
        held = (self._opening or b"") + data
        band = held[len(ARCHIVE_ACK) + 4 :][:1]
        if len(held) <= NOT_THERE_MOST_BYTES and ARCHIVE_ACK.startswith(held[: len(ARCHIVE_ACK)]) and band in (b"", b"\2"):
            self._opening = held
        else:
            self._opening = None
            self.upstream_data(held)

    def _let_go(self) -> None:
        opening, self._opening = self._opening, None
        if opening:
            self.upstream_data(opening)
        held, self._not_there = self._not_there, None
        if held:
            self._record.bytes_out += len(held)
            self._client.write_stderr(held)

    def upstream_unread(self, count: int) -> bool:
        return self._client.upstream_unread(count)

    def upstream_accepted(self) -> None:
        self._accepted += 1
        if self._client_paused and self._upstream.pending <= CLIENT_TO_UPSTREAM_LOW_BYTES:
            self._client_paused = False
            self._client.resume_reading()

    def upstream_eof(self) -> None:
        if self._not_there is None and not self._opening and not (self._watch is not None and self._watch.has_words):
            self._ended_output = True
            self._client.write_eof()

    def upstream_ended(self, how: Exit | RelayError) -> None:
        if not self._done.done():
            held = (self._opening or b"") + (self._not_there or b"")
            if held:
                if isinstance(how, Exit) and how.status == GIT_FATAL and NO_REPOSITORY in held:
                    said = held.decode("utf-8", "replace").strip()
                    self._done.set_exception(Denied(f"the git host says: {printable(said)}"))
                    return
                self._let_go()
            if self._watch is not None and self._watch.host_ended():
                return
            if isinstance(how, Exit):
                self._done.set_result(how)
            else:
                self._done.set_exception(how)

    # -- for the stall watch ---------------------------------------------------------------------------------------------

    def standing(self) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
        """For each direction that has bytes waiting, its progress so far: (to the client, to the git host). None: nothing waits."""
        waiting = self._client.waiting
        to_client = (self._record.bytes_out, waiting) if waiting else None
        to_upstream = (self._accepted, 0) if self._upstream.pending else None
        return to_client, to_upstream


class _StallWatch:
    """Quiet is no stall: only bytes that wait in one direction and do not move for the whole time are."""

    def __init__(self, splice: Splice, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self._splice = splice
        self._seconds = seconds
        self._loop = loop
        self._seen = splice.standing()
        now = loop.time()
        self._since = [now, now]
        self._timer = loop.call_later(seconds / 4, self._look)

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        standing = self._splice.standing()
        for side, (before, after) in enumerate(zip(self._seen, standing, strict=True)):
            if after is None or after != before:
                self._since[side] = now
            elif now - self._since[side] >= self._seconds:
                whom = ("client", "git host")[side]
                error = Stalled(f"no byte moved to the {whom} for {now - self._since[side]:.0f} s though bytes waited")
                error.fault = "client" if side == 0 else "upstream"
                self._splice.stop(error)
                return
        self._seen = standing
        self._timer = self._loop.call_later(self._seconds / 4, self._look)
