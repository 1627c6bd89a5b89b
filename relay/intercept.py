"""What stands between a client and its git host while the first of what the client says goes by: a reader, or a gate that may stay shut.

Both step out of the way as soon as they know enough: of what follows not a byte passes through them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from relay.errors import RefDenied
from relay.events import Asked, SessionRecord
from relay.git.fetch_request import FetchRequest
from relay.git.pktline import FLUSH_PKT
from relay.git.push_commands import BadCommands, CommandList, TooLong, report
from relay.git.refs import ATOMIC, WITH_ANOTHER, refusals
from relay.model import Command, Exit, Grant, RefRule, RefUpdate
from relay.splice import Client, Splice, UpstreamCommand
from relay.text import printable

UPDATES_READ = 64  # that are remembered of a push: more than an audit line holds
HOST_SECONDS = 10.0  # for git-receive-pack to end when it is told that nothing is pushed
DRAIN_MOST_BYTES = 8 << 30  # of a pack that a client sends before it reads that its push was refused
DETAIL_REFS = 3  # refused refs that the log names


def intercept(command: Command, grant: Grant, record: SessionRecord, stall_seconds: float) -> RequestReader | PushGate | None:
    """Who reads along in this session; `record.asked` becomes what they learn."""
    asked_version = 1 if command.protocol is not None and "version=1" in command.protocol.split(":") else 0
    if command.service == "git-receive-pack":
        if grant.refs:
            commands = record.asked = CommandList(asked_version)
            return PushGate(commands, grant.refs, stall_seconds, ignore_case=command.folded)
        commands = record.asked = CommandList(asked_version, keep=UPDATES_READ)
        return RequestReader(commands)
    if command.service == "git-upload-pack":
        record.asked = request = FetchRequest(asked_version)
        return RequestReader(request)
    return None


class Parser(Asked, Protocol):
    """Learns from what is fed to it."""

    def feed(self, data: bytes) -> bool:
        """Whether it knows all that it will. Raises BadCommands when it never will."""


class RequestReader:
    """Reads along; whatever it reads is passed on first."""

    refusal: RefDenied | None = None
    has_words = False

    def __init__(self, parser: Parser) -> None:
        self._parser = parser

    def attach(self, splice: Splice, client: Client, upstream: UpstreamCommand) -> None:
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
            known = True  # git will find the words for it
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
    """Holds a push back until its whole command list is read, then lets it pass, or refuses it as git-receive-pack would.

    A refused push: the git host is told that nothing is pushed, and ends; the client gets the report, which it reads when it has sent
    its pack: until then that is read and thrown away. `refusal` is how the session ends.
    """

    def __init__(self, commands: CommandList, rules: Sequence[RefRule], stall_seconds: float, *, ignore_case: bool = False) -> None:
        self.refusal: RefDenied | None = None
        self._commands = commands
        self._rules = rules
        self._ignore_case = ignore_case
        self._stall_seconds = stall_seconds
        self._held = bytearray()  # a client that sends it byte by byte gets no more room for it
        self._answer = b""
        self._host_over = False
        self._client_over = False
        self._drained = 0
        self._drained_before = 0  # at the timer's last look
        self._timer: asyncio.TimerHandle | None = None

    def attach(self, splice: Splice, client: Client, upstream: UpstreamCommand) -> None:
        self._splice = splice
        self._client = client
        self._upstream = upstream

    @property
    def has_words(self) -> bool:
        """Until it steps aside it may have something to tell the client."""
        return True

    @property
    def pending(self) -> int:
        return self._upstream.pending

    # -- the client says -------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        if self.refusal is not None:
            self._drained += len(data)
            if self._drained > DRAIN_MOST_BYTES:
                self._client_over = True
                self._settle()
            return
        self._held += data
        try:
            complete = self._commands.feed(data)
        except TooLong as error:
            self._refuse(RefDenied(f"command list: {error}", message=f"{RefDenied.message}: too many refs", reason="ref_too_many"))
        except BadCommands as error:
            self._refuse(_malformed(str(error)))
        else:
            if complete:
                self._decide()

    def send_eof(self) -> None:
        if self.refusal is not None:
            self._client_over = True
            self._settle()
        elif self._commands.begun:
            self._refuse(_malformed("it ends in the middle"))
        else:
            self._upstream.send_eof()

    def client_gone(self) -> bool:
        """Whether the session's end is known all the same: who has read the report may go."""
        if self.refusal is None:
            return False
        self._client_over = True
        self._end_host()
        self._settle()
        return True

    # -- the decision ----------------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        commands = self._commands
        updates = list(commands.updates)
        del commands.updates[UPDATES_READ:]  # what is left is for the audit, and stays as long as the session
        refused = refusals(updates, self._rules, b"atomic" in commands.capabilities, ignore_case=self._ignore_case)
        if not refused:
            held = bytes(self._held)
            self._held.clear()
            self._upstream.send(held)
            self._splice.step_aside()
            return
        denied = RefDenied(_detail(refused), reason="ref_denied")
        answer = report(refused, commands.capabilities)
        if answer is not None:
            denied.message, denied.exit_status = "", 0
        # a pack follows unless all that is asked for is to delete, and after a pack git ends its output
        self._refuse(denied, answer or b"", packless=all(one.change == "delete" for one in updates))

    def _refuse(self, refusal: RefDenied, answer: bytes = b"", packless: bool = False) -> None:
        self.refusal = refusal
        self._answer = answer
        self._held.clear()
        self._client_over = packless or not answer
        self._upstream.send(FLUSH_PKT)
        self._timer = asyncio.get_running_loop().call_later(HOST_SECONDS, self._host_is_late)

    # -- the end ---------------------------------------------------------------------------------------------------------

    def host_ended(self) -> bool:
        """The git host has said its last; whether the session goes on without it."""
        if self.refusal is None:
            return False
        self._host_over = True
        if self._answer:
            self._client.write(self._answer)
            self._answer = b""
        self._settle()
        return True

    def _host_is_late(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._stall_seconds, self._look)
        self._end_host()

    def _look(self) -> None:
        """A client that sends nothing for long, and neither ends its input nor goes, has read its report long ago."""
        if self._drained == self._drained_before:
            self._client_over = True
            self._settle()
        else:
            self._drained_before = self._drained
            self._timer = asyncio.get_running_loop().call_later(self._stall_seconds, self._look)

    def _end_host(self) -> None:
        if not self._host_over:
            self._upstream.abort()
            self.host_ended()

    def _settle(self) -> None:
        if self._host_over and self._client_over:
            self._splice.end(Exit(status=0))

    def close(self) -> None:
        self._held.clear()
        if self._timer is not None:
            self._timer.cancel()


def _malformed(detail: str) -> RefDenied:
    error = RefDenied(f"command list: {detail}", message=f"{RefDenied.message}: it cannot be read", reason="ref_malformed")
    error.fault = "client"
    return error


def _detail(refused: list[tuple[RefUpdate, str]]) -> str:
    guilty = [(update, reason) for update, reason in refused if reason not in (ATOMIC, WITH_ANOTHER)]
    told = [f"{update.change} {printable(update.ref)}: {reason}" for update, reason in guilty[:DETAIL_REFS]]
    if len(guilty) > DETAIL_REFS:
        told.append(f"and {len(guilty) - DETAIL_REFS} more")
    return ", ".join(told)
