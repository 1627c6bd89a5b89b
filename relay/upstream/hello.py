"""What a git host sends in plain text before the key exchange (RFC 4253 sections 4.2 and 7.1), and why the handshake failed.

libssh2 has one error for a key exchange, host key type, cipher or MAC that the two sides do not share, and one for everything that is no
SSH server. This module finds the reason in the bytes that the host sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from relay.text import printable
from relay.upstream.algorithms import AEAD, Offer, offer

HEARD_BYTES = 65_536  # kept of what a host sends: its lines, its version (255 bytes at most) and its KEXINIT (35,000 at most)
LINE_CHARACTERS = 200  # of a host's line, in a message
LISTED_CHARACTERS = 400  # of a list of algorithms, in a message
PACKET_BYTES = 35_000

_DISCONNECT, _KEXINIT = 1, 20
_TLS_RECORDS = (b"\x15\x03", b"\x16\x03")  # an alert, a handshake (RFC 8446 section 5.1)
_BUSY = "Exceeded MaxStartups"
_TURNED_AWAY = {  # OpenSSH's sshd.c, in place of its version
    _BUSY: "too many logins are under way there: raise MaxStartups in its sshd_config",
    "Not allowed at this time": "it penalises the relay's address: name it in PerSourcePenaltyExemptList of its sshd_config",
}


@dataclass(frozen=True, slots=True)
class Lists:
    """The name-lists of a KEXINIT that have to agree; the two directions are client to server and server to client."""

    key_exchanges: Sequence[str]
    host_keys: Sequence[str]
    ciphers: tuple[Sequence[str], Sequence[str]]
    macs: tuple[Sequence[str], Sequence[str]]


def version(heard: bytes) -> str | None:
    """The version line, without the lines before it; None while there is none."""
    begin = _version_begin(heard)
    end = heard.find(b"\n", begin)
    return None if begin < 0 or end < 0 else _text(heard[begin:end])


def is_stranger(heard: bytes | bytearray) -> bool:
    """Whether a whole line but no version line was received; a server may send other lines before its version."""
    return b"\n" in heard and _version_begin(heard) < 0


def lists(heard: bytes) -> Lists | None:
    """The lists of the host's KEXINIT; None if none came, or none that can be read."""
    for payload in _packets(heard):
        if payload[:1] == bytes((_KEXINIT,)):
            return _parse(payload)
    return None


def why(heard: bytes, ours: Offer, host_keys: Sequence[str], wider: Offer) -> str:
    """Why the handshake with a host that sent `heard` failed, as far as its bytes tell; "" when they do not.

    `host_keys` are the algorithms of the pinned keys; `wider` is what the setting `compatible` would offer.
    """
    if not heard:
        return (
            "the git host closed the connection without a word: it may have too many logins under way (MaxStartups), "
            "or turn the relay's address away (PerSourcePenalties, a firewall)"
        )
    spoken = version(heard)
    if spoken is None:
        return _no_server(heard)
    if not spoken.startswith(("SSH-2.", "SSH-1.99-")):
        return f"the git host speaks an older SSH than 2.0: {_quoted(spoken)}"
    theirs = lists(heard)
    if theirs is not None and (missing := _missing(theirs, ours, host_keys)):
        return "; ".join(missing) + _advice(theirs, host_keys, wider)
    said = _farewell(heard)
    if said is not None:
        return f"the git host disconnected: {_quoted(said)}"
    if theirs is None:
        return f"the git host ({_quoted(spoken)}) sent no list of its algorithms"
    return ""


def is_restarting(heard: bytes, ours: Offer, host_keys: Sequence[str]) -> bool:
    """Whether a host that sent `heard` and ended the connection may be ending or starting, or busy: another try may succeed soon."""
    spoken = version(heard)
    if spoken is None:
        return not heard or (b"\n" not in heard and b"SSH-".startswith(heard[:4])) or _text(heard.partition(b"\n")[0]) == _BUSY
    theirs = lists(heard)
    agree = theirs is None or not _missing(theirs, ours, host_keys)
    return spoken.startswith(("SSH-2.", "SSH-1.99-")) and agree and _farewell(heard) is None


