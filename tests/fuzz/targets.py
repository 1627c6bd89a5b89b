"""Invariants for any bytes: each target takes an input, parses it and asserts; the unit tests use the same invariants."""

from __future__ import annotations

import random
import shlex
import socket
import struct
import unicodedata
from collections.abc import Callable, Iterator

from relay.admission.proxy_protocol import V1_LIMIT, V2_LIMIT, V2_SIGNATURE, BadHeader, Need, looks_like
from relay.admission.proxy_protocol import parse as parse_header
from relay.errors import Malformed, Refused
from relay.git.command import PROTOCOL_LIMIT, REPOSITORY_LIMIT, canonical, parse, valid_protocol
from relay.git.conversation import KEPT_MOST_BYTES, REQUEST_MOST_BYTES, VERSION_2, Conversation, HostState, Kind
from relay.git.fetch_request import FetchRequest
from relay.git.pktline import pkt_line
from relay.git.push_commands import BadCommands, CommandList, report
from relay.git.refs import is_ref_name
from relay.git.v2_request import Request, fetch_of
from relay.keys import NotAccepted, identity_fault
from relay.keys.authorized_keys import matches, read_line
from relay.keys.certificate import USER, check_claims, check_principals, parse_certificate
from relay.model import SERVICES
from relay.openssh.krl import MAGIC as KRL_MAGIC
from relay.openssh.krl import SERIAL_LAST, BadKrl, looks_like_krl, parse_krl
from tests.fuzz import login

BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
PREFIXES_EVERY = 64  # the number of prefixes that are tried of a long header, to keep the executions quick


def controls(text: str) -> bool:
    """Whether `text` has characters that must reach neither a terminal, nor a log line, nor a shell."""
    return any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in BIDIRECTIONAL for c in text)


def forbidden(name: str) -> bool:
    """Whether `name` is anything that a canonical repository name must not be."""
    parts = name.split("/")
    return (
        any(part in ("", ".", "..", ".git") or part[0] in "-~" for part in parts)
        or name.endswith(".git")
        or "\\" in name
        or controls(name)
        or len(name.encode()) > REPOSITORY_LIMIT
    )


def check_command(line: str) -> None:
    """The parser returns a clean command, or refuses with one printable sentence."""
    try:
        command = parse(line)
    except Refused as refused:
        assert refused.message.startswith("relay: ")
        for shown in (refused.message, str(refused)):
            assert len(shown) < 250
            assert not controls(shown)
        return
    assert command.service in SERVICES
    assert not forbidden(command.repository)
    assert (command.operation is not None) == command.service.startswith("git-lfs-")
    assert (command.needs == "write") == (command.service == "git-receive-pack" or command.operation == "upload")
    path = f"/srv/git/{command.repository}.git"
    assert shlex.split(command.line(path)) == [command.service, path, *([command.operation] if command.operation else [])]


def check_name(path: str) -> None:
    """A canonical name is clean, and its own canonical name."""
    try:
        name = canonical(path)
    except Malformed:
        return
    assert not forbidden(name)
    assert canonical(name) == name


def check_protocol(value: bytes) -> None:
    text = valid_protocol(value)
    assert text is None or (text.encode() == value and 0 < len(value) <= PROTOCOL_LIMIT and " " not in text and not controls(text))


