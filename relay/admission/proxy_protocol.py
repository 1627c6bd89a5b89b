"""PROXY protocol headers, versions 1 and 2 (HAProxy's proxy-protocol.txt of 2020/03/05): who the client behind a load balancer is; pure.

`parse` takes what has arrived so far and answers with the header, with how many bytes more are needed at least, or with BadHeader. A
reader that asks for no more than that never takes a byte of what follows the header.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from relay.address import Network, parse_network, real_address, unmapped
from relay.model import Frozen

V1_LIMIT: Final = 107  # bytes of a version 1 line with its CRLF (section 2.1)
V2_LIMIT: Final = 4_096  # bytes of a version 2 header with its TLVs; the field would allow 65,551

V1_PREFIX: Final = b"PROXY "
V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"

_V1_STARTS: Final = (b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ")
_V1_LINE: Final = re.compile(rb"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})")
_SHORTEST: Final = len(b"PROXY UNKNOWN\r\n")  # of all headers
_V2_FIXED: Final = struct.Struct("!12sBBH")
_V2_FAMILIES: Final = {0: 0, 1: 12, 2: 36, 3: 216}  # AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX: bytes of their addresses and ports
_STREAM: Final = 1
_TLV: Final = struct.Struct("!BH")
_CRC32C: Final = 0x03  # PP2_TYPE_CRC32C, section 2.2.3


class BadHeader(ValueError):
    """Not a PROXY header, or a broken one: the connection is to be dropped (section 2). The text is for the log."""


class Endpoint(NamedTuple):
    """An address in its shortest form, IPv4-mapped IPv6 as IPv4, and a TCP port."""

    address: str
    port: int


class Header(Frozen, frozen=True):
    """A complete header. Without a `source` (LOCAL, UNKNOWN, UNSPEC, Unix sockets, datagrams) the connection's own addresses stand."""

    version: int
    consumed: int  # bytes; what follows them belongs to SSH
    source: Endpoint | None = None
    destination: Endpoint | None = None
    local: bool = False  # the load balancer's own connection, such as a health check


class Need(Frozen, frozen=True):
    """The header is incomplete: it takes at least `more` bytes more, so reading that many cannot reach into SSH."""

    more: int


def parse(data: bytes) -> Header | Need:
    """The header that `data` begins with, or how much of it is missing. Raises BadHeader as soon as no header can begin like this.

    Asks for no more than V1_LIMIT or V2_LIMIT bytes in all.
    """
    if V2_SIGNATURE.startswith(data[:12]):
        return _parse_v2(data) if data else Need(more=_SHORTEST)
    return _parse_v1(data)


def looks_like(data: bytes) -> bool | None:
    """Whether `data`, the first bytes of a connection, begin a PROXY header; None while they are too few to tell.

    For mode `allow`, from a trusted peer only. An SSH client begins with `SSH-` (RFC 4253 section 4.2), so one byte tells it apart.
    """
    for start in (V1_PREFIX, V2_SIGNATURE):
        if data.startswith(start):
            return True
        if start.startswith(data):
            return None
    return False


