"""Carries a session's bytes between the client's channel and the git host's connection, both ways at once.

Both directions follow the same rules. When one side cannot take more, reading from the other side is paused. When one side sends EOF, the
other side receives it after everything that was sent before. Per chunk nothing is logged or measured: two integers grow.
"""

from __future__ import annotations

import asyncio
import math
from typing import Protocol

from relay.errors import ClientGone, ClientIdle, Lost, NoExit, RelayError
from relay.events import SessionRecord
from relay.gathering import GATHER_UNTAKEN_BYTES
from relay.git.host_words import HostWords
from relay.git.pktline import FLUSH_PKT
from relay.git.push_commands import CommandList, Report
from relay.git.turn import TAIL_BYTES, TAIL_ENDS, Requests, wants_more
from relay.git.withheld import Withheld
from relay.model import Exit
from relay.replay import Intake, Replay, ToHost, lost
from relay.stall_watch import StallWatch

CLIENT_TO_UPSTREAM_HIGH_BYTES = 256 * 1024  # above this many bytes pending, reading from the client is paused
CLIENT_TO_UPSTREAM_LOW_BYTES = 64 * 1024  # and resumed at this many

HOST_ENDS_SECONDS = 5.0  # how long a git host may take to end its command after a client disconnected that may have the whole answer
SPEAKS_FIRST = ("git-upload-pack", "git-receive-pack")  # the git host sends the first pkt-lines: its refs or capabilities
CONVERSES = ("git-upload-pack", "git-upload-archive", "git-lfs-transfer")  # the client sends requests of pkt-lines, one after another


