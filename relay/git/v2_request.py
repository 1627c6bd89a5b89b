"""One request of protocol version 2 (gitprotocol-v2), and what decides whether two fetch requests have the same answer; pure.

    request = command-list delim-pkt arguments flush-pkt, or a flush-pkt alone: the client asks for nothing more

`Request` is one whole request. `Fetch` is a fetch request in normal form, for a cache of packs: whether its answer may be kept at all, and
the key under which. `Refs` is the answer to ls-refs, for the same cache.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from relay.git.pktline import FLUSH_PKT, LENGTH_DIGITS, Packet, Special, packet_length, pkt_line

DELIM_PKT: Final = b"0001"
COMMANDS: Final = frozenset({b"ls-refs", b"fetch", b"object-info", b"bundle-uri"})  # each answer of theirs ends with a flush-pkt
OID_DIGITS: Final = {b"sha1": 40, b"sha256": 64}
TAGS: Final = b"refs/tags/"

_HEX: Final = re.compile(rb"[0-9a-f]+", re.IGNORECASE)

# The arguments of fetch that depend on nothing but the objects that are asked for. A value is matched whole; None: a word without a value.
# A filter that names a ref or a path in it (sparse:oid=main:spec) gives another pack when the ref moves, so it is not among them.
_FILTER: Final = r"(?:blob:none|blob:limit=[0-9]+[kmg]?|tree:[0-9]+|object:type=(?:commit|tree|blob|tag))"
_VALUES: Final[dict[bytes, re.Pattern[bytes] | None]] = {
    b"thin-pack": None,
    b"ofs-delta": None,
    b"include-tag": None,
    b"deepen-relative": None,
    b"deepen": re.compile(rb"[1-9][0-9]{0,9}"),
    b"deepen-since": re.compile(rb"[0-9]{1,20}"),
    b"filter": re.compile(_FILTER.encode()),
}
_SILENT_CAPABILITIES: Final = frozenset({b"agent", b"session-id"})  # they change nothing of the answer

NotKept = Literal["", "no_done", "have", "shallow", "no_want", "repeated", "not_known"]


class BadRequest(ValueError):
    """A whole request that is not of the form that gitprotocol-v2 gives, or whose command has no known answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, from its first packet to its flush-pkt; `command` is empty for a flush-pkt alone, which has no answer."""

    raw: bytes
    command: bytes = b""
    capabilities: tuple[bytes, ...] = ()  # without `command=`, in the client's order and without a newline at the end; arguments too
    arguments: tuple[bytes, ...] = ()

    @property
    def sideband_all(self) -> bool:
        """Whether each packet of the answer begins with its sideband, not only those of the packfile section."""
        return self.command == b"fetch" and b"sideband-all" in self.arguments


def read_request(raw: bytes) -> Request:
    """`raw` is one request up to its flush-pkt. Raises BadRequest."""
    if raw == FLUSH_PKT:
        return Request(raw)
    keys: list[bytes] = []
    arguments: list[bytes] = []
    section = keys
    for packet in _packets(raw):
        if isinstance(packet, bytes):
            section.append(packet.removesuffix(b"\n"))
        elif packet is Special.DELIM and section is keys:
            section = arguments
        elif packet is not Special.FLUSH:
            raise BadRequest(f"a {packet.name.lower()} packet where none belongs")
    commands = [key.removeprefix(b"command=") for key in keys if key.startswith(b"command=")]
    if len(commands) != 1:
        raise BadRequest(f"{len(commands)} commands in one request")
    command = commands[0]
    if command not in COMMANDS:
        raise BadRequest("a command that is not known")
    if command == b"fetch" and not any(one.startswith((b"want ", b"want-ref ")) or one == b"wait-for-done" for one in arguments):
        raise BadRequest("a fetch without wants, to which git-upload-pack gives no answer")
    return Request(raw, command, tuple(key for key in keys if not key.startswith(b"command=")), tuple(arguments))


def _packets(raw: bytes) -> Iterator[Packet]:
    position = 0
    while position < len(raw):
        length = packet_length(raw, position)
        if length is None or position + length > len(raw):
            raise BadRequest("bytes that are no packet")
        yield raw[position + LENGTH_DIGITS : position + length] if length >= LENGTH_DIGITS else Special(length)
        position += max(length, LENGTH_DIGITS)


@dataclass(frozen=True, slots=True)
class Fetch:
    """A fetch request in normal form. `not_kept` is empty when its answer depends only on the objects of the repository."""

    wants: frozenset[bytes]  # hexadecimal, lower case
    arguments: tuple[bytes, ...]  # all others but done, have, shallow and no-progress; sorted, each once
    object_format: bytes
    haves: int
    shallows: int
    done: bool
    not_kept: NotKept

    @property
    def include_tag(self) -> bool:
        """Whether the pack may hold annotated tags that were not asked for: then the tags of the repository decide what is in it."""
        return b"include-tag" in self.arguments

    def key(self, upstream: str, path: str, identity: str = "", tags: bytes | None = None) -> bytes | None:
        """The digest under which the answer is kept; None when it must not be kept.

        `identity` belongs to it where the git host sees a login for each. `tags` is `Refs.tags_digest` of this session's ls-refs answer;
        it is needed with include-tag, and otherwise left out.
        """
        if self.not_kept or (self.include_tag and tags is None):
            return None
        names = [name.encode("utf-8", "surrogateescape") for name in (upstream, path, identity)]
        tags = tags if self.include_tag and tags is not None else b""
        digest = hashlib.sha256()
        for group in (names, (self.object_format, tags), sorted(self.wants), self.arguments):
            digest.update(len(group).to_bytes(8, "big"))
            for field in group:  # with its length: two different lists of fields never become the same bytes
                digest.update(len(field).to_bytes(8, "big") + field)
        return digest.digest()


def fetch_of(request: Request) -> Fetch | None:
    """None when `request` is no fetch. A form that is not known is told by `not_kept`, never by an exception."""
    if request.command != b"fetch":
        return None
    object_format, not_kept = _capabilities(request.capabilities)
    digits = OID_DIGITS.get(object_format, 0)
    wants: set[bytes] = set()
    others: list[bytes] = []
    haves = shallows = 0
    done = False
    for line in request.arguments:
        name, space, value = line.partition(b" ")
        if name == b"want" and len(value) == digits and _HEX.fullmatch(value):
            wants.add(value.lower())
        elif name == b"have":
            haves += 1
        elif name == b"shallow":
            shallows += 1
        elif line == b"done":
            done = True
        elif line != b"no-progress":
            others.append(line)
            if name not in _VALUES or not _fits(_VALUES[name], bool(space), value):
                not_kept = not_kept or "not_known"
    arguments = tuple(sorted(set(others)))
    names = [line.partition(b" ")[0] for line in arguments]
    if not not_kept:
        not_kept = _why_not(done, haves, shallows, len(wants), repeated=len(set(names)) != len(names))
    return Fetch(frozenset(wants), arguments, object_format, haves, shallows, done, not_kept)


def _capabilities(capabilities: Iterable[bytes]) -> tuple[bytes, NotKept]:
    """The object-format, and whether all capabilities are known. `server-option` is not: what the git host makes of it is its own."""
    object_format = b"sha1"  # gitprotocol-v2: where none is given
    formats = 0
    not_kept: NotKept = ""
    for line in capabilities:
        name, _, value = line.partition(b"=")
        if name == b"object-format" and value in OID_DIGITS:
            object_format, formats = value, formats + 1
        elif name not in _SILENT_CAPABILITIES:
            not_kept = "not_known"
    return object_format, not_kept or ("repeated" if formats > 1 else "")


def _fits(pattern: re.Pattern[bytes] | None, has_value: bool, value: bytes) -> bool:
    return not has_value if pattern is None else pattern.fullmatch(value) is not None


def _why_not(done: bool, haves: int, shallows: int, wants: int, repeated: bool) -> NotKept:
    if not done:
        return "no_done"
    if haves:
        return "have"
    if shallows:
        return "shallow"
    if not wants:
        return "no_want"
    # `deepen 1` before `deepen 2` is not the same as after it: git takes the last, and the sorted arguments do not tell which that was
    return "repeated" if repeated else ""


def probe(fetch: Fetch) -> bytes:
    """A request that asks whether the git host would serve the wants: it answers with an empty pack or with ERR."""
    lines = [DELIM_PKT]
    for want in sorted(fetch.wants):
        lines += (pkt_line(b"want %s\n" % want), pkt_line(b"have %s\n" % want))
    head = pkt_line(b"command=fetch")
    if fetch.object_format != b"sha1":  # which need not be named, and a git host that knows no other may not know the capability
        head += pkt_line(b"object-format=" + fetch.object_format)
    return b"".join([head, *lines, pkt_line(b"no-progress\n"), pkt_line(b"done\n"), FLUSH_PKT])


@dataclass(frozen=True, slots=True)
class Refs:
    """The answer to one ls-refs request, read only when somebody asks."""

    request: Request
    raw: bytes  # all of its packets

    def offers(self, wants: Iterable[bytes]) -> bool:
        """Whether a ref of the answer points to each of `wants` (hexadecimal, lower case)."""
        return set(wants) <= {line.partition(b" ")[0] for line in self._lines()}

    def tags_digest(self) -> bytes | None:
        """A digest of all tags and where they point to; None when the client did not ask for all of them."""
        prefixes = [line.removeprefix(b"ref-prefix ") for line in self.request.arguments if line.startswith(b"ref-prefix ")]
        if prefixes and not any(TAGS.startswith(prefix) for prefix in prefixes):
            return None
        digest = hashlib.sha256()
        for oid, name in sorted(tuple(line.split(b" ", 2)[:2]) for line in self._lines() if line.partition(b" ")[2].startswith(TAGS)):
            digest.update(b"%s %s\n" % (oid, name))  # neither holds a space or a newline: git-check-ref-format
        return digest.digest()

    def _lines(self) -> Iterator[bytes]:
        return (packet.removesuffix(b"\n") for packet in _packets(self.raw) if isinstance(packet, bytes))