def check_header(data: bytes) -> None:
    """A header, a need for more or a refusal, the same for every division of the input; bytes beyond the header do not matter."""
    refused = False
    for end in range(0, len(data) + 1, 1 + len(data) // PREFIXES_EVERY):
        try:
            answer = parse_header(data[:end])
        except BadHeader:
            refused = True
            assert end, "nothing was sent and it is refused"
            continue
        assert not refused, "a prefix of it was refused"
        if end:
            assert looks_like(data[:end]) is not False
        if isinstance(answer, Need):
            assert answer.more > 0
            assert end + answer.more <= (V1_LIMIT if data[:1] == b"P" else V2_LIMIT)
        else:
            assert 15 <= answer.consumed <= end
            assert parse_header(data[: answer.consumed]) == answer, "what follows a header changed it"
            assert (answer.source is None) == (answer.destination is None)
            assert not (answer.local and answer.source)


def check_push(data: bytes, cut: int) -> None:
    """A list or a refusal, the same if the input comes in two pieces; git would get the bytes that the relay has parsed, and no others."""
    whole, listed = _read_push(data)
    halves, listed_in_halves = _read_push(data[:cut], data[cut:])
    assert (listed, whole.updates, whole.count, whole.capabilities) == (
        listed_in_halves,
        halves.updates,
        halves.count,
        halves.capabilities,
    )
    assert whole.count == len(whole.updates)
    for update in whole.updates:
        assert len(update.old) == len(update.new) in (40, 64)
        assert not set(update.old + update.new) - set("0123456789abcdef")
        name = update.ref.encode("utf-8", "surrogateescape")
        assert name and b"\0" not in name
        assert name in data
        if is_ref_name(update.ref):
            assert not any(character in update.ref for character in "\x00\n\x1b\x7f ")
    if listed:
        refused = report([(update, "no") for update in whole.updates], frozenset({b"report-status"}))
        assert refused is not None and refused.count(b"ng ") >= whole.count


def _read_push(*parts: bytes) -> tuple[CommandList, bool]:
    commands, complete = CommandList(), False
    for part in parts:
        try:
            complete = commands.feed(part)
        except BadCommands:
            assert commands.truncated
            return commands, False
    return commands, complete


def check_fetch(data: bytes, cut: int) -> None:
    """The same result in two pieces, which later data does not change."""
    whole, halves = FetchRequest(), FetchRequest()
    known = whole.feed(data)
    assert (halves.feed(data[:cut]), halves.feed(data[cut:]))[1] == known
    assert (whole.kind, whole.version) == (halves.kind, halves.version)
    before = whole.kind
    if known:
        assert whole.feed(data) and whole.kind == before


def check_conversation(turns: list[bytes], cut: int, spooling: bool) -> None:
    """Host and client take turns: the host's bytes are passed on or held, and turns in two pieces give the same result."""
    whole, requests, said = _converse(turns, spooling)
    halves, requests_in_halves, said_in_halves = _converse([*turns], spooling, cut)
    assert (requests, said, whole.host, whole.client, whole.reason) == (
        requests_in_halves,
        said_in_halves,
        halves.host,
        halves.client,
        halves.reason,
    )
    assert whole.take_held() == halves.take_held()
    assert sum(len(request.raw) for request in requests) <= sum(map(len, turns[1::2]))
    for request in requests:
        assert len(request.raw) <= REQUEST_MOST_BYTES
        if (asked := fetch_of(request)) is not None:
            assert (asked.key("main", "/app", "", b"tags") is None) == bool(asked.not_kept)
    if halves.replayable:
        owed = halves.reopen()
        assert len(owed) <= REQUEST_MOST_BYTES
        for turn in turns[::2]:
            halves.host_data(turn)


def _converse(turns: list[bytes], spooling: bool, cut: int = 0) -> tuple[Conversation, list[Request], list[tuple[Kind, bytes]]]:
    conversation, requests = Conversation(keep_refs=True), list[Request]()
    said: list[tuple[Kind, bytes]] = []
    heard = b""
    for number, turn in enumerate(turns):
        for part in (turn[: cut % (len(turn) + 1)], turn[cut % (len(turn) + 1) :]):
            if number % 2:
                requests += conversation.client_data(part)
                continue
            conversation.spooling = spooling
            heard += part
            for kind, data, _ in conversation.host_data(part):
                before = said.pop()[1] if said and said[-1][0] is kind else b""
                said.append((kind, before + bytes(data)))
        assert len(conversation.partial) <= REQUEST_MOST_BYTES or conversation.aside
        assert conversation.host is not HostState.DIFFERENT
    left = b"".join(data for _, data in said)
    assert heard.startswith(left) and len(heard) - len(left) <= KEPT_MOST_BYTES
    return conversation, requests, said


def conversation(data: bytes) -> None:
    """Turns separated by bytes that text packets do not have; also with valid lengths, and after a valid advertisement."""
    turns = data.split(b"\xfe")
    cut, spooling = (data[-1] if data else 0), len(data) % 2 == 0
    packets = [_packets(turn) for turn in turns]
    for spoken in (turns, packets, [VERSION_2 + b"0000", *packets]):
        check_conversation(spoken, cut, spooling)


def push(data: bytes) -> None:
    """A client's input to git-receive-pack, cut at a place that the input selects; also with valid lengths, which are seldom guessed."""
    for stream in (data, _packets(data)):
        check_push(stream, data[-1] * len(stream) // 256 if data else 0)


def fetch(data: bytes) -> None:
    for stream in (data, _packets(data)):
        check_fetch(stream, data[-1] * len(stream) // 256 if data else 0)


def _packets(data: bytes) -> bytes:
    """Makes a packet of each part between carriage returns, a flush-pkt of an empty part."""
    return b"".join(pkt_line(part) if part else b"0000" for part in data.split(b"\r"))


def command(data: bytes) -> None:
    """The string of an exec request and a GIT_PROTOCOL, as bytes from the wire."""
    text = data.decode("utf-8", "surrogateescape")
    check_command(text)
    check_command(f"git-upload-pack {text}")
    check_command(f"git-lfs-transfer '{text}' upload")
    check_name(text)
    check_protocol(data)


def proxy(data: bytes) -> None:
    """The first bytes of a connection; also after version 2's signature, which a fuzzer seldom guesses."""
    check_header(data)
    check_header(V2_SIGNATURE + data)


def krl(data: bytes) -> None:
    """A revocation list: accepted as a whole or refused in one line; an accepted list revokes all its entries."""
    for candidate in (data, _krl(data), _krl(_section(1, _string(b"") * 2 + data))):
        try:
            found = parse_krl(candidate)
        except BadKrl as error:
            assert str(error).isprintable() and len(str(error)) < 200
            continue
        assert looks_like_krl(candidate)
        assert all(found.revokes_key(key) for key in found.keys)
        assert not found.revokes_certificate(b"", 0, b"") or b"" in found.issued[b""].key_ids
        for ca, issued in found.issued.items():
            spans = issued.serials.spans
            assert all(1 <= serial <= SERIAL_LAST and found.revokes_certificate(ca, serial, b"") for serial in issued.serials.singles)
            assert all(found.revokes_certificate(ca, span.last, b"") for span in spans if span.last)
            assert all(0 <= span.first <= span.last <= SERIAL_LAST for span in spans)


def certificate(data: bytes) -> None:
    """A certificate, or a field of one: refused in one line, or accepted with the claims of its fields."""
    for candidate in (data, _certificate(principals=data), _certificate(critical=data)):
        try:
            found = parse_certificate(candidate)
            check_claims(found, "192.0.2.7", 1_000_000_000)
            check_principals(found, ["git"])
        except NotAccepted as no:
            assert str(no).isprintable() and len(str(no)) < 1000
            continue
        assert found.kind == USER and b"git" in found.principals and set(found.critical) <= {b"source-address"}
        assert found.valid_after <= 1_000_000_000 < found.valid_before
        assert str(found).isprintable() and candidate.startswith(found.signed) and candidate.endswith(found.signature)


def options(data: bytes) -> None:
    """A line of an authorized_keys file: an accepted line has only known options, and a valid identity."""
    text = data.decode("utf-8", "surrogateescape")
    for candidate in (text, f"{text} {_KEY_LINE}", f'from="{text}" {_KEY_LINE}', f'command="{text}" {_KEY_LINE}'):
        try:
            line = read_line(candidate)
        except ValueError as error:
            assert 0 < len(str(error)) < 700
            continue
        assert line.fingerprint.startswith("SHA256:")
        assert line.identity is None or identity_fault(line.identity) is None
        assert line.authority or not line.principals
        if line.sources is not None:
            assert line.sources and not matches("nowhere", line.sources)


_KEY_LINE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _section(kind: int, data: bytes) -> bytes:
    return bytes([kind]) + _string(data)


def _krl(sections: bytes) -> bytes:
    return KRL_MAGIC + struct.pack("!IQQQ", 1, 1, 0, 0) + bytes(8) + sections


def _certificate(principals: bytes = _string(b"git"), critical: bytes = b"", kind: int = USER) -> bytes:
    key = _string(b"ssh-ed25519") + _string(bytes(32))
    body = _string(b"ssh-ed25519-cert-v01@openssh.com") + _string(b"nonce") + _string(bytes(32)) + struct.pack("!QI", 7, kind)
    body += _string(b"alice") + _string(principals) + struct.pack("!QQ", 0, SERIAL_LAST) + _string(critical) + bytes(8)
    return body + _string(key) + _string(_string(b"ssh-ed25519") + _string(bytes(64)))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "command": command,
    "proxy": proxy,
    "krl": krl,
    "certificate": certificate,
    "options": options,
    "push": push,
    "fetch": fetch,
    "login": login.check_login,
    "conversation": conversation,
}

_INET = socket.inet_aton("192.0.2.7") + socket.inet_aton("198.51.100.1") + struct.pack("!HH", 56324, 22)
_INET6 = bytes(range(32)) + struct.pack("!HH", 1, 22)

_OLD, _NEW = b"a" * 40, b"0" * 40
_PUSHED = pkt_line(_OLD + b" " + _NEW + b" refs/heads/main\0 report-status-v2 side-band-64k atomic object-format=sha1 agent=git/2.39")
_CERTIFICATE = (b"push-cert\0report-status", b"certificate version 0.1\n", b"pusher A <a@b> 1 +0000\n", b"nonce 1-x\n", b"\n")
_SIGNED = (_OLD + b" " + _NEW + b" refs/heads/main\n", b"-----BEGIN SSH SIGNATURE-----\n", b"U1\n", b"push-cert-end\n")
_LS = pkt_line(b"command=ls-refs\n") + b"0001" + pkt_line(b"peel\n") + b"0000"
_WANT, _HAVE = pkt_line(b"want " + _OLD + b" thin-pack\n"), pkt_line(b"have " + _OLD + b"\n")

_ADVERTISED = pkt_line(b"agent=git/2.39.5\n") + pkt_line(b"ls-refs=unborn\n") + pkt_line(b"fetch=shallow filter\n") + b"0000"
_FETCHED = pkt_line(b"command=fetch") + b"0001" + pkt_line(b"want " + _OLD + b"\n") + pkt_line(b"deepen 1") + pkt_line(b"done\n") + b"0000"
_NEGOTIATED = pkt_line(b"command=fetch") + b"0001" + pkt_line(b"want " + _OLD) + _HAVE + b"0000"
_ACKNOWLEDGED = pkt_line(b"acknowledgments\n") + pkt_line(b"ACK " + _OLD + b"\n")
_SIDEBANDS = pkt_line(b"\2Counting") + pkt_line(b"\1") + pkt_line(b"\1PACK") + b"0000"

SEEDS: dict[str, list[bytes]] = {
    "login": login.SEEDS,
    "push": [
        _PUSHED + pkt_line(_NEW + b" " + _OLD + b" refs/tags/v1\n") + b"0000PACK\0\0\0\2",
        pkt_line(b"shallow " + _OLD) + _PUSHED + b"0000",
        b"".join(map(pkt_line, (*_CERTIFICATE, *_SIGNED))) + b"0000",
        pkt_line(b"c" * 64 + b" " + b"d" * 64 + b" refs/x\0atomic") + b"0000",
        b"0000",
        b"0001000200030004fff0fff1",
        b"\r".join((*_CERTIFICATE, *_SIGNED, b"", b"PACK")),
        b"\r".join((b"shallow " + _OLD, _SIGNED[0] + b"\0atomic", _SIGNED[0], b"", b"PACK")),
    ],
    "fetch": [
        _LS + pkt_line(b"command=fetch") + b"0001" + _WANT + pkt_line(b"done\n") + b"0000",
        pkt_line(b"command=fetch") + b"0001" + _WANT + _HAVE + b"0000",
        _WANT + b"0000" + _HAVE + b"0000" + pkt_line(b"done\n"),
        b"\r".join((b"command=ls-refs", b"peel", b"", b"command=fetch", b"want " + _OLD, b"have " + _OLD, b"done", b"")),
        b"\r".join((b"want " + _OLD, b"", b"have " + _OLD, b"done")),
        _WANT + pkt_line(b"shallow " + _OLD) + pkt_line(b"deepen 1") + b"0000" + pkt_line(b"done"),
        b"0000",
    ],
    "conversation": [
        b"\xfe".join((VERSION_2 + _ADVERTISED, _LS, pkt_line(_OLD + b" HEAD\n") + b"0000", _FETCHED, pkt_line(b"packfile\n") + _SIDEBANDS)),
        b"\xfe".join((VERSION_2 + _ADVERTISED, _NEGOTIATED, _ACKNOWLEDGED + b"0000", _NEGOTIATED, _ACKNOWLEDGED + b"0001")),
        b"\xfe".join(
            (b"command=ls-refs\r", _OLD + b" refs/tags/v1\r", b"command=fetch\rwant " + _OLD + b"\rdone\r", b"packfile\r\1PACK\r")
        ),
        b"\xfe".join((VERSION_2 + _ADVERTISED, _FETCHED, pkt_line(b"ERR upload-pack: not our ref\n"))),
        b"\xfe".join((VERSION_2 + _ADVERTISED, _FETCHED, pkt_line(b"packfile\n") + pkt_line(b"\3no"))),
        b"\xfe".join((VERSION_2 + _ADVERTISED, _FETCHED.replace(b"0009done\n", b"0010sideband-all0009done\n"), pkt_line(b"\1packfile\n"))),
        pkt_line(b"ERR no such repository\n"),
        pkt_line(_OLD + b" HEAD\0multi_ack"),
    ],
    "command": [
        b"git-upload-pack 'team/app.git'",
        b"git receive-pack '/team/app.git/'",
        b"git-upload-archive team/app",
        b"git-lfs-authenticate team/app.git download",
        b"git-lfs-transfer 'a b/it'\\''s'\\!'.git' upload",
        b'git-upload-pack "a\\"b\\$c\\\\"',
        b"git-upload-pack --strict -- ../a/./b//c/.git/~d",
        b"git-upload-pack a; ls `b` $(c) | d > e < f & g",
        "git-upload-pack 'größe/日本\u202e.git'".encode(),
        b"git-upload-pack '\xff\xc3'\n#\x00",
        b"version=2:object-format=sha256",
        b"ls -la",
    ],
    "proxy": [
        b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 22\r\nSSH-2.0-x\r\n",
        b"PROXY TCP6 2001:db8::7 ::ffff:192.0.2.1 0 65535\r\n",
        b"PROXY UNKNOWN anything \x00\r\n",
        V2_SIGNATURE + b"\x21\x11\x00\x0c" + _INET + b"SSH-2.0-x\r\n",
        V2_SIGNATURE + b"\x21\x21\x00\x24" + _INET6,
        V2_SIGNATURE + b"\x21\x11\x00\x1a" + _INET + b"\x03\x00\x04\x00\x00\x00\x00\x04\x00\x04nops",
        V2_SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216),
        V2_SIGNATURE + b"\x20\x00\x00\x00",
        b"\x21\x11\x00\x0c" + _INET,
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
    "krl": [
        _krl(b""),
        _section(0x20, struct.pack("!QQ", 7, 9)),
        _section(0x21, struct.pack("!QQ", 50, 70)) + _section(0x23, _string(b"bob") + _string(b"carol")),
        _section(0x22, struct.pack("!Q", 1000) + _string(b"\x55\xaa\x01")),
        _section(0x39, _string(b"x") + b"\x00" + _string(b"")),
        _section(2, _string(_string(b"ssh-ed25519") + _string(bytes(32)))) + _section(3, _string(bytes(20))),
        _section(5, _string(bytes(32))) + _section(255, _string(b"x") + b"\x01" + _string(b"")),
        _section(4, _string(b"key")) + _string(b"signature"),
    ],
    "options": [
        _KEY_LINE.encode(),
        b'command="/usr/bin/gitolite-shell alice",no-port-forwarding,no-pty',
        b'cert-authority,principals="a,b",from="192.0.2.0/24,!10.*,2001:db8::/32"',
        b'identity="a \\"b\\"",expiry-time="20300102030405Z"',
        b"restrict,pty,verify-required",
        b"/usr/local/bin/gitea --config=/etc/app.ini serv key-7",
    ],
    "certificate": [
        _certificate(),
        _certificate(kind=2),
        _string(b"git") + _string(b"alice"),
        _string(b"source-address") + _string(_string(b"192.0.2.0/24,2001:db8::/32")),
        _string(b"force-command") + _string(_string(b"id")),
        _string(b"ssh-rsa-cert-v01@openssh.com") + _string(b"") + _string(b"\x03") + _string(b"\x00" + b"\xff" * 256),
        _string(b"sk-ecdsa-sha2-nistp256-cert-v01@openssh.com") + _string(b"") + _string(b"nistp256") + _string(b"\x04" + bytes(64)),
    ],
}


def mutations(target: str, count: int, seed: int = 1) -> Iterator[bytes]:
    """The seeds themselves, then `count` of them with bytes changed, cut, doubled or spliced; the same `seed` gives the same mutations."""
    yield from SEEDS[target]
    draw = random.Random(seed)
    for _ in range(count):
        data = bytearray(draw.choice(SEEDS[target]))
        for _ in range(draw.randint(1, 4)):
            at = draw.randint(0, len(data))
            match draw.randint(0, 4):
                case 0:
                    data[at : at + 1] = bytes([draw.randint(0, 255)])
                case 1:
                    del data[at : at + draw.randint(1, 8)]
                case 2:
                    data[at:at] = data[at : at + draw.randint(1, 16)]
                case 3:
                    data[at:at] = draw.choice(SEEDS[target])[: draw.randint(1, 40)]
                case _:
                    data[at:at] = bytes([draw.choice(b" '\"\\/.-~;&|$`\r\n\x00")])
        yield bytes(data)
