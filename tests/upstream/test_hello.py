"""The reason for a failed handshake, from the bytes that a git host sent before keys were exchanged: whole, cut at any place, or junk."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.upstream import hello
from relay.upstream.algorithms import offer

MODERN, COMPATIBLE = offer("modern", hardened=True), offer("compatible", hardened=True)
VERSION = b"SSH-2.0-OpenSSH_9.2\r\n"
GCM = "aes128-gcm@openssh.com"
GOOD = {"kex": "curve25519-sha256", "keys": "ssh-ed25519", "out": GCM, "back": GCM, "mac_out": "hmac-sha1", "mac_back": "hmac-sha1"}


def packet(payload: bytes, padding: int = 6) -> bytes:
    return (len(payload) + padding + 1).to_bytes(4, "big") + bytes((padding,)) + payload + bytes(padding)


def string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def kexinit(**changed: str) -> bytes:
    lists = [*{**GOOD, **changed}.values(), "none", "none", "", ""]
    return packet(b"\x14" + bytes(16) + b"".join(string(one.encode()) for one in lists) + bytes(5))


def why(heard: bytes) -> str:
    return hello.why(heard, MODERN, ["ssh-ed25519"], COMPATIBLE)


@pytest.mark.parametrize(
    ("heard", "passes"),
    [
        (b"", True),
        (b"SSH-2.0-Op", True),
        (b"SS", True),
        (b"Exceeded MaxStartups\r\n", True),
        (VERSION, True),
        (VERSION + kexinit(), True),
        (b"Not allowed at this time\r\n", False),
        (b"HTTP/1.1 400 Bad Request\r\n", False),
        (b"SSH-1.5-old\r\n", False),
        (VERSION + kexinit(kex="a"), False),
        (VERSION + packet(b"\x01" + bytes(4) + string(b"no") + string(b"")), False),
    ],
)
def test_a_host_that_restarts_ends_the_connection_without_a_reason(heard: bytes, passes: bool) -> None:
    assert hello.is_restarting(heard, MODERN, ["ssh-ed25519"]) is passes


def test_one_of_each_kind_in_common_is_no_reason() -> None:
    assert why(VERSION + kexinit()) == "", "with AES-GCM no MAC is needed"
    assert why(b"a greeting\r\n" + VERSION + packet(b"\x02" + string(b"ignored")) + kexinit(kex="x,curve25519-sha256,ext-info-s")) == ""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kex": "a,b,kex-strict-s-v00@openssh.com"}, "no common key exchange: the host offers a,b, the relay curve25519-sha256,"),
        ({"keys": "ssh-rsa"}, "no common host key type: the host offers ssh-rsa, the relay ssh-ed25519; pin a host key of a type"),
        ({"out": "3des-cbc"}, "no common cipher: the host offers 3des-cbc, the relay aes128-gcm@openssh.com,"),
        ({"back": "3des-cbc"}, "no common cipher: the host offers 3des-cbc, the relay aes128-gcm@openssh.com,"),
        ({"out": "aes256-ctr"}, "no common MAC: the host offers hmac-sha1, the relay hmac-sha2-256,hmac-sha2-512"),
        ({"back": "aes256-ctr", "mac_back": ""}, "no common MAC: the host offers nothing, the relay hmac-sha2-256"),
        ({"out": "chacha20-poly1305@openssh.com"}, 'aes128-ctr; algorithms = "compatible" of this upstream offers what it takes'),
    ],
)
def test_what_is_not_in_common_is_named_with_both_lists(changed: dict[str, str], said: str) -> None:
    assert said in why(VERSION + kexinit(**changed))


def test_what_the_hardened_library_alone_offers_is_said_to_be_so() -> None:
    heard = VERSION + kexinit(kex="diffie-hellman-group16-sha512")
    stock = offer("compatible", hardened=False)
    for ours in (MODERN, stock):
        told = hello.why(heard, ours, ["ssh-ed25519"], stock)
        assert told.endswith('"compatible" of this upstream offers what it takes, with the hardened libssh2 only (make native)')


def test_each_kind_is_named_once() -> None:
    told = why(VERSION + kexinit(kex="a", keys="b", out="c", back="c", mac_out="d", mac_back="d"))
    assert [told.count(f"no common {kind}: ") for kind in ("key exchange", "host key type", "cipher", "MAC")] == [1, 1, 1, 1]
    assert "compatible" not in told, "which would not do either"


@pytest.mark.parametrize(
    ("heard", "said"),
    [
        (b"", "closed the connection without a word"),
        (b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n", 'no SSH server, its first line is "HTTP/1.1 400 Bad Request"'),
        (b"220 mail.example ESMTP \x1b[31m\r\n", 'no SSH server, its first line is "220 mail.example ESMTP ?[31m"'),
        (b"half a li", 'its first line is "half a li"'),
        (b"\x15\x03\x01\x00\x02\x02\x46", "no SSH server, it speaks TLS"),
        (b"Exceeded MaxStartups\r\n", 'turns the relay away, "Exceeded MaxStartups": too many logins'),
        (b"Not allowed at this time\r\n", "PerSourcePenaltyExemptList"),
        (b"SSH-1.5-old\n", 'older SSH than 2.0: "SSH-1.5-old"'),
        (VERSION, '("SSH-2.0-OpenSSH_9.2") sent no list of its algorithms'),
        (VERSION + packet(b"\x01" + bytes(4) + string(b"go \x07away") + string(b"")), 'the git host disconnected: "go ?away"'),
    ],
)
def test_what_is_no_ssh_server_or_leaves_is_quoted(heard: bytes, said: str) -> None:
    assert said in why(heard)


@given(st.binary(max_size=300), st.sampled_from([b"", VERSION, b"x\n" + VERSION]), st.integers(0, 400))
def test_any_bytes_give_one_printable_line(junk: bytes, begin: bytes, cut: int) -> None:
    for heard in (begin + junk, (begin + kexinit(kex="a"))[:cut], begin + packet(b"\x14" + junk), begin + junk + kexinit(out="é,\x00")):
        told = why(heard)
        assert told.isprintable() and len(told) < 6_000
        hello.is_stranger(heard)


def test_a_long_line_and_long_lists_are_cut() -> None:
    assert len(why(b"x" * hello.HEARD_BYTES)) < 300
    names = ",".join(f"name{number}" for number in range(3_000))
    assert len(why(VERSION + kexinit(kex=names, out=names, back=names))) < 2_000


def test_only_a_line_that_is_no_version_is_a_stranger() -> None:
    assert [hello.is_stranger(heard) for heard in (b"", b"hel", b"hello\n", b"hello\n" + VERSION, VERSION)] == [
        False,
        False,
        True,
        False,
        False,
    ]
