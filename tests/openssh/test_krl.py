"""Revocation lists: parsed as ssh-keygen parses them, and refused as a whole for any unknown part."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.keys.certificate import parse_certificate
from relay.openssh import krl as module
from relay.openssh.krl import MAGIC, BadKrl, Krl, Serials, Span, looks_like_krl, parse_krl
from tests.support.certificates import Ca, blob, revoked_by_openssh
from tests.support.keys import Key, make_key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("krl")


@pytest.fixture(scope="module")
def ca(folder: Path) -> Ca:
    return Ca(folder, "ca")


@pytest.fixture(scope="module")
def other(folder: Path) -> Ca:
    return Ca(folder, "other")


@pytest.fixture(scope="module")
def alice(folder: Path) -> Key:
    return make_key(folder, "alice")


def revokes(krl: Krl, certificate: Path) -> bool:
    """Whether sshd would find it revoked: the certificate, its key, or the key of its CA."""
    found = parse_certificate(blob(certificate))
    return krl.revokes_certificate(found.ca, found.serial, found.key_id) or krl.revokes_key(found.key) or krl.revokes_key(found.ca)


def string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def section(kind: int, data: bytes) -> bytes:
    return bytes([kind]) + string(data)


def made(*sections: bytes) -> bytes:
    return MAGIC + struct.pack("!IQQQ", 1, 3, 0, 0) + string(b"") + string(b"comment") + b"".join(sections)


def kinds(data: bytes) -> set[int]:
    """The types of the sections, and of the subsections of certificate sections."""
    found, at = set(), 36
    for _ in range(2):
        at += 4 + int.from_bytes(data[at : at + 4], "big")
    while at < len(data):
        kind, size = data[at], int.from_bytes(data[at + 1 : at + 5], "big")
        body = data[at + 5 : at + 5 + size]
        found.add(kind)
        at += 5 + size
        if kind == 1:
            part = 0
            for _ in range(2):
                part += 4 + int.from_bytes(body[part : part + 4], "big")
            while part < len(body):
                found.add(body[part])
                part += 5 + int.from_bytes(body[part + 1 : part + 5], "big")
    return found


# -- lists by ssh-keygen ---------------------------------------------------------------------------------------------------

SPARSE = [3, 9_000_000_000, 77_000_000_000_000, (1 << 64) - 1]
DENSE = [number for number in range(1000, 1400) if number % 3]
EVERY_KIND = {
    "serials": ([f"serial: {serial}" for serial in SPARSE], {0x20}),
    "range": (["serial: 5000-6000000"], {0x21}),
    "bitmap": ([f"serial: {serial}" for serial in DENSE], {0x22}),
    "key id": (["id: alice", "id: bob the builder"], {0x23}),
    "all of them": ([*(f"serial: {serial}" for serial in SPARSE + DENSE), "serial: 5000-6000000", "id: bob"], {0x20, 0x21, 0x22, 0x23}),
}


@pytest.mark.parametrize("name", EVERY_KIND)
def test_certificates_are_revoked_as_ssh_keygen_says(folder: Path, ca: Ca, other: Ca, alice: Key, name: str) -> None:
    specification, expected = EVERY_KIND[name]
    path = ca.revoke(folder / f"certificates-{name}", *specification)
    assert kinds(path.read_bytes()) == {1} | expected, "the list is of the kind that this is about"
    krl = parse_krl(path.read_bytes())
    serials = [0, 1, 3, 4, 999, 1000, 1001, 1002, 1399, 1400, 5000, 6_000_001, 9_000_000_000, (1 << 64) - 2, (1 << 64) - 1]
    answers = set()
    for serial in serials:
        certificate = ca.sign(alice, "carol", serial=serial)
        assert revokes(krl, certificate) == revoked_by_openssh(path, certificate), serial
        answers.add(revokes(krl, certificate))
    for key_id in ("alice", "bob", "bob the builder", "Alice"):
        certificate = ca.sign(alice, key_id)
        assert revokes(krl, certificate) == revoked_by_openssh(path, certificate), key_id
        answers.add(revokes(krl, certificate))
        assert not revokes(krl, other.sign(alice, key_id, serial=60)), "another CA's numbers are its own"
    assert answers == {True, False}


@pytest.mark.parametrize("how", ["key", "sha1", "sha256", "hash", "file"])
def test_keys_are_revoked_as_ssh_keygen_says(folder: Path, ca: Ca, other: Ca, alice: Key, how: str) -> None:
    path = folder / f"keys-{how}"
    if how == "file":
        ca.revoke(path, files=[alice.public, other.key.public])
    elif how == "hash":
        ca.revoke(path, f"hash: {alice.fingerprint}", f"hash: {other.fingerprint}")
    else:
        ca.revoke(path, *(f"{how}: {key.line}" for key in (alice, other.key)))
    assert kinds(path.read_bytes()) == {{"key": 2, "file": 2, "sha1": 3, "sha256": 5, "hash": 5}[how]}
    krl = parse_krl(path.read_bytes())
    bob = make_key(folder, "bob")
    for key in (alice, bob, ca.key, other.key):
        assert krl.revokes_key(blob(key.public)) == revoked_by_openssh(path, key.public) == (key in (alice, other.key))
    for certificate, expected in (
        (ca.sign(alice, serial=7), True),  # its key is revoked
        (other.sign(bob, serial=7), True),  # the key of its CA
        (ca.sign(bob, serial=7), False),
    ):
        assert revokes(krl, certificate) == revoked_by_openssh(path, certificate) == expected


def test_a_certificate_given_as_a_file_and_a_list_that_is_updated(folder: Path, ca: Ca, alice: Key) -> None:
    numbered, named = ca.sign(alice, "numbered", serial=12), ca.sign(alice, "named")
    path = ca.revoke(folder / "files", files=[numbered])
    assert [revokes(parse_krl(path.read_bytes()), one) for one in (numbered, named)] == [True, False]
    ca.revoke(path, files=[named], update=True)
    assert [revokes(parse_krl(path.read_bytes()), one) for one in (numbered, named)] == [True, True]


def test_an_empty_list_revokes_nothing(folder: Path, ca: Ca, alice: Key) -> None:
    path = ca.revoke(folder / "empty")
    krl = parse_krl(path.read_bytes())
    assert krl == Krl() and not revokes(krl, ca.sign(alice, serial=1))
    assert looks_like_krl(path.read_bytes()) and not looks_like_krl(alice.line.encode())


# -- lists that ssh-keygen never writes ------------------------------------------------------------------------------------

KEY = string(b"ssh-ed25519") + string(bytes(32))
ANY = string(b"") + string(b"")


def test_a_list_for_any_ca() -> None:
    krl = parse_krl(made(section(1, ANY + section(0x20, struct.pack("!QQ", 7, 5)))))
    assert krl.version == 3
    assert [krl.revokes_certificate(KEY, serial, b"x") for serial in (5, 6, 7)] == [True, False, True]


def test_sections_of_the_same_kind_add_up() -> None:
    one, two = ANY + section(0x20, struct.pack("!Q", 7)), ANY + section(0x23, string(b"bob")) + section(0x20, struct.pack("!Q", 5))
    krl = parse_krl(made(section(1, one), section(1, two), section(2, string(KEY)), section(2, string(KEY + b"x"))))
    assert [krl.revokes_certificate(b"", serial, b"") for serial in (5, 6, 7)] == [True, False, True]
    assert krl.revokes_certificate(b"", 0, b"bob") and krl.revokes_key(KEY) and krl.revokes_key(KEY + b"x")


def test_serial_number_zero_is_none() -> None:
    krl = parse_krl(made(section(1, ANY + section(0x22, struct.pack("!Q", 0) + string(b"\x07")))))
    assert [krl.revokes_certificate(KEY, serial, b"") for serial in range(4)] == [False, True, True, False]


def test_signatures_and_uncritical_extensions_are_ignored() -> None:
    extension = string(b"x@example.com") + b"\x00" + string(b"data")
    data = made(section(255, extension), section(1, ANY + section(0x39, extension)), section(4, KEY) + string(b"signature"))
    assert parse_krl(data) == Krl(version=3, issued={b"": module.Issued()})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "is cut off"),
        (b"SSHKRL\n\x01" + bytes(40), "does not begin as"),
        (MAGIC + struct.pack("!I", 2) + bytes(32), "has the format version 2"),
        (made(b"\x01\x00\x00\x00\x10"), "is cut off"),
        (made(section(6, b"")), "section of type 6"),
        (made(section(1, ANY + section(0x24, b""))), "section of type 36 about certificates"),
        (made(section(2, string(b""))), "an empty key"),
        (made(section(3, string(bytes(32)))), "fingerprint of 32 bytes, must have 20"),
        (made(section(5, string(bytes(20)))), "fingerprint of 20 bytes, must have 32"),
        (made(section(5, string(bytes(32))[:-1])), "is cut off"),
        (made(section(255, string(b"x") + b"\x01" + string(b""))), "needs the extension 'x'"),
        (made(section(1, ANY + section(0x39, string(b"x") + b"\x01" + string(b"")))), "needs the extension 'x'"),
        (made(section(255, string(b"x") + b"\x00" + string(b"") + b"y")), "belong to nothing"),
        (made(section(4, KEY) + string(b"signature"), section(2, string(KEY))), "behind its signature"),
        (made(section(1, ANY + section(0x20, struct.pack("!Q", 0)))), "serial number 0"),
        (made(section(1, ANY + section(0x20, bytes(7)))), "is cut off"),
        (made(section(1, ANY + section(0x21, struct.pack("!QQ", 0, 5)))), "serial number 0"),
        (made(section(1, ANY + section(0x21, struct.pack("!QQ", 6, 5)))), "ends before it begins"),
        (made(section(1, ANY + section(0x21, struct.pack("!QQQ", 4, 5, 6)))), "belong to nothing"),
        (made(section(1, ANY + section(0x22, struct.pack("!Q", (1 << 64) - 1) + string(b"\x02")))), "beyond the last"),
        (made(section(1, ANY + section(0x22, struct.pack("!Q", 1) + string(b"\x02") + b"x"))), "belong to nothing"),
    ],
)
def test_a_list_with_an_unknown_part_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(BadKrl, match=text):
        parse_krl(data)


@pytest.mark.parametrize("name", list(EVERY_KIND))
def test_a_list_that_is_cut_anywhere_is_refused_or_ends_between_sections(folder: Path, ca: Ca, name: str) -> None:
    data = ca.revoke(folder / f"cut-{name}", *EVERY_KIND[name][0]).read_bytes()
    whole = [end for end in range(len(data)) if not _refused(data[:end])]
    assert len(whole) == 1, "only the header by itself is a list: there is one section"


def _refused(data: bytes) -> bool:
    try:
        parse_krl(data)
    except BadKrl:
        return True
    return False


# -- lookups take few steps ------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 300), max_size=20),
    st.lists(st.tuples(st.integers(0, 300), st.one_of(st.integers(0, 40), st.binary(min_size=1, max_size=6))), max_size=20),
)
def test_serials_are_those_of_their_parts(singles: list[int], spans: list[tuple[int, int | bytes]]) -> None:
    serials, expected = Serials(), set(singles)
    serials.singles.extend(singles)
    for first, what in spans:
        if isinstance(what, int):
            serials.spans.append(Span(first, first + what, None))
            expected |= set(range(first, first + what + 1))
        else:
            serials.spans.append(Span(first, first + 8 * len(what) - 1, what))
            expected |= {first + bit for bit in range(8 * len(what)) if int.from_bytes(what, "big") >> bit & 1}
    serials.settle()
    assert {serial for serial in range(400) if serial in serials} == expected


def test_a_look_up_among_a_hundred_thousand_ranges_takes_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = b"".join(section(0x21, struct.pack("!QQ", 10 * number + 1, 10 * number + 4)) for number in range(100_000))
    krl = parse_krl(made(section(1, ANY + parts)))
    asked = 0
    real = Span.holds

    def holds(span: Span, serial: int) -> bool:
        nonlocal asked
        asked += 1
        return real(span, serial)

    monkeypatch.setattr(Span, "holds", holds)
    for number in (0, 50_000, 99_999):
        assert krl.revokes_certificate(KEY, 10 * number + 2, b"") and not krl.revokes_certificate(KEY, 10 * number + 8, b"")
    assert asked == 3


def test_fingerprints_are_of_the_key_alone() -> None:
    krl = parse_krl(made(section(3, string(hashlib.sha1(KEY).digest()))))
    assert krl.revokes_key(KEY) and not krl.revokes_key(KEY + b"x")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_list_or_refused(data: bytes) -> None:
    for candidate in (data, made(data), made(section(1, ANY + data))):
        _refused(candidate)
