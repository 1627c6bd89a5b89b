"""Key revocation lists (OpenSSH's PROTOCOL.krl); pure.

A list with anything unknown in it is refused as a whole, for the unknown part may revoke something. Signatures are ignored, as OpenSSH does
since 9.4: whoever can write the file is trusted anyway.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from relay.openssh.fields import Fields

MAGIC = b"SSHKRL\n\x00"
FORMAT = 1
SERIAL_LAST = (1 << 64) - 1


class _Section(IntEnum):
    CERTIFICATES = 1
    KEYS = 2
    SHA1 = 3
    SIGNATURE = 4
    SHA256 = 5
    EXTENSION = 255


class _Part(IntEnum):
    """The sections within the section about certificates."""

    SERIALS = 0x20
    RANGE = 0x21
    BITMAP = 0x22
    KEY_IDS = 0x23
    EXTENSION = 0x39


class BadKrl(ValueError):
    """Not a revocation list, or one with an unknown part; the message says what is wrong."""


class Span(NamedTuple):
    """Serial numbers from `first` to `last`: all of them, or those whose bit is set in `bits`; its lowest bit is for `first`."""

    first: int
    last: int
    bits: bytes | None

    def holds(self, serial: int) -> bool:
        if not self.first <= serial <= self.last:
            return False
        if self.bits is None:
            return True
        place = serial - self.first
        return bool(self.bits[-1 - place // 8] >> place % 8 & 1)


@dataclass
class Serials:
    """Revoked serial numbers. A look-up takes a few steps, however many there are."""

    singles: array[int] = field(default_factory=lambda: array("Q"))  # sorted
    spans: list[Span] = field(default_factory=list)  # sorted by first
    reach: list[int] = field(default_factory=list)  # for each span the greatest `last` of it and all before it

    def settle(self) -> None:
        """Sorts the numbers, after all of them were added."""
        self.singles = array("Q", sorted(self.singles))
        self.spans.sort(key=lambda span: (span.first, span.last))
        furthest = 0
        self.reach = [furthest := max(furthest, span.last) for span in self.spans]

    def __contains__(self, serial: int) -> bool:
        at = bisect_left(self.singles, serial)
        if at < len(self.singles) and self.singles[at] == serial:
            return True
        at = bisect_right(self.spans, serial, key=lambda span: span.first) - 1
        while at >= 0 and self.reach[at] >= serial:  # one step for spans that do not overlap, such as ssh-keygen's
            if self.spans[at].holds(serial):
                return True
            at -= 1
        return False


@dataclass
class Issued:
    """Revoked certificates of one CA, or of any CA."""

    serials: Serials = field(default_factory=Serials)
    key_ids: set[bytes] = field(default_factory=set)


@dataclass(frozen=True)
class Krl:
    """A revocation list. `issued` is keyed by the blob of the CA's key, or b"" for any CA."""

    version: int = 0
    keys: frozenset[bytes] = frozenset()  # blobs
    sha1: frozenset[bytes] = frozenset()  # of blobs
    sha256: frozenset[bytes] = frozenset()
    issued: dict[bytes, Issued] = field(default_factory=dict)

    def revokes_key(self, blob: bytes) -> bool:
        """Whether a key is revoked, be it a user's, a certificate's or a CA's."""
        return (
            blob in self.keys
            or (bool(self.sha256) and hashlib.sha256(blob).digest() in self.sha256)
            or (bool(self.sha1) and hashlib.sha1(blob, usedforsecurity=False).digest() in self.sha1)
        )

    def revokes_certificate(self, ca: bytes, serial: int, key_id: bytes) -> bool:
        """Whether a certificate is revoked by serial number or key id. Serial 0 is never revoked: it means that the CA does not number."""
        for name in (ca, b""):
            if (issued := self.issued.get(name)) is not None and (key_id in issued.key_ids or (serial and serial in issued.serials)):
                return True
        return False


def looks_like_krl(data: bytes) -> bool:
    return data.startswith(MAGIC)


