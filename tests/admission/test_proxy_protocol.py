"""PROXY headers of both versions: complete, in pieces, broken and random."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.admission.proxy_protocol import (
    V1_LIMIT,
    V2_LIMIT,
    V2_SIGNATURE,
    BadHeader,
    Endpoint,
    Header,
    Need,
    Trusted,
    crc32c,
    looks_like,
    parse,
)
from tests.fuzz.targets import check_header

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine must not fail the test

SSH = b"SSH-2.0-OpenSSH_9.2p1\r\n"


def v2(command: int, family: int, rest: bytes, length: int | None = None) -> bytes:
    return V2_SIGNATURE + struct.pack("!BBH", command, family, len(rest) if length is None else length) + rest


def inet(source: str, destination: str, source_port: int, destination_port: int) -> bytes:
    return socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!HH", source_port, destination_port)


def inet6(source: str, destination: str, source_port: int, destination_port: int) -> bytes:
    ends = [socket.inet_pton(socket.AF_INET6, end) for end in (source, destination)]
    return b"".join(ends) + struct.pack("!HH", source_port, destination_port)


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def with_crc(addresses: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    blank = v2(0x21, 0x11, addresses + before + tlv(3, bytes(4)) + after)
    at = 16 + len(addresses) + len(before) + 3
    return blank[:at] + struct.pack("!I", crc32c(blank)) + blank[at + 4 :]


V4 = inet("192.0.2.7", "198.51.100.1", 56324, 22)

GOOD = {
    "v1 tcp4": (
        b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 22\r\n",
        (Endpoint("192.0.2.7", 56324), Endpoint("198.51.100.1", 22)),
    ),
    "v1 tcp4 longest": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        (Endpoint("255.255.255.255", 65535), Endpoint("255.255.255.255", 65535)),
    ),
    "v1 tcp6": (b"PROXY TCP6 2001:DB8::7 ::1 0 22\r\n", (Endpoint("2001:db8::7", 0), Endpoint("::1", 22))),
    "v1 tcp6 longest": (
        b"PROXY TCP6 " + b" ".join([b"ffff:" * 7 + b"ffff"] * 2) + b" 65535 65535\r\n",
        (Endpoint("ffff:" * 7 + "ffff", 65535), Endpoint("ffff:" * 7 + "ffff", 65535)),
    ),
    "v1 mapped": (b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:c000:201 1 22\r\n", (Endpoint("192.0.2.7", 1), Endpoint("192.0.2.1", 22))),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", None),
    "v1 unknown with anything": (b"PROXY UNKNOWN \x00\xff whatever\r\n", None),
    "v1 unknown longest": (b"PROXY UNKNOWN " + b"f" * (V1_LIMIT - 16) + b"\r\n", None),
    "v2 tcp4": (v2(0x21, 0x11, V4), (Endpoint("192.0.2.7", 56324), Endpoint("198.51.100.1", 22))),
    "v2 tcp6": (v2(0x21, 0x21, inet6("2001:db8::7", "::1", 1, 22)), (Endpoint("2001:db8::7", 1), Endpoint("::1", 22))),
    "v2 mapped": (v2(0x21, 0x21, inet6("::ffff:1.2.3.4", "::1", 1, 22)), (Endpoint("1.2.3.4", 1), Endpoint("::1", 22))),
    "v2 tlvs": (
        v2(0x21, 0x11, V4 + tlv(4, b"") + tlv(5, b"id" * 64) + tlv(0xEA, b"vpce")),
        (Endpoint("192.0.2.7", 56324), Endpoint("198.51.100.1", 22)),
    ),
    "v2 crc": (with_crc(V4, tlv(1, b"ssh"), tlv(4, b"pad")), (Endpoint("192.0.2.7", 56324), Endpoint("198.51.100.1", 22))),
    "v2 largest": (
        v2(0x21, 0x11, V4 + tlv(4, bytes(V2_LIMIT - 16 - 12 - 3))),
        (Endpoint("192.0.2.7", 56324), Endpoint("198.51.100.1", 22)),
    ),
    "v2 udp": (v2(0x21, 0x12, V4), None),
    "v2 unix": (v2(0x21, 0x31, bytes(216)), None),
    "v2 unspec": (v2(0x21, 0x00, b""), None),
    "v2 unspec with bytes": (v2(0x21, 0x00, b"\xff" * 40), None),
    "v2 unspec transport": (v2(0x21, 0x10, b""), None),
    "v2 local": (v2(0x20, 0x00, b""), None),
    "v2 local with an address": (v2(0x20, 0x11, V4), None),
    "v2 local with any family": (v2(0x20, 0xFF, b"xyz"), None),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("after", [b"", SSH, b"\r\n", b"PROXY UNKNOWN\r\n"])
def test_headers_that_are_right(name: str, after: bytes) -> None:
    data, ends = GOOD[name]
    header = parse(data + after)
    assert isinstance(header, Header)
    assert (data + after)[header.consumed :] == after
    assert (header.source, header.destination) == (ends or (None, None))
    assert header.version == int(name[1])
    assert header.local == ("local" in name)


@pytest.mark.parametrize("name", GOOD)
def test_a_reader_that_reads_what_is_needed_never_takes_a_byte_of_ssh(name: str) -> None:
    data = GOOD[name][0]
    for start in range(len(data)):
        have = start
        while isinstance(answer := parse(data[:have]), Need):
            assert answer.more > 0
            have += answer.more
            assert have <= len(data)
        assert answer.consumed == have == len(data)


BAD = {
    "ssh": SSH,
    "http": b"GET / HTTP/1.1\r\n",
    "lower case": b"proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n",
    "v1 family": b"PROXY TCP5 1.1.1.1 1.1.1.1 1 1\r\n",
    "v1 udp": b"PROXY UDP4 1.1.1.1 1.1.1.1 1 1\r\n",
    "v1 two spaces": b"PROXY TCP4  1.1.1.1 1.1.1.1 1 1\r\n",
    "v1 space at the end": b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1 \r\n",
    "v1 tab": b"PROXY TCP4\t1.1.1.1 1.1.1.1 1 1\r\n",
    "v1 too few": b"PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n",
    "v1 no number": b"PROXY TCP4 1.1.1.1 1.1.1.1 1 x\r\n",
    "v1 port": b"PROXY TCP4 1.1.1.1 1.1.1.1 65536 1\r\n",
    "v1 long port": b"PROXY TCP4 1.1.1.1 1.1.1.1 999999 1\r\n",
    "v1 port zero": b"PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n",
    "v1 negative port": b"PROXY TCP4 1.1.1.1 1.1.1.1 -1 1\r\n",
    "v1 octal": b"PROXY TCP4 010.1.1.1 1.1.1.1 1 1\r\n",
    "v1 octet": b"PROXY TCP4 256.1.1.1 1.1.1.1 1 1\r\n",
    "v1 short address": b"PROXY TCP4 1.1.1 1.1.1.1 1 1\r\n",
    "v1 v6 in tcp4": b"PROXY TCP4 ::1 ::1 1 1\r\n",
    "v1 v4 in tcp6": b"PROXY TCP6 1.1.1.1 1.1.1.1 1 1\r\n",
    "v1 scope": b"PROXY TCP6 fe80::1%eth0 ::1 1 1\r\n",
    "v1 network": b"PROXY TCP6 ::/0 ::1 1 1\r\n",
    "v1 lone lf": b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\n",
    "v1 lone cr": b"PROXY UNKNOWN x\rx\r\n",
    "v1 lf in unknown": b"PROXY UNKNOWN x\nx\r\n",
    "v1 unknown glued": b"PROXY UNKNOWNX\r\n",
    "v1 too long": b"PROXY UNKNOWN " + b"f" * (V1_LIMIT - 15) + b"\r\n",
    "v2 version": v2(0x31, 0x11, V4),
    "v2 command": v2(0x22, 0x11, V4),
    "v2 family": v2(0x21, 0x41, V4),
    "v2 transport": v2(0x21, 0x13, V4),
    "v2 short inet": v2(0x21, 0x11, V4[:-1]),
    "v2 short inet6": v2(0x21, 0x21, bytes(35)),
    "v2 short unix": v2(0x21, 0x31, bytes(215)),
    "v2 too long": v2(0x21, 0x11, V4, V2_LIMIT - 15),
    "v2 longest": v2(0x21, 0x11, V4, 65_535),
    "v2 cut tlv": v2(0x21, 0x11, V4 + b"\x04\x00"),
    "v2 tlv over the end": v2(0x21, 0x11, V4 + struct.pack("!BH", 4, 2) + b"x"),
    "v2 crc wrong": with_crc(V4)[:-1] + bytes([with_crc(V4)[-1] ^ 1]),
    "v2 crc of another address": with_crc(V4)[:16] + b"\x7f" + with_crc(V4)[17:],
    "v2 crc size": v2(0x21, 0x11, V4 + tlv(3, b"abc")),
    "v2 two crcs": v2(0x21, 0x11, V4 + tlv(3, bytes(4)) + tlv(3, bytes(4))),
    "v2 signature": b"\r\n\r\n\x00\r\nQUIT\r\n\x21\x11\x00\x00",
}


@pytest.mark.parametrize("name", BAD)
def test_headers_that_are_wrong(name: str) -> None:
    with pytest.raises(BadHeader):
        parse(BAD[name] + SSH)


@pytest.mark.parametrize("data", [b"S", b"\x00", b"PROXZ", b"\r\r", b"PROXY TCP7", V2_SIGNATURE + b"\x11", b"PROXY UNKNOWN x\n"])
def test_what_can_never_become_a_header_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(BadHeader):
        parse(data)


def test_a_version_1_line_without_end_is_refused_at_its_limit() -> None:
    line = b"PROXY UNKNOWN " + b"f" * V1_LIMIT
    assert parse(line[: V1_LIMIT - 2]) == Need(more=2)
    assert parse(line[: V1_LIMIT - 2] + b"\r") == Need(more=1)
    for length in (V1_LIMIT - 1, V1_LIMIT, V1_LIMIT + 1):
        with pytest.raises(BadHeader, match="no CRLF in the first 107 bytes"):
            parse(line[:length])


def test_an_oversized_version_2_header_is_refused_before_it_is_read() -> None:
    with pytest.raises(BadHeader, match=r"4,097 bytes, at most 4,096"):
        parse(v2(0x21, 0x11, b"", V2_LIMIT - 15))


def test_crc32c_check_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the CRC catalogue for CRC-32/ISCSI


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
ports = st.integers(0, 65535)


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, Endpoint]:
    source = draw(addresses)
    destination = draw(st.ip_addresses(v=source.version))
    source_port, destination_port = draw(ports), draw(ports)
    mapped = source.ipv4_mapped if isinstance(source, ipaddress.IPv6Address) else None
    expected = Endpoint(str(mapped or source), source_port)
    if draw(st.booleans()):
        return f"PROXY TCP{source.version} {source} {destination} {source_port} {destination_port}\r\n".encode(), expected
    tlvs = draw(st.lists(st.tuples(st.integers(0, 255).filter(lambda kind: kind != 3), st.binary(max_size=200)), max_size=5))
    rest = source.packed + destination.packed + struct.pack("!HH", source_port, destination_port)
    return v2(0x21, 0x11 if source.version == 4 else 0x21, rest + b"".join(tlv(*one) for one in tlvs)), expected


@UNHURRIED
@given(headers(), st.binary(max_size=50))
def test_any_header_comes_back_exactly(header: tuple[bytes, Endpoint], after: bytes) -> None:
    data, source = header
    found = parse(data + after)
    assert isinstance(found, Header)
    assert (found.source, found.consumed) == (source, len(data))
    assert looks_like(data) is True


@UNHURRIED
@given(headers(), st.data())
def test_a_changed_byte_gives_a_header_or_a_refusal_and_nothing_else(header: tuple[bytes, Endpoint], data: st.DataObject) -> None:
    changed = bytearray(header[0])
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    check_header(bytes(changed))


@UNHURRIED
@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=100).map(b"PROXY TCP4 ".__add__),
        st.binary(max_size=300).map(V2_SIGNATURE.__add__),
        st.binary(max_size=300).map((V2_SIGNATURE + b"\x21\x11\x00").__add__),
    )
)
def test_any_bytes_are_a_header_or_need_more_or_are_refused(data: bytes) -> None:
    check_header(data)


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"", None),
        (b"S", False),
        (b"SSH-2.0-x\r\n", False),
        (b"P", None),
        (b"PROXY", None),
        (b"PROXY ", True),
        (b"PROXY nonsense", True),
        (b"PRIVATE", False),
        (b"\r", None),
        (V2_SIGNATURE[:11], None),
        (V2_SIGNATURE, True),
        (V2_SIGNATURE + b"x", True),
        (b"\r\n\r\nx", False),
        (b"\x00", False),
    ],
)
def test_looks_like(data: bytes, answer: bool | None) -> None:
    assert looks_like(data) is answer


def test_trusted() -> None:
    trusted = Trusted(["10.0.0.0/8", "192.0.2.1", "2001:db8::/32", "::ffff:172.16.0.0/108", "fe80::1"])
    for address in ["10.1.2.3", "::ffff:10.1.2.3", "192.0.2.1", "2001:db8:1::2", "172.16.9.9", "::ffff:172.31.0.1", "fe80::1%eth0"]:
        assert trusted.believes(address), address
    for address in ["11.0.0.1", "192.0.2.2", "2001:db9::1", "172.32.0.1", "::10.1.2.3", "fe80::2%eth0", "", "/run/relay.sock", "10.1.2"]:
        assert not trusted.believes(address), address


def test_mapped_networks_are_ipv4_networks() -> None:
    assert Trusted(["::ffff:0:0/96"]).believes("192.0.2.1")
    assert not Trusted(["::ffff:0:0/96"]).believes("2001:db8::1")


def test_nobody_is_trusted_by_default_and_everybody_only_by_name() -> None:
    assert not Trusted([]).believes("127.0.0.1")
    assert Trusted(["0.0.0.0/0"]).believes("::ffff:203.0.113.9")
    assert not Trusted(["0.0.0.0/0"]).believes("2001:db8::1")


@pytest.mark.parametrize("text", ["", "localhost", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "::/129", "fe80::/10%eth0 x"])
def test_a_trusted_network_that_is_none(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        Trusted([text])
    assert text in str(refused.value)
