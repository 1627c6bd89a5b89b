"""Interceptors: `RequestReader` reads the first data of a client along, `PushGate` holds it back until it knows whether the push may pass.

Both leave the splice as soon as they know enough; later data does not pass through them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from relay.errors import ReadOnly, RefDenied, Refused
from relay.events import Asked, SessionRecord
from relay.git.fetch_request import FetchRequest
from relay.git.pktline import FLUSH_PKT
from relay.git.push_commands import BadCommands, CommandList, TooLong, report
from relay.git.refs import ATOMIC, TOO_COSTLY, WITH_ANOTHER, refusals
from relay.model import Command, Exit, Grant, RefRule, RefUpdate
from relay.replay import ToHost
from relay.splice import Client, Splice
from relay.text import printable

UPDATES_READ = 64  # stored of a push: more than fit into an audit line
HOST_SECONDS = 10.0  # for git-receive-pack to exit after it got an empty command list
DRAIN_MOST_BYTES = 8 << 30  # of a refused push's pack, which a client sends before it reads the report
DETAIL_REFS = 3  # refused refs that the log names


def intercept(
    command: Command, grant: Grant, record: SessionRecord, stall_seconds: float, closed: ReadOnly | None = None
) -> RequestReader | PushGate | None:
    """The interceptor for this session, if it has any. `record.asked` is what it parses. `closed`: why no push is taken."""
    asked_version = 1 if command.protocol is not None and "version=1" in command.protocol.split(":") else 0
    if command.service == "git-receive-pack":
        if grant.refs or closed is not None:
            commands = record.asked = CommandList(asked_version)
            return PushGate(commands, grant.refs, stall_seconds, ignore_case=command.folded, closed=closed)
        commands = record.asked = CommandList(asked_version, keep=UPDATES_READ)
        return RequestReader(commands)
    if command.service == "git-upload-pack":
        record.asked = request = FetchRequest(asked_version)
        return RequestReader(request)
    return None


class Parser(Asked, Protocol):
    """Parses the first data of a client."""

    def feed(self, data: bytes) -> bool:
        """Whether it needs no more data. Raises BadCommands for data that it cannot parse."""


class RequestReader:
    """Reads along: passes all data on first, then parses it."""

    refusal: Refused | None = None
    has_words = False

    def __init__(self, parser: Parser) -> None:
        self._parser = parser

    def attach(self, splice: Splice, client: Client, upstream: ToHost) -> None:
        self._splice = splice
        self._upstream = upstream

    @property
    def pending(self) -> int:
        return self._upstream.pending

    def send(self, data: bytes) -> None:
        self._upstream.send(data)
        try:
            known = self._parser.feed(data)
        except BadCommands:
            known = True  # the git host will answer it
        if known:
            self._splice.step_aside()

    def send_eof(self) -> None:
        self._upstream.send_eof()

    def host_ended(self) -> bool:
        return False

    def client_gone(self) -> bool:
        return False

    def close(self) -> None:
        pass


class PushGate:
    """Holds a push back until its whole command list is parsed, then passes it on, or refuses it as git-receive-pack would.

    With `closed` every ref is refused with its text, whatever the rules; a client that only lists the refs is served.

    A refused push has three steps:
    1. The git host gets an empty command list (a flush-pkt), and exits.
    2. The client gets the report. It reads it only after it has sent its pack, which is read and dropped.
    3. When the git host has ended and the client is done, the session ends with `refusal`.
    """

    def __init__(
        self,
        commands: CommandList,
        rules: Sequence[RefRule],
        stall_seconds: float,
        *,
        ignore_case: bool = False,
        closed: ReadOnly | None = None,
    ) -> None:
        self.refusal: Refused | None = None
        self._closed = closed
        self._commands = commands
        self._rules = rules
        self._ignore_case = ignore_case
        self._stall_seconds = stall_seconds
        self._held = bytearray()  # joined, so that a client that sends single bytes takes up no more memory
        self._answer = b""
        self._host_ended = False
        self._client_done = False
        self._drained = 0
        self._drained_before = 0  # `_drained` when the stall timer last fired
        self._timer: asyncio.TimerHandle | None = None

    def attach(self, splice: Splice, client: Client, upstream: ToHost) -> None:
        self._splice = splice
        self._client = client
        self._upstream = upstream

    @property
    def has_words(self) -> bool:
        """True: until it leaves the splice it may send the client a report."""
        return True

    @property
    def pending(self) -> int:
        return self._upstream.pending

    # -- from the client -------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        if self.refusal is not None:
            self._drained += len(data)
            if self._drained > DRAIN_MOST_BYTES:
                self._client_done = True
                self._end_if_both_done()
            return
        self._held += data
        try:
            complete = self._commands.feed(data)
        except TooLong as error:
            long = RefDenied(f"command list: {error}", message=f"{RefDenied.message}: too many refs", reason="ref_too_many")
            self._refuse(self._closed or long)
        except BadCommands as error:
            self._refuse(self._closed or _malformed(str(error)))
        else:
            if complete:
                self._decide()

    def send_eof(self) -> None:
        if self.refusal is not None:
            self._client_done = True
            self._end_if_both_done()
        elif self._commands.begun:
            self._refuse(self._closed or _malformed("it ends in the middle"))
        else:
            self._upstream.send_eof()

    def client_gone(self) -> bool:
        """Whether this is no fault: after a refusal the client may disconnect as soon as it has read the report."""
        if self.refusal is None:
            return False
        self._client_done = True
        self._abort_host()
        self._end_if_both_done()
        return True

    # -- the decision ----------------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        commands = self._commands
        updates = list(commands.updates)
        del commands.updates[UPDATES_READ:]  # the rest is kept for the audit until the session ends
        if self._closed is not None:
            refused = [(update, self._closed.text) for update in updates]
        else:
            refused = refusals(updates, self._rules, b"atomic" in commands.capabilities, ignore_case=self._ignore_case)
        if not refused:
            held = bytes(self._held)
            self._held.clear()
            self._upstream.send(held)
            self._splice.step_aside()
            return
        denied = self._closed or _denied(refused)
        answer = report(refused, commands.capabilities)
        if answer is not None:
            denied.message, denied.exit_status = "", 0
        # no pack follows if all commands delete; after a pack git ends its output
        self._refuse(denied, answer or b"", packless=all(one.change == "delete" for one in updates))

    def _refuse(self, refusal: Refused, answer: bytes = b"", packless: bool = False) -> None:
        self.refusal = refusal
        self._answer = answer
        self._held.clear()
        self._client_done = packless or not answer
        self._upstream.send(FLUSH_PKT)
        self._timer = asyncio.get_running_loop().call_later(HOST_SECONDS, self._host_timed_out)

    # -- the end ---------------------------------------------------------------------------------------------------------

    def host_ended(self) -> bool:
        """The git host has ended. Whether the session goes on without it."""
        if self.refusal is None:
            return False
        self._host_ended = True
        if self._answer:
            self._client.write(self._answer)
            self._answer = b""
        self._end_if_both_done()
        return True

    def _host_timed_out(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._stall_seconds, self._check_stall)
        self._abort_host()

    def _check_stall(self) -> None:
        """Idle for stall_seconds: assume the client has read the report."""
        if self._drained == self._drained_before:
            self._client_done = True
            self._end_if_both_done()
        else:
            self._drained_before = self._drained
            self._timer = asyncio.get_running_loop().call_later(self._stall_seconds, self._check_stall)

    def _abort_host(self) -> None:
        if not self._host_ended:
            self._upstream.abort()
            self.host_ended()

    def _end_if_both_done(self) -> None:
        if self._host_ended and self._client_done:
            self._splice.end(Exit(status=0))

    def close(self) -> None:
        self._held.clear()
        if self._timer is not None:
            self._timer.cancel()


def _malformed(detail: str) -> RefDenied:
    error = RefDenied(f"command list: {detail}", message=f"{RefDenied.message}: it cannot be read", reason="ref_malformed")
    error.fault = "client"
    return error


def _denied(refused: list[tuple[RefUpdate, str]]) -> RefDenied:
    costly = any(reason == TOO_COSTLY for _, reason in refused)
    return RefDenied(_detail(refused), reason="ref_too_many") if costly else RefDenied(_detail(refused), reason="ref_denied")


def _detail(refused: list[tuple[RefUpdate, str]]) -> str:
    guilty = [(update, reason) for update, reason in refused if reason not in (ATOMIC, WITH_ANOTHER)]
    told = [f"{update.change} {printable(update.ref)}: {reason}" for update, reason in guilty[:DETAIL_REFS]]
    if len(guilty) > DETAIL_REFS:
        told.append(f"and {len(guilty) - DETAIL_REFS} more")
    return ", ".join(told)
