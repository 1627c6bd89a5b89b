"""The packets of AES-GCM: the extension and its Python twin agree byte by byte with RFC 5647 and each other, on good input and on bad."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import pytest
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_CHANNEL_EOF, MSG_CHANNEL_EXTENDED_DATA, MSG_CHANNEL_WINDOW_ADJUST
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from relay.ssh import gcm
from relay.ssh.gcm import BLOCK, LENGTH, NOISE, TAG, Noise, Packets, PythonAead, advanced

KEY = bytes(range(16))
NONCE = bytes(range(100, 112))
MOST = 35_000
ALL = 1 << 30


@pytest.fixture(params=["extension", "python"])
def aead(request: pytest.FixtureRequest) -> Callable[[bytes], Packets]:
    if request.param == "python":
        return PythonAead
    if not gcm.ACCELERATED:
        pytest.skip("relay_gcm is not built")
    return gcm.Aead


def plain_packet(payload: bytes, padding: int | None = None) -> bytes:
    """Padding length, payload and padding as in RFC 4253; `padding` for a wrong one."""
    if padding is None:
        padding = -(1 + len(payload)) % BLOCK
        padding += BLOCK if padding < 4 else 0
    return bytes((padding,)) + payload + b"p" * padding


def sealed(plain: bytes, nonce: bytes, key: bytes = KEY) -> bytes:
    """Encrypts with the cryptography package alone."""
    head = len(plain).to_bytes(LENGTH, "big")
    return head + AESGCM(key).encrypt(nonce, plain, head)


def data(content: bytes, channel: int = 7) -> bytes:
    return bytes((MSG_CHANNEL_DATA,)) + channel.to_bytes(4, "big") + len(content).to_bytes(4, "big") + content


def adjust(more: int, channel: int = 7) -> bytes:
    return bytes((MSG_CHANNEL_WINDOW_ADJUST,)) + channel.to_bytes(4, "big") + more.to_bytes(4, "big")


def stream(payloads: Sequence[bytes], nonce: bytes = NONCE) -> bytes:
    return b"".join(sealed(plain_packet(payload), advanced(nonce, number)) for number, payload in enumerate(payloads))


# -- out -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 32])
def test_a_packet_is_what_the_rfc_says(aead: Callable[[bytes], Packets], size: int) -> None:
    """Every payload length around a block: the packet is a multiple of a block, with 4 to 19 bytes of the given padding."""
    key, noise = os.urandom(size), os.urandom(NOISE)
    for length in range(1, 70):
        payload = os.urandom(length)
        packet = aead(key).packet(NONCE, payload, noise)
        plain = AESGCM(key).decrypt(NONCE, packet[LENGTH:], packet[:LENGTH])
        assert int.from_bytes(packet[:LENGTH], "big") == len(plain) == len(packet) - LENGTH - TAG
        assert len(plain) % BLOCK == 0
        assert 4 <= plain[0] <= 19
        assert plain == bytes((plain[0],)) + payload + noise[: plain[0]]


@pytest.mark.parametrize(("size", "most"), [(1, 1), (1, 32_768), (100, 7), (32_768, 32_768), (65_537, 32_768), (100_000, 32_700)])
@pytest.mark.parametrize("head", [b"\x5e\0\0\0\1", b"\x5f\0\0\0\1\0\0\0\1"], ids=["data", "extended data"])
def test_data_is_cut_into_packets(aead: Callable[[bytes], Packets], size: int, most: int, head: bytes) -> None:
    content = os.urandom(size)
    packets = -(-size // most)
    noise = os.urandom(packets * NOISE)
    nonce = NONCE[:4] + b"\xff" * 7 + b"\xfe"  # the counter wraps around
    for source in (content, memoryview(content), memoryview(bytearray(content))):
        out, count = aead(KEY).data(nonce, head, source, most, noise)
        assert count == packets
        got, position = b"", 0
        for number in range(count):
            length = int.from_bytes(out[position : position + LENGTH], "big")
            end = position + LENGTH + length + TAG
            plain = AESGCM(KEY).decrypt(advanced(nonce, number), out[position + LENGTH : end], out[position : position + LENGTH])
            part = plain[1 + len(head) + 4 : len(plain) - plain[0]]
            assert plain[1 : 1 + len(head)] == head
            assert int.from_bytes(plain[1 + len(head) : 5 + len(head)], "big") == len(part)
            assert plain[len(plain) - plain[0] :] == noise[number * NOISE : number * NOISE + plain[0]]
            got, position = got + part, end
        assert got == content
        assert position == len(out)


def test_arguments_that_cannot_be_sealed_are_refused(aead: Callable[[bytes], Packets]) -> None:
    one = aead(KEY)
    noise = bytes(NOISE)
    for bad in (b"", b"k" * 15, b"k" * 24, b"k" * 33):
        with pytest.raises(ValueError, match="key"):
            aead(bad)
    with pytest.raises(ValueError, match="payload"):
        one.packet(NONCE, b"", noise)
    with pytest.raises(ValueError, match="noise"):
        one.packet(NONCE, b"x", noise[1:])
    with pytest.raises(ValueError, match="head"):
        one.data(NONCE, b"", b"x", 1, noise)
    with pytest.raises(ValueError, match="head"):
        one.data(NONCE, b"h" * 12, b"x", 1, noise)
    for content, most in ((b"", 1), (b"x", 0), (b"x", -1), (b"x", 1 << 25)):
        with pytest.raises(ValueError, match="byte at least"):
            one.data(NONCE, b"h", content, most, noise)
    with pytest.raises(ValueError, match="noise"):
        one.data(NONCE, b"h", b"xx", 1, noise)


def test_padding_is_random_when_none_is_given(aead: Callable[[bytes], Packets]) -> None:
    """More packets than one page of random bytes serves, and no padding twice."""
    one, seen = aead(KEY), set()
    for number in range(500):
        nonce = advanced(NONCE, number)
        opened = one.packet(nonce, b"x", None)
        plain = AESGCM(KEY).decrypt(nonce, opened[LENGTH:], opened[:LENGTH])
        seen.add(plain[2:])
    out, count = one.data(NONCE, b"h", bytes(500), 1, None)
    size = len(out) // count
    for number in range(count):
        packet = out[number * size : (number + 1) * size]
        seen.add(AESGCM(KEY).decrypt(advanced(NONCE, number), packet[LENGTH:], packet[:LENGTH])[7:])
    assert len(seen) == 1_000
    assert {len(padding) for padding in seen} == {14, 9}


# -- in ------------------------------------------------------------------------------------------------------------------


def test_one_packet_is_opened_where_it_lies(aead: Callable[[bytes], Packets]) -> None:
    wire = stream([b"first", data(b"second")])
    start = len(sealed(plain_packet(b"first"), NONCE))
    assert aead(KEY).open(NONCE, wire, 0, MOST) == (b"first", start)
    assert aead(KEY).open(advanced(NONCE, 1), memoryview(wire), start, MOST) == (data(b"second"), len(wire))


def test_a_run_ends_where_something_else_begins(aead: Callable[[bytes], Packets]) -> None:
    one = aead(KEY)
    contents = [os.urandom(size) for size in (0, 1, 32_700, 5, 16, 17)]
    for other in (bytes((MSG_CHANNEL_EOF, 0, 0, 0, 7)), data(b"x", channel=8), adjust(1), bytes((MSG_CHANNEL_EXTENDED_DATA,)) + bytes(12)):
        wire = stream([*map(data, contents), other, data(b"after")])
        end = len(stream([*map(data, contents)]))
        assert one.run(NONCE, wire, 0, MOST, ALL) == (b"".join(contents), 7, len(contents), end)
        assert one.run(NONCE, memoryview(wire), 0, MOST, ALL) == (b"".join(contents), 7, len(contents), end)


def test_windows_are_added_up(aead: Callable[[bytes], Packets]) -> None:
    wire = stream([adjust(0xFFFFFFFF), adjust(0xFFFFFFFF), adjust(3), adjust(1, channel=8)])
    end = len(stream([adjust(0)] * 3))
    assert aead(KEY).run(NONCE, wire, 0, MOST, 0) == (2 * 0xFFFFFFFF + 3, 7, 3, end)
    assert aead(KEY).run(advanced(NONCE, 3), wire, end, MOST, 0) == (1, 8, 1, len(wire))


def test_a_run_returns_no_more_than_the_limit(aead: Callable[[bytes], Packets]) -> None:
    wire = stream([data(b"a" * 10), data(b"b" * 10), data(b"c")])
    for limit, brought in ((9, None), (10, 1), (19, 1), (20, 2), (21, 3)):
        run = aead(KEY).run(NONCE, wire, 0, MOST, limit)
        assert (run if run is None else run[2]) == brought, limit


def test_an_unfinished_packet_is_left(aead: Callable[[bytes], Packets]) -> None:
    one, wire = aead(KEY), stream([data(b"one"), data(b"two")])
    first = len(stream([data(b"one")]))
    for end in range(first):
        assert one.run(NONCE, wire[:end], 0, MOST, ALL) is None
        assert one.open(NONCE, wire[:end], 0, MOST) is None
    for end in range(first, len(wire)):
        assert one.run(NONCE, wire[:end], 0, MOST, ALL) == (b"one", 7, 1, first)


def test_a_changed_byte_is_not_authentic(aead: Callable[[bytes], Packets]) -> None:
    """A packet with a changed byte yields nothing; the packets before it are decrypted."""
    one, whole = aead(KEY), stream([data(b"good"), data(b"evil" * 5)])
    first = len(stream([data(b"good")]))
    for place in range(first, len(whole)):
        wire = bytearray(whole)
        wire[place] ^= 1 << place % 8
        assert one.run(NONCE, bytes(wire), 0, MOST, ALL) == (b"good", 7, 1, first)
        assert one.open(advanced(NONCE, 1), bytes(wire), first, MOST) is None
    assert one.run(advanced(NONCE, 1), whole, 0, MOST, ALL) is None  # the nonce of another packet
    assert aead(bytes(16)).open(NONCE, whole, 0, MOST) is None


@pytest.mark.parametrize("padding", [0, 1, 3, 5, 20, 255])
def test_wrong_padding_is_left_to_asyncssh(aead: Callable[[bytes], Packets], padding: int) -> None:
    """A padding length that is larger than the packet, or smaller than RFC 4253 section 6 allows."""
    plain = bytearray(plain_packet(data(b"x" * 11)))
    assert plain[0] != padding
    plain[0] = padding
    assert aead(KEY).run(NONCE, sealed(bytes(plain), NONCE), 0, MOST, ALL) is None
    opened = aead(KEY).open(NONCE, sealed(bytes(plain), NONCE), 0, MOST)
    assert (opened is None) == (padding < 4 or padding + 1 >= len(plain))


@pytest.mark.parametrize("count", [0, 1, 10, 12, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wrong_data_length_is_left_to_asyncssh(aead: Callable[[bytes], Packets], count: int) -> None:
    payload = data(b"x" * 11)
    lying = payload[:5] + count.to_bytes(4, "big") + payload[9:]
    wire = sealed(plain_packet(lying), NONCE)
    assert aead(KEY).run(NONCE, wire, 0, MOST, ALL) is None
    assert aead(KEY).open(NONCE, wire, 0, MOST) == (lying, len(wire))


@pytest.mark.parametrize("length", [0, 1, 15, MOST + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_lengths_that_no_packet_has(aead: Callable[[bytes], Packets], length: int) -> None:
    wire = length.to_bytes(4, "big") + bytes(40_000)
    assert aead(KEY).run(NONCE, wire, 0, MOST, ALL) is None
    assert aead(KEY).open(NONCE, wire, 0, MOST) is None


# -- both ----------------------------------------------------------------------------------------------------------------


@given(
    kinds=st.lists(st.sampled_from(["data", "adjust", "eof", "other channel", "wrong padding", "forged"]), max_size=8),
    sizes=st.lists(st.integers(0, 300), min_size=8, max_size=8),
    cut=st.integers(0, 200),
    limit=st.integers(0, 1_000),
)
def test_the_two_agree_on_any_stream(kinds: list[str], sizes: list[int], cut: int, limit: int) -> None:
    if not gcm.ACCELERATED:
        pytest.skip("relay_gcm is not built")
    wire = b""
    for number, (kind, size) in enumerate(zip(kinds, sizes, strict=False)):
        content = bytes(size)
        others = {"adjust": adjust(size), "eof": bytes((MSG_CHANNEL_EOF, 0, 0, 0, 7)), "other channel": data(content, 9)}
        payload = others.get(kind, data(content))
        plain = plain_packet(payload)
        packet = bytearray(sealed(bytes((plain[0] ^ 4,)) + plain[1:] if kind == "wrong padding" else plain, advanced(NONCE, number)))
        packet[-1] ^= kind == "forged"
        wire += packet
    wire = wire[: len(wire) - cut] if cut < len(wire) else wire
    fast, slow = gcm.Aead(KEY), PythonAead(KEY)
    position, nonce = 0, NONCE
    while True:
        run = fast.run(nonce, wire, position, MOST, limit)
        opened = fast.open(nonce, wire, position, MOST)
        assert run == slow.run(nonce, wire, position, MOST, limit)
        assert opened == slow.open(nonce, wire, position, MOST)
        if run is not None:
            nonce, position = advanced(nonce, run[2]), run[3]
        elif opened is not None:
            nonce, position = advanced(nonce, 1), opened[1]
        else:
            break


@given(content=st.binary(min_size=1, max_size=500), most=st.integers(1, 600))
def test_the_two_seal_alike(content: bytes, most: int) -> None:
    if not gcm.ACCELERATED:
        pytest.skip("relay_gcm is not built")
    fast, slow, noise = gcm.Aead(KEY), PythonAead(KEY), os.urandom(len(content) * NOISE)
    assert fast.data(NONCE, b"head", content, most, noise) == slow.data(NONCE, b"head", content, most, noise)
    assert fast.packet(NONCE, content, noise) == slow.packet(NONCE, content, noise)


def test_arguments_that_the_extension_does_not_take() -> None:
    """Arguments that would be undefined behaviour in C raise."""
    if not gcm.ACCELERATED:
        pytest.skip("relay_gcm is not built")
    one = gcm.Aead(KEY)
    for nonce in (b"", bytes(11), bytes(13)):
        with pytest.raises(ValueError, match="nonce"):
            one.open(nonce, b"", 0, MOST)
        with pytest.raises(ValueError, match="nonce"):
            one.packet(nonce, b"x", bytes(NOISE))
    for start, most in ((-1, MOST), (5, MOST), (0, -1), (0, 1 << 25)):
        with pytest.raises(ValueError, match="start"):
            one.open(NONCE, bytes(4), start, most)
        with pytest.raises(ValueError, match="start"):
            one.run(NONCE, bytes(4), start, most, 1)
    with pytest.raises(ValueError, match="limit"):
        one.run(NONCE, bytes(4), 0, MOST, -1)
    with pytest.raises(TypeError):
        one.open(NONCE, "text", 0, MOST)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        one.run(NONCE)  # type: ignore[call-arg]
    for bad in (bytes(11), bytes(13)):
        with pytest.raises(ValueError, match="nonce"):
            gcm.advanced(bad, 1)
    with pytest.raises(OverflowError):
        gcm.advanced(NONCE, -1)
    with pytest.raises(TypeError):
        gcm.Aead(key=KEY)  # type: ignore[call-arg]


@pytest.mark.parametrize("advanced", [gcm.advanced, gcm._advanced], ids=["in use", "python"])
def test_the_nonce_counts_modulo_two_to_the_64(advanced: Callable[[bytes, int], bytes]) -> None:
    assert advanced(b"abcd" + b"\xff" * 8, 1) == b"abcd" + bytes(8)
    assert advanced(b"abcd" + bytes(8), 257) == b"abcd" + bytes(6) + b"\1\1"


def test_noise_is_used_once() -> None:
    noise = Noise()
    taken = [noise.take(packets) for packets in (1, 2, 300, 1, *[1] * 300)]
    assert [len(one) for one in taken[:4]] == [NOISE, 2 * NOISE, 300 * NOISE, NOISE]
    pieces = [one[start : start + NOISE] for one in taken for start in range(0, len(one), NOISE)]
    assert len(set(pieces)) == len(pieces)
