"""What a session needs so that another connection to a git host can go on where a lost one stopped, unnoticed by the client.

A fetch by protocol version 2 is followed (relay.git.conversation) until its pack begins: until then its requests can be asked again, and
what the client has of an answer can be compared with what the next git host says. Every other session can only start over, as long as
nothing was carried. Whether and when another connection is leased is decided by Moves (relay.upstream.attempts).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from relay.errors import Lost, NoExit, RelayError
from relay.git.conversation import ClientState, Conversation, HostState
from relay.model import Command, Exit


class Stage(NamedTuple):
    """How far a session is; a session is replayed once at each stage after the first, which is None."""

    answers: int  # that the client has
    asked: bool  # whether it waits for another


class Intake(Protocol):
    """What takes the client's bytes: an interceptor (relay.intercept) until it steps aside, then the git host, or who stands before it."""

    @property
    def pending(self) -> int: ...

    def send(self, data: bytes) -> None: ...

    def send_eof(self) -> None: ...


class ToHost(Intake, Protocol):
    """The git host's side of a session's command."""

    def abort(self) -> None:
        """Closes the connection, without an EOF."""


class Moves(Protocol):
    """Decides whether a session goes on with another connection."""

    def permit(self, stage: Stage | None, error: RelayError) -> bool:
        """The git host is lost. True: the session gets another connection, and another Splice. `stage` is None if nothing was carried."""

    def caught_up(self) -> None:
        """The new git host has said all that the client had from the lost one: the session goes on."""

    def differed(self) -> None:
        """It says something else."""

    def completed(self, error: RelayError) -> None:
        """The git host was lost (`error`) after all had been said: the session needs no other."""


def follows(command: Command) -> bool:
    """Whether the client asked for a fetch by protocol version 2; the git host may answer in another version."""
    return command.service == "git-upload-pack" and command.protocol is not None and "version=2" in command.protocol.split(":")


class Replay:
    """One session over all connections that serve it, one after another; `intake` and `begin` are called for each."""

    parked = False  # whether the session goes on without the connection that it had; so it is for relay.packs.desk alone
    asks = False  # whether the relay has a question of its own for the git host: nothing of the answer is the client's; as above

    def __init__(self, command: Command, moves: Moves, keep_refs: bool = False) -> None:
        self._moves = moves
        self._conversation = Conversation(keep_refs) if follows(command) else None
        self._answers = 0
        self._begun = False
        self._reopened = False  # a new git host must repeat what a lost one said
        self._client_ended = False
        self.catching_up = False  # a new git host has not yet said what the client has already
        self.over = False  # nothing can be replayed any more: the Splice needs this no longer

    def intake(self, upstream: ToHost, leave: Callable[[], None]) -> ToHost:
        """What takes the client's bytes for a connection that begins to serve the session. `leave` gives the connection up."""
        return upstream

    def begin(self) -> bytes:
        """A connection begins to serve the session: returns what its git host is to be asked first."""
        asked = self._reopen()
        return asked + self._conversation.partial if self.catching_up and self._conversation is not None else asked

    def _reopen(self) -> bytes:
        """What a lost git host was asked, and has not answered."""
        self.catching_up, self._begun = self._begun, True
        if not self.catching_up or self._conversation is None:
            return b""
        asked = self._conversation.reopen()
        self._reopened = self._conversation.host is HostState.REOPENING
        return asked

    # -- what is said --------------------------------------------------------------------------------------------------------

    def client_data(self, data: bytes) -> None:
        """`data` goes to the git host, whatever it is."""
        if self._conversation is not None:
            self._conversation.client_data(data)
            self._look(self._conversation)

    def client_eof(self) -> None:
        self._client_ended = True

    def host_data(self, data: bytes | memoryview) -> Sequence[bytes | memoryview]:
        """What may leave for the client now."""
        conversation = self._conversation
        if conversation is None:
            self._caught_up()
            self.over = True
            return (data,)
        pieces = conversation.host_data(data)
        self._answers += sum(piece.last for piece in pieces)
        self._look(conversation)
        return [piece.data for piece in pieces]

    def take_held(self) -> bytes:
        """What the git host sent and is held back: for the client, when the session ends here."""
        return self._conversation.take_held() if self._conversation is not None else b""

    @property
    def later(self) -> bytes:
        """What the client has sent and nobody has read yet; only relay.packs.desk keeps any."""
        return b""

    @property
    def bytes_kept(self) -> int:
        return self._conversation.bytes_kept if self._conversation is not None and not self.over else 0

    def forget(self) -> None:
        """Memory is short: drops what is kept of the present answer, which then cannot be replayed."""
        if self._conversation is not None:
            self._conversation.forget()

    def _look(self, conversation: Conversation) -> None:
        if conversation.host is HostState.DIFFERENT:
            if not self.over:
                self._moves.differed()
            self.over = True
            return
        if self.catching_up and not conversation.repeating and conversation.host is not HostState.OPENING:
            self._caught_up()
        self.over = conversation.aside

    def _caught_up(self) -> None:
        if self.catching_up:
            self.catching_up = False
            self._moves.caught_up()

    # -- what follows from it ------------------------------------------------------------------------------------------------

    @property
    def follows(self) -> bool:
        """Whether it is a fetch that is followed until its pack begins."""
        return self._conversation is not None

    @property
    def different(self) -> bool:
        """Whether the new git host does not say what the lost one said: the session ends as if the host were lost."""
        return self._conversation is not None and self._conversation.host is HostState.DIFFERENT

    @property
    def accepted(self) -> bool:
        """Whether this git host has replaced a lost one whose advertisement the client has."""
        return self._reopened and self._conversation is not None and self._conversation.host is not HostState.REOPENING

    @property
    def settled(self) -> bool:
        """Whether the client has the whole answer to each of its requests."""
        return self._conversation is not None and self._conversation.settled

    @property
    def whole(self) -> bool:
        """Whether that is so, and the client has ended its requests: the git host has nothing more to say."""
        conversation = self._conversation
        return conversation is not None and self.settled and (self._client_ended or conversation.client is ClientState.FINISHED)

    @property
    def holds_eof(self) -> bool:
        """Whether the git host's EOF must not be passed on: when its end is unclean, another git host goes on."""
        return self._conversation is not None and not self.whole

    def completes(self, how: Exit | RelayError) -> bool:
        """Whether the session was whole when the git host was lost: only its exit status is missing, and that can only have been 0."""
        if not self.whole or not unclean(how):
            return False
        self._moves.completed(lost(how))
        return True

    def parks(self, how: Exit | RelayError) -> bool:
        """The git host has ended. Whether the session goes on without one, whatever the end."""
        return False

    def moves(self, how: Exit | RelayError, untouched: bool) -> bool:
        """The git host has ended. Whether the session goes on with another connection. `untouched`: nothing was carried or is held."""
        conversation = self._conversation
        if conversation is None:
            return untouched and isinstance(how, Lost) and self._moves.permit(None, how)
        if not conversation.replayable or not unclean(how):
            return False
        stage = None if untouched else Stage(self._answers, conversation.request is not None)
        return self._moves.permit(stage, lost(how))


def unclean(how: Exit | RelayError) -> bool:
    """Whether the git host's end was a fault. An exit status is an answer; so are an ERR packet and sideband 3, which come before it."""
    return how.signal is not None if isinstance(how, Exit) else isinstance(how, Lost | NoExit)


def lost(how: Exit | RelayError) -> RelayError:
    """An unclean end as an error."""
    return how if isinstance(how, RelayError) else Lost(f"the command was ended by signal {how.signal}")
