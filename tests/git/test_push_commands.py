"""The command list of a push: every form that git sends, in any pieces; the relay refuses a list that git could parse differently."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.git.pktline import DATA_MOST_BYTES, FLUSH_PKT, PktLines, Special, pkt_line
from relay.git.push_commands import LIST_MOST_BYTES, BadCommands, CommandList, Report, TooLong, report
from relay.model import RefUpdate
from tests.support.pieces import cuts, pieces

ZERO, A, B = "0" * 40, "a" * 40, "b1" * 20
CAPABILITIES = b" report-status-v2 side-band-64k atomic object-format=sha1 agent=git/2.39.5"
PACK = b"PACK\0\0\0\2\0\0\0\0"


def command(old: str, new: str, ref: str = "refs/heads/main", capabilities: bytes | None = None) -> bytes:
    line = f"{old} {new} {ref}".encode("utf-8", "surrogateescape")
    return pkt_line(line if capabilities is None else line + b"\0" + capabilities)


def certificate(*lines: bytes, end: bytes = b"push-cert-end\n") -> bytes:
    head = [b"certificate version 0.1\n", b"pusher A <a@b> 1 +0000\n", b"nonce 1-x\n", b"\n"]
    packets = [b"push-cert\0" + CAPABILITIES, *head, *lines, end]
    return b"".join(pkt_line(packet) for packet in packets)


SIGNED = (f"{A} {B} refs/heads/main\n".encode(), b"-----BEGIN SSH SIGNATURE-----\n", b"U1NI\n", b"-----END SSH SIGNATURE-----\n")

GOOD: dict[str, tuple[bytes, list[RefUpdate]]] = {
    "update": (command(A, B, capabilities=CAPABILITIES) + b"0000", [RefUpdate(ref="refs/heads/main", old=A, new=B)]),
    "no capabilities": (command(A, B) + b"0000", [RefUpdate(ref="refs/heads/main", old=A, new=B)]),
    "a newline is not the ref's": (
        pkt_line(f"{A} {ZERO} refs/x\n".encode()) + pkt_line(f"{ZERO} {B} refs/y\n".encode()) + b"0000",
        [RefUpdate(ref="refs/x", old=A, new=ZERO), RefUpdate(ref="refs/y", old=ZERO, new=B)],
    ),
    "sha256": (command("c" * 64, "d" * 64, capabilities=b"") + b"0000", [RefUpdate(ref="refs/heads/main", old="c" * 64, new="d" * 64)]),
    "upper case": (command(A.upper(), B.upper()) + b"0000", [RefUpdate(ref="refs/heads/main", old=A, new=B)]),
    "shallow": (
        pkt_line(f"shallow {A}\n".encode()) + pkt_line(f"shallow {B}".encode()) + command(ZERO, B, capabilities=CAPABILITIES) + b"0000",
        [RefUpdate(ref="refs/heads/main", old=ZERO, new=B)],
    ),
    "signed": (certificate(*SIGNED) + b"0000", [RefUpdate(ref="refs/heads/main", old=A, new=B)]),
    "a certificate without a signature": (certificate(SIGNED[0]) + b"0000", [RefUpdate(ref="refs/heads/main", old=A, new=B)]),
    "a name that is not UTF-8": (
        pkt_line(f"{A} {B} refs/".encode() + b"\xff\n") + b"0000",
        [RefUpdate(ref="refs/\udcff", old=A, new=B)],
    ),
    "nothing": (b"0000", []),
}

BAD: dict[str, bytes] = {
    "no packets": b"GET / HTTP/1.1\r\n\r\n",
    "a pack": PACK,
    "no command": pkt_line(b"version 1") + b"0000",
    "an empty packet": b"00040000",
    "a short id": command(A[1:], B),
    "two lengths of ids": command(A, "b" * 64),
    "no ref": pkt_line(f"{A} {B} ".encode()),
    "two spaces": pkt_line(f"{A}  {B} refs/x".encode()),
    "delim for flush": command(A, B) + b"0001",
    "response end for flush": command(A, B) + b"0002",
    "capabilities that come late": command(A, B, capabilities=b"") + command(A, B, "refs/x", b"atomic"),
    "shallow after a command": command(A, B) + pkt_line(f"shallow {A}".encode()),
    "shallow with capabilities": pkt_line(f"shallow {A}".encode() + b"\0atomic"),
    "a certificate after a command": command(A, B, capabilities=b"") + certificate(*SIGNED),
    "a command after a certificate": certificate(*SIGNED) + command(A, B),
    "two certificates": certificate(*SIGNED) + certificate(*SIGNED),
    "a flush in a certificate": pkt_line(b"push-cert\0") + pkt_line(b"\n") + pkt_line(SIGNED[0]) + b"0000",
    "two lines in a packet of a certificate": certificate(SIGNED[0] + SIGNED[0], *SIGNED[1:]),
    "half a line in a packet of a certificate": certificate(SIGNED[0][:50], SIGNED[0][50:], *SIGNED[1:]),
    "a NUL in a certificate": certificate(SIGNED[0][:-1] + b"\0\n", *SIGNED[1:]),
    "a command after the signature": certificate(*SIGNED, SIGNED[0]),
    "two signatures": certificate(*SIGNED, *SIGNED[1:]),
    "a certificate that ends in its header": pkt_line(b"push-cert\0") + pkt_line(b"push-cert-end\n"),
    "text in a certificate": certificate(b"hello\n"),
}


def read(parts: list[bytes], keep: int | None = None) -> CommandList:
    commands = CommandList(keep=keep)
    assert [commands.feed(part) for part in parts][-1]
    return commands


@pytest.mark.parametrize("name", GOOD)
@given(places=cuts)
def test_a_list_is_parsed_in_any_pieces(name: str, places: list[int]) -> None:
    data, updates = GOOD[name]
    commands = read(pieces(data + PACK, places))
    assert (commands.updates, commands.count, commands.truncated) == (updates, len(updates), False)
    assert commands.signed == (b"push-cert" in data)
    assert (b"side-band-64k" in commands.capabilities) == (CAPABILITIES in data)


@pytest.mark.parametrize("name", BAD)
@given(places=cuts)
def test_an_invalid_list_is_refused_in_any_pieces(name: str, places: list[int]) -> None:
    commands = CommandList()
    with pytest.raises(BadCommands) as caught:
        for part in pieces(BAD[name] + bytes(4), places):
            assert not commands.feed(part)
    assert not isinstance(caught.value, TooLong)
    assert commands.truncated


@pytest.mark.parametrize("name", GOOD)
def test_a_list_is_not_complete_before_its_end(name: str) -> None:
    data = GOOD[name][0]
    commands = CommandList()
    assert not commands.begun and not commands.feed(data[:-1]) and commands.begun
    assert commands.feed(data[-1:]) and commands.feed(b"anything")


@pytest.mark.parametrize("step", [1 << 30, 10_000])
def test_a_list_of_the_greatest_size_and_a_longer_one(step: int) -> None:
    line = command(A, B)
    most = (LIST_MOST_BYTES - 4) // len(line)
    for count in (most, most + 1):
        data = line * count + b"0000" + bytes(100_000)
        commands = CommandList(keep=3)
        parts = [data[start : start + step] for start in range(0, len(data), step)]
        if count == most:
            assert any(commands.feed(part) for part in parts)
            assert (commands.count, len(commands.updates), commands.truncated) == (most, 3, False)
        else:
            with pytest.raises(TooLong):
                for part in parts:
                    commands.feed(part)
            assert commands.truncated and commands.count == most


@pytest.mark.parametrize(("old", "new", "change"), [(ZERO, A, "create"), (A, B, "update"), (A, ZERO, "delete"), (ZERO, ZERO, "delete")])
def test_changes(old: str, new: str, change: str) -> None:
    assert RefUpdate(ref="r", old=old, new=new).change == change


# -- the report --------------------------------------------------------------------------------------------------------------


def lines(data: bytes) -> list[bytes]:
    """The packets up to a flush-pkt; asserts that nothing follows it."""
    reader, found = PktLines(), list[bytes]()
    reader.feed(data)
    while isinstance(packet := reader.take(), bytes):
        found.append(packet)
    assert packet is Special.FLUSH and not reader.waiting
    return found


UPDATES = [RefUpdate(ref="refs/heads/main", old=A, new=B), RefUpdate(ref="refs/\udcff", old=A, new=B)]
TOLD = [b"unpack ok\n", b"ng refs/heads/main no\n", b"ng refs/\xff nor this\n"]


@pytest.mark.parametrize("status", [b"report-status", b"report-status-v2"])
def test_the_report(status: bytes) -> None:
    refusals = list(zip(UPDATES, ["no", "nor this"], strict=True))
    assert report(refusals, frozenset({b"atomic"})) is None
    assert report(refusals, frozenset({b"side-band-64k"})) is None
    plain = report(refusals, frozenset({status}))
    banded = report(refusals, frozenset({status, b"side-band-64k"}))
    assert plain is not None and banded is not None
    assert lines(plain) == TOLD
    [band] = lines(banded)
    assert band == b"\1" + plain


@given(st.integers(1, 2000), st.integers(1, DATA_MOST_BYTES - 200))
def test_a_report_of_any_size_fits_its_packets(count: int, size: int) -> None:
    update = RefUpdate(ref="r" * min(size, 200_000 // count + 1), old=A, new=B)
    refusals = [(update, "not pushed: another ref of this push was refused")] * count
    banded = report(refusals, frozenset({b"report-status", b"side-band-64k"}))
    assert banded is not None
    bands = lines(banded)
    assert all(band[:1] == b"\1" for band in bands)
    assert len(lines(b"".join(band[1:] for band in bands))) == count + 1


# -- git's own reading -------------------------------------------------------------------------------------------------------


def told_by_git(bare: Path, stream: bytes) -> set[bytes] | None:
    """The refs in git-receive-pack's report; None if git did not accept the stream as a push."""
    git = shutil.which("git")
    assert git is not None
    done = subprocess.run([git, "receive-pack", bare], input=stream, capture_output=True, check=False, timeout=60)
    reader = PktLines()
    reader.feed(done.stdout)
    while reader.take() is not Special.FLUSH:
        pass
    if done.returncode or not reader.waiting:
        return None
    found = set()
    while isinstance(packet := reader.take(), bytes):
        status, _, rest = packet.rstrip(b"\n").partition(b" ")
        if status in (b"ok", b"ng"):
            found.add(rest.partition(b" ")[0])
    return found


