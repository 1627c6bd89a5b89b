"""pkt-lines (gitprotocol-common), in any pieces of the stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.git.pktline import DATA_MOST_BYTES, PACKET_MOST_BYTES, BadPacket, Packet, PktLines, Special, packet_length, pkt_line
from tests.support.pieces import cuts, pieces


def taken(parts: list[bytes]) -> tuple[list[Packet], int]:
    reader, packets = PktLines(), list[Packet]()
    for part in parts:
        reader.feed(part)
        while (packet := reader.take()) is not None:
            packets.append(packet)
    return packets, reader.waiting


def test_the_examples_of_the_documentation() -> None:
    assert taken([b"0006a\n0005a000bfoobar\n0004"]) == ([b"a\n", b"a", b"foobar\n", b""], 0)
    assert taken([b"000000010002"]) == ([Special.FLUSH, Special.DELIM, Special.RESPONSE_END], 0)
    assert pkt_line(b"foobar\n") == b"000bfoobar\n" and pkt_line(b"") == b"0004"


def test_the_longest_packet_and_one_byte_more() -> None:
    longest = pkt_line(bytes(DATA_MOST_BYTES))
    assert longest.startswith(b"fff0") and len(longest) == PACKET_MOST_BYTES
    assert taken([longest.replace(b"fff0", b"FFF0", 1)]) == ([bytes(DATA_MOST_BYTES)], 0)
    for length in (b"fff1", b"ffff"):
        with pytest.raises(BadPacket, match="more than 65520"):
            taken([length])


@pytest.mark.parametrize("bad", [b"0003", b"000g", b" 004", b"+004", b"0x04", b"00_4", b"PACK", b"\xff\xff\xff\xff", b"1 23", b"-001"])
def test_invalid_lengths(bad: bytes) -> None:
    with pytest.raises(BadPacket):
        taken([bad])
    assert packet_length(b"0000" + bad, 4) is None


@given(st.binary(max_size=6))
def test_packet_length_agrees_with_take(data: bytes) -> None:
    reader = PktLines()
    reader.feed(data[:4] + bytes(PACKET_MOST_BYTES))
    try:
        packet = reader.take()
    except BadPacket:
        assert packet_length(data[:4] + b" " * 4, 0) is None
        return
    said = packet_length(memoryview(data[:4] + bytes(4)), 0)
    assert said == (packet.value if isinstance(packet, Special) else len(packet or b"") + 4)


@pytest.mark.parametrize("short", [b"", b"0", b"00f", b"000"])
def test_fewer_than_four_digits_are_no_length(short: bytes) -> None:
    assert packet_length(short, 0) is None


def test_data_after_the_last_packet_wanted_is_not_parsed() -> None:
    reader = PktLines()
    reader.feed(b"0000PACK")
    assert (reader.take(), reader.waiting) == (Special.FLUSH, 4)


packets = st.lists(st.binary(max_size=300) | st.sampled_from(list(Special)), max_size=8)


@given(packets, cuts, st.integers(0, 3))
def test_any_pieces_give_the_same_packets(sent: list[Packet], places: list[int], rest: int) -> None:
    stream = b"".join(b"%04d" % one.value if isinstance(one, Special) else pkt_line(one) for one in sent)
    whole = stream + b"00fe"[:rest]
    assert taken([whole]) == taken(pieces(whole, places)) == (sent, rest)