def parse_krl(data: bytes) -> Krl:
    """Parses a whole list; raises BadKrl. Time and memory are bounded by a multiple of its size: every step consumes bytes."""
    reader = _fields(data)
    if reader.take(8) != MAGIC:
        raise BadKrl("does not begin as a revocation list does")
    if (version := reader.number(4)) != FORMAT:
        raise BadKrl(f"has the format version {version}, understood is {FORMAT}")
    number = reader.number(8)
    reader.number(8)  # when it was made
    reader.number(8)  # flags, of which none are defined
    reader.string()  # reserved
    reader.string()  # comment
    keys: set[bytes] = set()
    digests: dict[int, set[bytes]] = {_Section.SHA1: set(), _Section.SHA256: set()}
    issued: dict[bytes, Issued] = {}
    signed = False
    while reader:
        kind, section = reader.number(1), _fields(reader.string())
        if signed and kind != _Section.SIGNATURE:
            raise BadKrl("has a section behind its signature")
        match kind:
            case _Section.CERTIFICATES:
                _certificates(section, issued)
            case _Section.KEYS:
                keys.update(section.strings())
            case _Section.SHA1 | _Section.SHA256:
                _digests(section, 20 if kind == _Section.SHA1 else 32, digests[kind])
            case _Section.SIGNATURE:
                reader.string()  # the section held the key, this is the signature
                signed = True
            case _Section.EXTENSION:
                _extension(section)
            case _:
                raise BadKrl(f"has a section of type {kind}, which is not understood")
    if b"" in keys:
        raise BadKrl("has an empty key")
    for one in issued.values():
        one.serials.settle()
    return Krl(number, frozenset(keys), frozenset(digests[_Section.SHA1]), frozenset(digests[_Section.SHA256]), issued)


def _fields(data: bytes) -> Fields:
    return Fields(data, lambda: BadKrl("is cut off"))


def _certificates(section: Fields, issued: dict[bytes, Issued]) -> None:
    ca = section.string()
    section.string()  # reserved
    one = issued.setdefault(ca, Issued())
    while section:
        kind, part = section.number(1), _fields(section.string())
        match kind:
            case _Part.SERIALS:
                while part:
                    one.serials.singles.append(_serial(part.number(8)))
            case _Part.RANGE:
                first, last = _serial(part.number(8)), part.number(8)
                if last < first:
                    raise BadKrl("has a range of serial numbers that ends before it begins")
                one.serials.spans.append(Span(first, last, None))
                _end(part)
            case _Part.BITMAP:
                _bitmap(part, one.serials)
            case _Part.KEY_IDS:
                one.key_ids.update(part.strings())
            case _Part.EXTENSION:
                _extension(part)
            case _:
                raise BadKrl(f"has a section of type {kind} about certificates, which is not understood")


def _bitmap(part: Fields, serials: Serials) -> None:
    """Adds a bitmap: an offset, and an mpint whose lowest bit is for the serial number of the offset."""
    first, bits = part.number(8), part.string().lstrip(b"\x00")
    _end(part)
    if not bits:
        return
    last = first + 8 * (len(bits) - 1) + bits[0].bit_length() - 1
    if last > SERIAL_LAST:
        raise BadKrl("has a bitmap of serial numbers that reaches beyond the last")
    serials.spans.append(Span(first, last, bits))


def _digests(section: Fields, size: int, into: set[bytes]) -> None:
    for digest in section.strings():
        if len(digest) != size:
            raise BadKrl(f"has a fingerprint of {len(digest)} bytes, must have {size}")
        into.add(digest)


def _extension(section: Fields) -> None:
    """No extension is defined. One that is not critical is ignored."""
    name, critical = section.string(), section.number(1)
    section.string()
    _end(section)
    if critical:
        raise BadKrl(f"needs the extension {name.decode('ascii', 'replace')[:60]!r}, which is not understood")


def _serial(number: int) -> int:
    if number == 0:
        raise BadKrl("revokes serial number 0, which certificates without a number have")
    return number


def _end(part: Fields) -> None:
    if part:
        raise BadKrl("has bytes that belong to nothing")