class Client(Protocol):
    """The client's channel (RFC 4254 section 5): stdout and stderr out, stdin in."""

    def write(self, data: bytes | memoryview) -> None:
        """Sends or copies `data`; the buffer may be reused afterwards."""

    def write_stderr(self, data: bytes | memoryview) -> None: ...

    def write_eof(self) -> None: ...

    @property
    def full(self) -> bool:
        """Whether nothing more should be written until `Splice.client_drained` is called."""

    @property
    def waiting(self) -> int:
        """Bytes written that wait for the client's window or socket."""

    def upstream_unread(self, count: int) -> bool:
        """`count` bytes wait in the git host's connection. True: receive no more until `Splice.client_drained` is called."""

    def upstream_untaken(self, count: int) -> None:
        """`count` bytes of the input were not taken by the git host's command yet; told in bulk only."""

    def keeps(self, count: int) -> bool:
        """`count` bytes of the session are kept for a replay. False: too much memory is in use already."""

    @property
    def untaken(self) -> int:
        """Bytes written that wait for this channel's window."""

    @property
    def cut(self) -> bool:
        """Whether the client disconnected before its socket had taken all that was written."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class UpstreamCommand(Protocol):
    """The git host's side of the command, see relay.upstream.libssh2."""

    @property
    def pending(self) -> int: ...

    @property
    def untaken(self) -> int: ...

    def attach(self, peer: Splice) -> None: ...

    def send(self, data: bytes) -> None: ...

    def send_eof(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def receive_again(self) -> None: ...

    def abort(self) -> None: ...


class Interceptor(Intake, Protocol):
    """Takes the client's bytes before the git host until it knows enough, then calls `Splice.step_aside`."""

    @property
    def has_words(self) -> bool:
        """Whether the interceptor may still write to the client after the git host's EOF."""

    def attach(self, splice: Splice, client: Client, upstream: ToHost) -> None: ...

    def host_ended(self) -> bool:
        """Whether the session goes on after the git host's exit; the interceptor ends it then, by `Splice.end`."""

    def client_gone(self) -> bool:
        """Whether the interceptor ends the session of a client that has disconnected."""

    def close(self) -> None:
        """The session is over."""


class _Nobody:
    """Drops what a client sends after its git host has ended: the connection may serve another session by then."""

    pending = 0

    def send(self, data: bytes) -> None:
        pass

    def send_eof(self) -> None:
        pass


class Splice:
    """One session's two directions. It carries bytes from `__init__` on; `run` waits for the end.

    A session that goes on with another connection to a git host (`moved`) gets another Splice, which goes on where `before` stopped.
    """

    def __init__(
        self,
        client: Client,
        upstream: UpstreamCommand,
        record: SessionRecord,
        stall_seconds: float,
        interceptor: Interceptor | None = None,
        client_idle_seconds: float = math.inf,
        client_idle_busy_seconds: float = math.inf,
        replay: Replay | None = None,
        before: Splice | None = None,
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._replay = replay  # None once nothing can be replayed any more
        self.moved = False  # whether the session goes on with another connection, or without one
        self.late: list[bytes] = []  # what the client sent after that was decided, and before the session heard of it
        self._interceptor = interceptor  # None once it has stepped aside
        self._to_host: ToHost = upstream if replay is None else replay.intake(upstream, self.leave)
        self._intake: Intake = self._to_host if interceptor is None else interceptor
        self._record = record
        self._stall_seconds = stall_seconds
        self._client_paused = False
        self._upstream_paused = False
        command, route = record.command, record.route
        self._service = command.service if command is not None else ""
        self._words = HostWords(route.path if route is not None else "", command.repository if command is not None else "")
        self._withheld: Withheld | None = Withheld(self._service, self._words)  # None once git's protocol has begun
        self._idle_seconds, self._idle_busy_seconds = client_idle_seconds, client_idle_busy_seconds
        self._tail = b""  # the end of the git host's output, if it may end the answer to a request
        self._requests = Requests() if record.command is not None and record.command.service in CONVERSES else None
        loop = asyncio.get_running_loop()
        self._turn_began = loop.time()  # when the client last sent something, or the git host ended an answer
        self._client_left: ClientGone | None = None  # set when the client disconnects while the git host has time to end its command
        self._host_timer: asyncio.TimerHandle | None = None  # the end of that time
        self._pushes = record.command is not None and record.command.service == "git-receive-pack"
        self._report: Report | None = None  # a push's report-status, parsed from the client's first byte on
        self._host_eof = False  # whether the git host has ended its output
        self._ended_output = False  # whether its EOF was passed on to the client
        self._accepted = 0  # grows whenever the git host takes input, for StallWatch
        self._done: asyncio.Future[Exit] = loop.create_future()
        if before is not None:
            self._tail, self._requests = before._tail, before._requests
        if interceptor is not None:
            interceptor.attach(self, client, self._to_host)
        upstream.attach(self)  # not in `run`: the client's early input is sent before it, and the upstream drops input until attached
        if replay is not None and (asked := replay.begin()):
            upstream.send(asked)

    async def run(self) -> Exit:
        """Returns the git host's exit. Raises ClientGone, Lost, NoExit, Stalled, or what `stop` was given, and then aborts the upstream.

        If `moved` is true then, the session goes on with another connection; without one if it returns.
        """
        watch = StallWatch(self, self._stall_seconds, self._idle_seconds, self._done.get_loop())
        try:
            return await self._done
        finally:
            watch.stop()
            self._client.upstream_unread(0)
            if self._host_timer is not None:
                self._host_timer.cancel()
            self._intake, self._upstream_paused = _Nobody(), False
            if not self.moved:
                if self._interceptor is not None:
                    self._interceptor.close()
                self._interceptor = self._replay = None
            if not self._done.done() or self._done.cancelled() or self._done.exception() is not None:
                self._upstream.abort()

    @property
    def untouched(self) -> bool:
        """Whether nothing was carried, neither a byte nor the git host's EOF: another git host may still serve the session."""
        return not (self._record.bytes_in or self._record.bytes_out or self._ended_output)

    def stop(self, error: RelayError) -> bool:
        """Ends the session with `error`. The git host's connection is closed without an EOF. False when the session had ended already."""
        if self._done.done():
            return False
        self._upstream.abort()
        self._release_followed()
        self._done.set_exception(error)
        return True

    @property
    def interceptor(self) -> Interceptor | None:
        """The one that has not stepped aside yet."""
        return self._interceptor

    def step_aside(self) -> None:
        """Called by the interceptor: the client's bytes are sent straight to the git host from now on."""
        self._interceptor = None
        self._intake = self._to_host

    def leave(self) -> None:
        """Called by the replay: the session goes on without this connection, which cannot be used again."""
        if not self._done.done():
            self.moved = True
            self._upstream.abort()
            self._done.set_result(Exit())

    def end(self, how: Exit) -> None:
        """Called by the interceptor: ends the session without the git host's exit."""
        if not self._done.done():
            self._done.set_result(how)

    # -- the client's events -------------------------------------------------------------------------------------------

    def client_data(self, data: bytes) -> None:
        if self.moved:
            self.late.append(data)
            return
        self._record.bytes_in += len(data)
        if self._requests is not None:
            self._requests.feed(data)
            self._turn_began = asyncio.get_running_loop().time()
        elif self._interceptor is not None:
            self._turn_began = asyncio.get_running_loop().time()
        if self._replay is not None:
            self._replay.client_data(data)
            self._count_kept(self._replay)
        intake = self._intake
        intake.send(data)
        if self._record.bytes_in >= GATHER_UNTAKEN_BYTES:
            self._client.upstream_untaken(self._upstream.untaken)
        if self._replay is not None and self._replay.over:
            self._follow_no_more(self._replay)
        if not self._client_paused and intake.pending > CLIENT_TO_UPSTREAM_HIGH_BYTES:
            self._client_paused = True
            self._client.pause_reading()

    def client_eof(self) -> None:
        if self._client_left is None and not self.moved:
            if self._replay is not None:
                self._replay.client_eof()
            self._flush_if_nothing_requested()
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
        """The channel is closed; `error` is why, if the relay closed it. An interceptor may take over the end of the session."""
        if self._done.done() or (self._interceptor is not None and self._interceptor.client_gone()):
            return
        gone = ClientGone(detail)
        if error is not None or not self._may_have_whole_answer():
            self.stop(error or gone)
            return
        if self._replay is not None and self._replay.catching_up:  # the new git host is not needed: the client has all that it asked for
            self._upstream.abort()
            self._done.set_result(Exit())
            return
        self._client_left = gone
        self._flush_if_nothing_requested()
        command = self._record.command
        reads = command is not None and command.needs == "read"
        if self._tail.endswith(FLUSH_PKT) and (reads or self._answered):
            self._upstream.send_eof()
        patience = self._stall_seconds if self._reported else HOST_ENDS_SECONDS  # its hooks may take long
        self._host_timer = asyncio.get_running_loop().call_later(patience, self._give_up_on_host)

    def _may_have_whole_answer(self) -> bool:
        """Whether the client may have disconnected because it has the whole answer to its last request.

        For a push the report decides. For a read the git host decides: it receives an EOF, and if it owed nothing it exits with 0
        without further output. After an incomplete push no EOF is sent: half a pack might pass for a whole one.
        """
        untold = self._client.cut or self._upstream_paused or bool(self._withheld)
        if untold or self._upstream.pending or not self._record.bytes_out:
            return False
        if self._replay is not None and self._replay.follows and not self._replay.settled:
            return False
        return self._reported or not (self._pushes and self._record.bytes_in and self._owes_report)

    @property
    def _reported(self) -> bool:
        return self._report is not None and self._report.whole

    @property
    def _answered(self) -> bool:
        """Whether the client has the whole answer, whatever the exit will be: a push's report, or the answer to an LFS request."""
        transfers = self._record.command is not None and self._record.command.service == "git-lfs-transfer"
        requests = self._requests
        return self._reported or (transfers and requests is not None and requests.whole and self._tail.endswith(FLUSH_PKT))

    @property
    def _owes_report(self) -> bool:
        """Whether the client asked for a report, or may have; a push of nothing (a flush-pkt alone) has none."""
        asked = self._record.asked
        return not isinstance(asked, CommandList) or not asked.complete or (asked.kind == "push" and asked.wants_report)

    def _flush_if_nothing_requested(self) -> None:
        """The client got the refs and requests nothing: git exits with 0 after a flush-pkt, not always after an EOF."""
        command, record = self._record.command, self._record
        if command is not None and command.service in SPEAKS_FIRST and self._tail.endswith(FLUSH_PKT) and not record.bytes_in:
            self._upstream.send(FLUSH_PKT)

    # -- a client that owes the next request ---------------------------------------------------------------------------

    @property
    def owed(self) -> float | None:
        """For how many seconds the git host has waited for the client; None if the git host may owe output itself."""
        if self._done.done() or self._client_left is not None or self._upstream.pending or self._client.untaken or not self._clients_turn:
            return None
        if self._replay is not None and (self._replay.catching_up or self._replay.asks):
            return None
        return asyncio.get_running_loop().time() - self._turn_began

    @property
    def _clients_turn(self) -> bool:
        record, requests = self._record, self._requests
        if not record.bytes_in:
            archive = record.command is not None and record.command.service == "git-upload-archive"  # where the client sends first
            return archive or wants_more(self._tail)
        if self._pushes:  # no limit for the pack, nor for the git host's work on it
            return isinstance(record.asked, CommandList) and not record.asked.complete
        if requests is None:
            return False
        return not requests.whole or (not requests.done and wants_more(self._tail))

    def give_way(self) -> bool:
        """Called while other sessions wait for a connection. Ends the session if its client has been idle for too long; whether it did."""
        owed = self.owed
        return owed is not None and owed >= self._idle_busy_seconds and self.stop(idle_while_others_wait(owed))

    def _give_up_on_host(self) -> None:
        assert self._client_left is not None
        if self._answered and not self._done.done():
            self._upstream.abort()
            self._done.set_result(Exit())
        else:
            self.stop(self._client_left)

    # -- the git host's events -----------------------------------------------------------------------------------------

    def upstream_data(self, data: bytes | memoryview) -> None:
        if self._client_left is not None:
            if not self._reported:  # the answer was not complete
                self.stop(self._client_left)
            return
        if self._replay is not None and self._follow(self._replay, data):
            return
        if self._pushes and self._record.bytes_in:
            self._read_report(data)
        if data[-1] in TAIL_ENDS:
            self._note_answer_end(data)
        else:
            self._tail = b""
        if self._withheld is not None:
            self._hold_until_protocol(self._withheld, bytes(data))
        else:
            self._write(data)

    def _follow(self, replay: Replay, data: bytes | memoryview) -> bool:
        """Passes on what may leave for the client while another git host could still take over. False: all of it may."""
        said = replay.host_data(data)
        if not replay.follows:
            self._replay = None
            return False
        if replay.accepted and not replay.different:
            self._withheld = None  # stderr before its protocol; the client has had that of the lost git host
        for part in said:
            self._pass_on(part)
        self._count_kept(replay)
        if replay.over:
            self._follow_no_more(replay)
        return True

    def _count_kept(self, replay: Replay) -> None:
        if not self._client.keeps(replay.bytes_kept):
            replay.forget()
            self._client.keeps(replay.bytes_kept)

    def _follow_no_more(self, replay: Replay) -> None:
        if replay.different:
            self.stop(Lost(f"{self._record.address}: the git host that took over does not say what the lost one said"))
        else:
            self._release_followed()
        self._replay = None

    def _release_followed(self) -> None:
        if self._replay is not None and (held := self._replay.take_held()):
            self._pass_on(held)

    def _pass_on(self, data: bytes | memoryview) -> None:
        """As the end of `upstream_data`, which has no call for it because bulk passes there."""
        if data[-1] in TAIL_ENDS:
            self._note_answer_end(data)
        else:
            self._tail = b""
        if self._withheld is not None:
            self._hold_until_protocol(self._withheld, bytes(data))
        else:
            self._write(data)

    def _write(self, data: bytes | memoryview) -> None:
        self._record.bytes_out += len(data)
        client = self._client
        client.write(data)
        if client.full and not self._upstream_paused:
            self._upstream_paused = True
            self._upstream.pause()

    def _note_answer_end(self, data: bytes | memoryview) -> None:
        """`data` may end an answer (flush-pkt). One read in 128 of a pack is here by chance, as it ends with such a byte."""
        tail = bytes(data[-TAIL_BYTES:])
        self._tail = tail if len(tail) == TAIL_BYTES else (self._tail + tail)[-TAIL_BYTES:]
        self._turn_began = asyncio.get_running_loop().time()

    def _read_report(self, data: bytes | memoryview) -> None:
        if self._report is None:
            asked = self._record.asked
            self._report = Report(asked.capabilities if isinstance(asked, CommandList) else frozenset())
        self._report.feed(data)

    def upstream_stderr(self, data: memoryview) -> None:
        if self._client_left is not None or (self._replay is not None and self._replay.asks):
            return
        if self._withheld is None:
            self._write_stderr(self._words.stderr(bytes(data)))
        elif self._withheld.add_stderr(data):
            self._release(self._withheld)

    def _write_stderr(self, data: bytes) -> None:
        if not data:
            return
        self._record.bytes_out += len(data)
        client = self._client
        client.write_stderr(data)
        if client.full and not self._upstream_paused:
            self._upstream_paused = True
            self._upstream.pause()

    def _hold_until_protocol(self, withheld: Withheld, data: bytes) -> None:
        begun = withheld.add_stdout(data)
        spoke = self._record.bytes_in > 0 and self._service in SPEAKS_FIRST  # git's client sends nothing before the host's first packet
        if begun or spoke:
            self._release(withheld)

    def _release(self, withheld: Withheld) -> None:
        """What was held back is no known refusal."""
        self._withheld = None
        stdout, stderr = withheld.release()
        if stdout:
            self._write(stdout)
        self._write_stderr(stderr)

    def upstream_unread(self, count: int) -> bool:
        return self._client.upstream_unread(count)

    def upstream_accepted(self) -> None:
        self._accepted += 1
        if self._client_paused and self._upstream.pending <= CLIENT_TO_UPSTREAM_LOW_BYTES:
            self._client_paused = False
            self._client.resume_reading()

    def upstream_eof(self) -> None:
        self._host_eof = True
        if self._client_left is not None:
            return
        if self._replay is not None and self._replay.holds_eof:
            return
        if self._withheld is not None and self._withheld.refusal() is not None:
            return  # a refusal: `upstream_ended` tells the client
        if self._interceptor is not None and self._interceptor.has_words:
            return
        self._flush()
        self._ended_output = True
        self._client.write_eof()

    def _flush(self) -> None:
        self._release_followed()
        if self._withheld is not None:
            self._release(self._withheld)
        self._write_stderr(self._words.rest())

    def upstream_ended(self, how: Exit | RelayError) -> None:
        if self._done.done():
            return
        if self._client_left is not None:
            if self._answered or (isinstance(how, Exit) and how.status == 0):
                self._done.set_result(Exit())
            else:
                self._done.set_exception(self._client_left)
            return
        if self._parks(how):
            return
        if self._withheld is not None and isinstance(how, Exit) and how.status and (refusal := self._withheld.refusal()) is not None:
            self._done.set_exception(refusal)
            return
        if self._replay is not None and self._goes_on(self._replay, how):
            return
        if not self._ended_output:
            self._flush()
        if self._interceptor is not None and self._interceptor.host_ended():
            return
        if isinstance(how, Exit):
            self._done.set_result(how)
        else:
            self._done.set_exception(how)

    def host_hangs(self, error: NoExit) -> None:
        """The git host has ended its output and does not exit; another connection may go on, as after a loss."""
        if self._done.done():
            return
        self._upstream.abort()
        if self._parks(error):
            return
        if self._client_left is not None or self._replay is None or not self._goes_on(self._replay, error):
            self.stop(error)

    def _parks(self, how: Exit | RelayError) -> bool:
        """Whether the git host's end leads to none other, as the session needs no git host for now."""
        if self._replay is None or not self._replay.parks(how):
            return False
        self.moved = True
        self._done.set_result(Exit())
        return True

    def _goes_on(self, replay: Replay, how: Exit | RelayError) -> bool:
        """Whether the git host's end is not the session's: another connection goes on, or the client has all that it asked for."""
        if replay.completes(how):
            self._flush()
            self._done.set_result(Exit(status=0))
            return True
        # what is held back of the lost host's is not the client's yet, unless its stderr may be why there is no protocol
        untouched = self.untouched and (replay.follows or not self._withheld)
        self.moved = replay.moves(how, untouched)
        if self.moved:
            self._write_stderr(self._words.rest())
            self._done.set_exception(lost(how))
        return self.moved

    # -- for StallWatch -----------------------------------------------------------------------------------------------

    def progress(self) -> tuple[tuple[int, int] | None, ...]:
        """Progress so far, each None where nothing is awaited: to the client, to the git host, and of a host that has yet to exit.

        A host that has ended its output owes its exit; the input that it still takes is progress.
        """
        waiting = self._client.waiting
        to_client = (self._record.bytes_out, waiting) if waiting else None
        to_upstream = (self._accepted, 0) if self._upstream.pending else None
        to_exit = (self._accepted, 0) if self._host_eof else None
        return to_client, to_upstream, to_exit


def idle_while_others_wait(seconds: float) -> ClientIdle:
    return ClientIdle(
        f"the client owed the git host a word for {seconds:.1f} s, and others stand in line for its connection",
        message="relay: the session was idle while others waited for the git host, try again",
        reason="client_idle_busy",
    )
