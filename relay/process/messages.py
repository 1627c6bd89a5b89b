"""The messages between the supervisor and its workers, and between the operators' commands and the supervisor: framed msgpack on Unix
sockets."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec

from relay.config import Config
from relay.observe.snapshot import Untaken
from relay.process.switches import Action
from relay.upstream.colleagues import HostNews
from relay.upstream.switches import UpstreamSwitches

FRAME_MAX_BYTES = 32 << 20  # a snapshot of 10,000 sessions is about 3 MB
_LENGTH_BYTES = 4

WorkerQuestion = Literal["ready", "metrics", "sessions", "kill", "kill_identity", "upstreams"]


class LiveSession(msgspec.Struct, frozen=True, array_like=True):
    """A live session, as `relay sessions` lists it."""

    id: str
    identity: str
    address: str
    service: str
    repository: str
    upstream: str
    host: str  # address of the git host; empty before one is leased
    seconds: float
    bytes_in: int
    bytes_out: int
    worker: int  # pid


class Sessions(msgspec.Struct, frozen=True, array_like=True):
    """The answer to `relay sessions`."""

    lines: list[LiveSession]
    silent: int  # number of workers that did not answer; their sessions are missing
    untaken: list[Untaken] = []


class AddressState(msgspec.Struct, frozen=True, array_like=True):
    """The connections of one worker, or of all, to one address of an upstream."""

    address: str
    up: bool | None  # None: nothing is known yet
    leased: int
    idle: int
    dialing: int
    draining_since: float = 0.0  # seconds since the epoch, known to the supervisor; 0: it is not draining
    draining_by: str = ""


class UpstreamState(msgspec.Struct, frozen=True, array_like=True):
    """One upstream, as one worker sees it, or, summed by the supervisor, as `relay upstreams` shows it."""

    name: str
    waiting: int  # sessions without a connection
    addresses: list[AddressState]
    # known to the supervisor
    paused_since: float = 0.0  # seconds since the epoch; 0: it is not paused
    paused_by: str = ""
    frozen_since: float = 0.0
    frozen_by: str = ""
    frozen: str = ""  # the text that clients read

    @property
    def leased(self) -> int:
        return sum(one.leased for one in self.addresses)

    @property
    def idle(self) -> int:
        return sum(one.idle for one in self.addresses)

    @property
    def dialing(self) -> int:
        return sum(one.dialing for one in self.addresses)


class Upstreams(msgspec.Struct, frozen=True, array_like=True):
    """The answer to `relay upstreams`."""

    lines: list[UpstreamState]
    silent: int  # number of workers that did not answer; what they have is missing


class Switch(msgspec.Struct, frozen=True, tag=True):
    """An operator's command: switch an upstream. Its Answer, a `SwitchAnswer`, has the same number."""

    number: int
    action: Action
    upstream: str
    argument: str = ""  # the address of drain and ready, the text of freeze


class SwitchAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What came of a Switch."""

    problem: str = ""  # why nothing was switched, in one line
    changed: bool = True  # False: it was so already
    late: list[int] = []  # pids of the workers that have not taken it


class PacksRemoved(msgspec.Struct, frozen=True, tag=True):
    """An operator's command has removed answers from the folder of [packs]; its Answer is true, once that is logged."""

    number: int
    count: int
    bytes: int
    repository: str = ""  # empty: of all


class SetSwitches(msgspec.Struct, frozen=True, tag=True):
    """Supervisor: these are all switches that are on. An Answer with the same number says that they are in force."""

    number: int
    switches: dict[str, UpstreamSwitches]


class Start(msgspec.Struct, frozen=True, tag=True):
    """Supervisor, first message: serve this configuration, even if the file has changed since, with these switches.

    `first`: you log in to git hosts at once. Of workers that start together only one is first; the others wait for its news.
    """

    config: Config
    first: bool = True
    switches: dict[str, UpstreamSwitches] = {}


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Worker: I accept connections, and have opened idle connections to git hosts."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Worker: I cannot serve; `problems` has one line each."""

    problems: list[str]


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Supervisor: accept no more connections, and end within `seconds`."""

    seconds: float


class Drained(msgspec.Struct, frozen=True, tag=True):
    """Worker, last message: I have drained and had to end `cut` sessions; `metrics` is my last snapshot."""

    cut: int
    metrics: msgspec.Raw


class Reopen(msgspec.Struct, frozen=True, tag=True):
    """Supervisor: reopen the audit file, it was rotated."""


class Probe(msgspec.Struct, frozen=True, tag=True):
    """Supervisor: whether you are the worker that probes git hosts whose health no worker knows."""

    yes: bool


class News(msgspec.Struct, frozen=True, tag=True):
    """Worker: what I learnt about a git host; the supervisor forwards it to the other workers."""

    host: HostNews


class AskWorker(msgspec.Struct, frozen=True, tag=True):
    """A question; its Answer has the same number."""

    number: int
    what: WorkerQuestion
    argument: str = ""  # of kill a session's id, of kill_identity an identity
    operator: str = ""  # who asks, when the supervisor passes it on


class Answer(msgspec.Struct, frozen=True, tag=True):
    number: int
    body: msgspec.Raw


Message = Start | Ready | Failed | Drain | Drained | Reopen | Probe | News | SetSwitches | Switch | PacksRemoved | AskWorker | Answer

_decode = msgspec.msgpack.Decoder(Message).decode
encode = msgspec.msgpack.encode


async def read(reader: asyncio.StreamReader) -> Message | None:
    """The next message, None at EOF. Raises ValueError for a frame that is too long or not a message."""
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        if length > FRAME_MAX_BYTES:
            raise ValueError(f"a control frame of {length} bytes, at most {FRAME_MAX_BYTES} are allowed")
        message: Message = _decode(await reader.readexactly(length))
        return message
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a control message: {error}") from None


def write(writer: asyncio.StreamWriter, message: Message) -> None:
    body = encode(message)
    writer.write(len(body).to_bytes(_LENGTH_BYTES, "big") + body)


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(encode(value))