def changed(data: bytes, draw: random.Random) -> bytes:
    """A command list with a few of its packets' bytes, or whole packets, changed; the lengths are right again afterwards."""
    packets, reader = list[bytes | Special](), PktLines()
    reader.feed(data)
    while (packet := reader.take()) is not None:
        packets.append(packet)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(packets))
        one = packets[at]
        match draw.randrange(5):
            case 0:
                packets.insert(draw.randrange(len(packets)), one)
            case 1 if len(packets) > 1:
                del packets[at]
            case 2:
                packets[at] = draw.choice(list(Special))
            case _ if isinstance(one, bytes):
                where = draw.randint(0, len(one))
                part = draw.choice([b"\0", b"\n", b" ", b"refs/heads/evil", b"\0report-status", b"push-cert", one[: draw.randint(0, 90)]])
                packets[at] = one[:where] + part + one[where + draw.choice([0, len(part)]) :]
    return b"".join(b"%04d" % one.value if isinstance(one, Special) else pkt_line(one) for one in packets)


def test_git_parses_the_same_list(tmp_path: Path) -> None:
    """git may refuse a list that the relay passes. Each list only deletes, so that no pack has to follow."""
    git = shutil.which("git")
    assert git is not None
    bare = tmp_path / "bare.git"
    subprocess.run([git, "init", "-q", "--bare", bare], check=True)
    subprocess.run([git, "-C", bare, "config", "receive.certNonceSeed", "x"], check=True)
    deletes = command(A, ZERO, "refs/heads/a", b"report-status") + command(A, ZERO, "refs/heads/b")
    lines = [f"{A} {ZERO} refs/heads/{name}\n".encode() for name in "ab"]
    signed = certificate(*lines, *SIGNED[1:]).replace(CAPABILITIES, b"report-status".ljust(len(CAPABILITIES)))
    draw, compared = random.Random(1), 0
    for number in range(250):
        stream = (deletes if number % 2 else signed) + b"0000"
        stream = changed(stream, draw) if number > 1 else stream
        found = told_by_git(bare, stream)
        commands = CommandList()
        try:
            complete = commands.feed(stream)
        except BadCommands:
            continue
        if complete and found is not None:
            mine = {one.ref.encode("utf-8", "surrogateescape") for one in commands.updates}
            # git's report shows a name up to its first space
            assert found == {ref.partition(b" ")[0] for ref in mine}, stream
            compared += 1
    assert compared > 20, "hardly anything was compared"