class Trusted:
    """The addresses whose header is believed. Raises ValueError for a text that is neither an address nor a network."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(map(_trusted, networks))

    def believes(self, address: str) -> bool:
        """Whether the peer `address` (as the socket gives it: IPv4, IPv6 with or without scope, IPv4-mapped) may say who its client is."""
        peer = real_address(address)  # None for a Unix socket's peer
        return peer is not None and any(peer in network for network in self._networks)


def _parse_v1(data: bytes) -> Header | Need:
    line, end, _ = data[:V1_LIMIT].partition(b"\r\n")
    if not any(data.startswith(start) or start.startswith(data) for start in _V1_STARTS):
        raise BadHeader(f"no PROXY header: the connection begins with {data[:16]!r}")
    if not end:
        if b"\n" in line or b"\r" in line[:-1]:
            raise BadHeader("a line break other than CRLF in a version 1 header")
        more = max(_SHORTEST - len(data), 1 if line.endswith(b"\r") else 2)
        if len(data) + more > V1_LIMIT:
            raise BadHeader(f"no CRLF in the first {V1_LIMIT} bytes of a version 1 header")
        return Need(more=more)
    if b"\n" in line or b"\r" in line:
        raise BadHeader("a line break other than CRLF in a version 1 header")
    consumed = len(line) + 2
    if line.startswith(b"PROXY UNKNOWN"):
        return Header(version=1, consumed=consumed)
    match = _V1_LINE.fullmatch(line)
    if match is None:
        raise BadHeader(f"a version 1 header that is not PROXY TCP4|TCP6 SOURCE DESTINATION PORT PORT: {line!r}")
    family, source, destination, source_port, destination_port = (group.decode() for group in match.groups())
    kind = IPv4Address if family == "4" else IPv6Address
    try:
        ends = [_endpoint(kind(address), int(port)) for address, port in ((source, source_port), (destination, destination_port))]
    except ValueError as wrong:
        raise BadHeader(f"a version 1 header with a wrong address: {wrong}") from None
    if max(end.port for end in ends) > 0xFFFF:
        raise BadHeader("a version 1 header with a port over 65,535")
    return Header(version=1, consumed=consumed, source=ends[0], destination=ends[1])


def _parse_v2(data: bytes) -> Header | Need:
    if len(data) < _V2_FIXED.size:
        if data[12:13] and data[12] not in (0x20, 0x21):
            raise BadHeader(f"version and command 0x{data[12]:02x} of a version 2 header")
        return Need(more=_V2_FIXED.size - len(data))
    _, version_command, family_transport, length = _V2_FIXED.unpack_from(data)
    if version_command not in (0x20, 0x21):
        raise BadHeader(f"version and command 0x{version_command:02x} of a version 2 header")
    consumed = _V2_FIXED.size + length
    if consumed > V2_LIMIT:
        raise BadHeader(f"a version 2 header of {consumed:,} bytes, at most {V2_LIMIT:,} are allowed")
    local = version_command == 0x20  # whose family is ignored, whatever it says
    family, transport = family_transport >> 4, family_transport & 15
    if not local and (family not in _V2_FAMILIES or transport > 2):
        raise BadHeader(f"family and transport 0x{family_transport:02x} of a version 2 header")
    if len(data) < consumed:
        return Need(more=consumed - len(data))
    if local or family == 0 or transport == 0:
        return Header(version=2, consumed=consumed, local=local)
    if length < _V2_FAMILIES[family]:
        raise BadHeader(f"{length} bytes of addresses in a version 2 header, its family takes {_V2_FAMILIES[family]}")
    _check_tlvs(data[:consumed], _V2_FIXED.size + _V2_FAMILIES[family])
    if family == 3 or transport != _STREAM:
        return Header(version=2, consumed=consumed)
    source_port, destination_port = struct.unpack_from("!HH", data, _V2_FIXED.size + _V2_FAMILIES[family] - 4)
    kind, size = (IPv4Address, 4) if family == 1 else (IPv6Address, 16)
    source, destination = data[16 : 16 + size], data[16 + size : 16 + 2 * size]
    return Header(
        version=2,
        consumed=consumed,
        source=_endpoint(kind(source), source_port),
        destination=_endpoint(kind(destination), destination_port),
    )


def _check_tlvs(header: bytes, position: int) -> None:
    """TLVs are skipped, but they must fill the header exactly, and a CRC32C must be right (section 2.2.3)."""
    checksum: int | None = None
    while position < len(header):
        if position + _TLV.size > len(header):
            raise BadHeader("a TLV of a version 2 header is cut off")
        kind, length = _TLV.unpack_from(header, position)
        value, position = position + _TLV.size, position + _TLV.size + length
        if position > len(header):
            raise BadHeader("a TLV of a version 2 header is longer than the header")
        if kind == _CRC32C:
            if checksum is not None or length != 4:
                raise BadHeader("a version 2 header takes one CRC32C of 4 bytes")
            checksum = value
    if checksum is None:
        return
    (told,) = struct.unpack_from("!I", header, checksum)
    if crc32c(header[:checksum] + bytes(4) + header[checksum + 4 :]) != told:
        raise BadHeader("the CRC32C of a version 2 header is wrong")


def crc32c(data: bytes) -> int:
    """The Castagnoli CRC of RFC 4960 appendix B; a header has at most V2_LIMIT bytes, so a table of 256 entries is fast enough."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _crc_entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC_TABLE: Final = tuple(_crc_entry(value) for value in range(256))


def _trusted(text: str) -> Network:
    try:
        return parse_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} {error}") from None


def _endpoint(address: IPv4Address | IPv6Address, port: int) -> Endpoint:
    return Endpoint(str(unmapped(address)), port)