def _missing(theirs: Lists, ours: Offer, host_keys: Sequence[str]) -> list[str]:
    """One clause for each kind of algorithm that the two sides do not share."""
    found = []
    if not _shared(ours.key_exchanges, theirs.key_exchanges):
        found.append(_no_common("key exchange", theirs.key_exchanges, ours.key_exchanges))
    if not _shared(host_keys, theirs.host_keys):
        found.append(_no_common("host key type", theirs.host_keys, host_keys))
    ciphers = dict.fromkeys(tuple(ciphers) for ciphers in theirs.ciphers if not _shared(ours.ciphers, ciphers))
    found += [_no_common("cipher", names, ours.ciphers) for names in ciphers]
    macs = dict.fromkeys(
        tuple(macs)
        for ciphers, macs in zip(theirs.ciphers, theirs.macs, strict=True)
        if _needs_mac(ours.ciphers, ciphers) and not _shared(ours.macs, macs)
    )
    found += [_no_common("MAC", names, ours.macs) for names in macs]
    return found


def _needs_mac(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """By the cipher that is agreed upon; without one, whether any of the host's would."""
    agreed = _shared(ours, theirs)
    return not AEAD.issuperset([agreed] if agreed else theirs)


def _advice(theirs: Lists, host_keys: Sequence[str], wider: Offer) -> str:
    if not _shared(host_keys, theirs.host_keys):
        return "; pin a host key of a type that it has"
    if not _missing(theirs, wider, host_keys):
        return '; algorithms = "compatible" of this upstream offers what it takes'
    if not _missing(theirs, offer("compatible", hardened=True), host_keys):
        return '; algorithms = "compatible" of this upstream offers what it takes, with the hardened libssh2 only (make native)'
    return ""


def _no_common(what: str, theirs: Sequence[str], ours: Sequence[str]) -> str:
    return f"no common {what}: the host offers {_listed(theirs)}, the relay {_listed(ours)}"


def _shared(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """The first of ours that is among theirs, which is the one agreed upon; "" for none."""
    return next((name for name in ours if name in theirs), "")


def _listed(names: Sequence[str]) -> str:
    return printable(",".join(names), LISTED_CHARACTERS) or "nothing"


def _no_server(heard: bytes) -> str:
    if heard.startswith(_TLS_RECORDS):
        return "this is no SSH server, it speaks TLS"
    line = _text(heard.partition(b"\n")[0])
    if (meant := _TURNED_AWAY.get(line)) is not None:
        return f"the git host turns the relay away, {_quoted(line)}: {meant}"
    return f"this is no SSH server, its first line is {_quoted(line)}"


def _version_begin(heard: bytes | bytearray) -> int:
    if heard.startswith(b"SSH-"):
        return 0
    before = heard.find(b"\nSSH-")
    return before + 1 if before >= 0 else -1


def _text(line: bytes) -> str:
    """A host's bytes on one line, fit for a log."""
    return printable(line[: 4 * LINE_CHARACTERS].decode("utf-8", "replace").rstrip("\r"), LINE_CHARACTERS)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _packets(heard: bytes) -> Iterator[bytes]:
    """The payloads of the packets that follow the version line, to the first that is not whole (RFC 4253 section 6)."""
    begin = _version_begin(heard)
    at = heard.find(b"\n", begin) + 1
    if begin < 0 or at == 0:
        return
    while at + 5 <= len(heard):
        length, padding = int.from_bytes(heard[at : at + 4], "big"), heard[at + 4]
        end = at + 4 + length
        if not padding + 2 <= length <= PACKET_BYTES or end > len(heard):
            return
        payload = heard[at + 5 : end - padding]
        yield payload
        if payload[:1] not in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x14"):  # packets after it may be encrypted
            return
        at = end


def _strings(data: bytes, most: int) -> list[bytes]:
    """Up to `most` strings (RFC 4251 section 5), to the first that is cut off."""
    found: list[bytes] = []
    at = 0
    while len(found) < most and at + 4 <= len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        found.append(data[at + 4 : end])
        at = end
    return found


def _parse(payload: bytes) -> Lists | None:
    found = [names.decode("ascii", "replace").split(",") for names in _strings(payload[17:], 6)]
    if len(found) < 6:
        return None
    key_exchanges, host_keys, ciphers_out, ciphers_in, macs_out, macs_in = found
    marks = ("ext-info-", "kex-strict-")  # no key exchange (RFC 8308)
    named = [name for name in key_exchanges if not name.startswith(marks)]
    return Lists(named, host_keys, (ciphers_out, ciphers_in), (macs_out, macs_in))


def _farewell(heard: bytes) -> str | None:
    """The description of a SSH_MSG_DISCONNECT in plain text."""
    for payload in _packets(heard):
        if payload[:1] == bytes((_DISCONNECT,)):
            return _text(b"".join(_strings(payload[5:], 1)))
    return None