# -- the answer


WORDS = b"".join(pkt_line(line) for line in (b"unpack ok\n", b"ok refs/heads/main\n", b"ng refs/heads/x hook declined\n"))


@given(
    st.booleans(),
    st.lists(st.binary(min_size=1, max_size=50), max_size=4),
    st.lists(st.integers(0, 600), max_size=8),
    st.integers(1, 200),
)
def test_a_report_is_whole_at_its_flush_pkt_and_not_before(banded: bool, hooks: list[bytes], cuts: list[int], band: int) -> None:
    told = WORDS + FLUSH_PKT
    if banded:
        pieces = [pkt_line(b"\1" + told[start : start + band]) for start in range(0, len(told), band)]
        said = b"".join(pkt_line(b"\2" + words) for words in hooks) + b"".join(pieces)
    else:
        said = told
    report = Report(frozenset({b"report-status"} | ({b"side-band-64k"} if banded else set())))
    edges = sorted({cut for cut in cuts if 0 < cut < len(said)})
    for begin, end in zip([0, *edges], [*edges, len(said)], strict=True):
        assert not report.whole
        report.feed(memoryview(said)[begin:end])
    assert report.whole
    report.feed(b"what a hook says, and no packet")
    assert report.whole


@pytest.mark.parametrize("said", [b"no packet at all", b"0003", pkt_line(b"\2hook") + FLUSH_PKT, pkt_line(b"\1nope") + FLUSH_PKT])
def test_an_invalid_report_is_never_whole(said: bytes) -> None:
    report = Report(frozenset({b"report-status", b"side-band-64k"}))
    report.feed(said)
    report.feed(pkt_line(b"\1" + WORDS + FLUSH_PKT))
    assert not report.whole


def test_without_the_capability_there_is_no_report() -> None:
    report = Report(frozenset({b"side-band-64k"}))
    report.feed(pkt_line(b"\1" + WORDS + FLUSH_PKT))
    assert not report.whole
