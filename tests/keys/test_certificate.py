"""Certificates of ssh-keygen: parsed, and refused with the exact reason."""

from __future__ import annotations

import struct
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.keys import NotAccepted
from relay.keys.certificate import (
    FOREVER,
    OPTIONS,
    PRINCIPALS,
    USER,
    Certificate,
    check_claims,
    check_principals,
    parse_certificate,
    plain_type,
)
from relay.openssh.public_key import USER_KEY_TYPES
from tests.support.certificates import FUTURE, PAST, Ca, blob
from tests.support.keys import KEY_KINDS, Key, KeyKind, SoftwareSecurityKey, make_key

HERE = "192.0.2.7"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    return Ca(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("alice"), "alice")


def string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def built(
    *,
    kind: bytes = b"ssh-ed25519-cert-v01@openssh.com",
    key: bytes = string(bytes(32)),
    principals: bytes = string(b"git"),
    critical: bytes = b"",
    ca: bytes = string(b"ssh-ed25519") + string(bytes(32)),
    behind: bytes = b"",
) -> bytes:
    """A certificate without a valid signature."""
    body = string(kind) + string(b"nonce") + key + struct.pack("!QI", 7, USER) + string(b"alice") + string(principals)
    body += struct.pack("!QQ", 0, FOREVER) + string(critical) + string(b"") + string(b"") + string(ca)
    return body + string(string(b"ssh-ed25519") + string(bytes(64))) + behind


def refusal(blob: bytes, address: str = HERE) -> tuple[str, str]:
    with pytest.raises(NotAccepted) as caught:
        check_claims(parse_certificate(blob), address)
    return str(caught.value), caught.value.reason


# -- parsed ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_every_field_as_ssh_keygen_wrote_it(ca: Ca, tmp_path: Path, kind: KeyKind) -> None:
    key = make_key(tmp_path, "key", kind)
    found = parse_certificate(
        blob(
            ca.sign(
                key,
                "alice@example.com",
                principals=["git", "alice"],
                serial=(1 << 64) - 1,
                validity="20260101000000Z:20270101000000Z",
                options=["source-address=192.0.2.0/24"],
            )
        )
    )
    assert (found.key, found.ca) == (blob(key.public), blob(ca.key.public))
    assert (found.serial, found.kind, found.key_id, found.principals) == ((1 << 64) - 1, 1, b"alice@example.com", (b"git", b"alice"))
    assert (found.valid_after, found.valid_before) == (1_767_225_600, 1_798_761_600)
    assert found.critical == {b"source-address": string(b"192.0.2.0/24")}
    assert found.signature_algorithm == b"ssh-ed25519"
    assert str(found) == f"ID alice@example.com (serial {(1 << 64) - 1}) CA {ca.fingerprint}"


@pytest.mark.parametrize("kind", ["sk-ed25519", "sk-ecdsa"])
def test_security_keys(ca: Ca, tmp_path: Path, kind: str) -> None:
    token = SoftwareSecurityKey("sk-ed25519" if kind == "sk-ed25519" else "sk-ecdsa")
    (tmp_path / "token.pub").write_text(token.line)
    subprocess.run(["ssh-keygen", "-q", "-s", ca.key.private, "-I", "x", "-n", "git", tmp_path / "token.pub"], check=True)
    assert parse_certificate(blob(tmp_path / "token-cert.pub")).key == token.public_data


def test_the_type_of_the_plain_key() -> None:
    for kind in USER_KEY_TYPES:
        assert plain_type(kind.removesuffix("@openssh.com") + "-cert-v01@openssh.com") == kind
    for name in ("ssh-ed25519", "ssh-dss-cert-v01@openssh.com", "ssh-ed25519-cert-v00@openssh.com", "x-cert-v01@openssh.com", ""):
        assert plain_type(name) is None


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "is cut off or damaged"),
        (string(b"ssh-ed25519") + string(bytes(32)), 'of type "ssh-ed25519" is not supported'),
        (built(kind=b"ssh-dss-cert-v01@openssh.com"), 'of type "ssh-dss-cert-v01@openssh.com" is not supported'),
        (built(kind=b"ssh-ed25519-cert-v00@openssh.com"), "not supported"),
        (built(behind=b"x"), "something behind its end"),
        (built()[:-1], "is cut off or damaged"),
        (built(key=string(bytes(31))), "key that is not possible: the ssh-ed25519 key is damaged"),
        (built(ca=string(b"ssh-dss") + string(b"x")), 'CA\'s key of type "ssh-dss" is not supported'),
        (built(ca=string(b"ssh-ed25519-cert-v01@openssh.com") + string(b"x")), "is not supported"),
        (built(ca=string(b"ssh-ed25519") + string(bytes(31))), "key that is not possible"),
        (built(ca=b""), "is cut off or damaged"),
        (built(principals=string(b"x") * (PRINCIPALS + 1)), f"more than {PRINCIPALS} principals"),
        (built(principals=b"\x00\x00\x00\x09x"), "is cut off or damaged"),
        (built(critical=b"".join(string(str(n).encode()) + string(b"") for n in range(OPTIONS + 1))), "critical options"),
        (built(critical=string(b"a")), "options are damaged"),
        (built(critical=(string(b"a") + string(b"")) * 2), "is listed twice"),
    ],
)
def test_damaged_certificates_are_refused(data: bytes, text: str) -> None:
    with pytest.raises(NotAccepted, match=text):
        parse_certificate(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_certificate_or_refused(data: bytes) -> None:
    for candidate in (data, built(critical=data), built(principals=data), built(key=data)):
        try:
            found = parse_certificate(candidate)
            check_claims(found, HERE)
        except NotAccepted as no:
            assert str(no).isprintable()


# -- judged ------------------------------------------------------------------------------------------------------------------


def test_times(ca: Ca, alice: Key) -> None:
    text, reason = refusal(blob(ca.sign(alice, validity=PAST)))
    assert text.startswith("the certificate expired at 2020-01-") and reason == "expired"
    text, reason = refusal(blob(ca.sign(alice, validity=FUTURE)))
    assert text.startswith("the certificate is not valid before 209") and reason == "expired"
    limited = parse_certificate(blob(ca.sign(alice, validity="20260101000000Z:20260101000010Z")))
    begin = 1_767_225_600
    for now, good in ((begin - 1, False), (begin, True), (begin + 9.9, True), (begin + 10, False)):
        if good:
            check_claims(limited, HERE, now)
        else:
            with pytest.raises(NotAccepted):
                check_claims(limited, HERE, now)
    check_claims(parse_certificate(blob(ca.sign(alice))), HERE, time.time() + 1e9)


def test_a_time_beyond_all_calendars() -> None:
    beyond = parse_certificate(built())
    object.__setattr__(beyond, "valid_after", FOREVER)
    with pytest.raises(NotAccepted, match=f"not valid before second {FOREVER}"):
        check_claims(beyond, HERE)


def test_a_host_certificate(ca: Ca, alice: Key) -> None:
    assert refusal(blob(ca.sign(alice, host=True))) == ("the certificate is a host's, must be a user's", "certificate")


def test_critical_options(ca: Ca, alice: Key) -> None:
    assert "forces a command" in refusal(blob(ca.sign(alice, options=["force-command=git-shell"])))[0]
    verify = parse_certificate(blob(ca.sign(alice, options=["verify-required"])))
    check_claims(verify, HERE)
    assert verify.options == (True, False)
    assert parse_certificate(blob(ca.sign(alice, options=["no-touch-required"]))).options == (False, True)
    assert "critical option x@example.com" in refusal(blob(ca.sign(alice, options=["critical:x@example.com=y"])))[0]
    check_claims(parse_certificate(blob(ca.sign(alice, options=["extension:x@example.com=y", "clear"]))), HERE)


@pytest.mark.parametrize(
    ("networks", "inside", "outside"),
    [
        ("192.0.2.0/24", ["192.0.2.7", "::ffff:192.0.2.7"], ["192.0.3.7", "2001:db8::7", "unknown", ""]),
        ("192.0.2.7", ["192.0.2.7"], ["192.0.2.8"]),
        ("10.0.0.0/8,2001:db8::/32", ["10.1.2.3", "2001:db8::7"], ["11.0.0.1", "2001:db9::1"]),
        ("fe80::/10", ["fe80::1%eth0"], ["::1"]),
    ],
)
def test_source_addresses(ca: Ca, alice: Key, networks: str, inside: list[str], outside: list[str]) -> None:
    data = blob(ca.sign(alice, options=[f"source-address={networks}"]))
    for address in inside:
        check_claims(parse_certificate(data), address)
    for address in outside:
        text, reason = refusal(data, address)
        assert text == f"the certificate may not be used from {address} (source-address {networks})" and reason == "source_address"


@pytest.mark.parametrize(
    "value", [b"", string(b""), string(b"192.0.2.7/24"), string(b"!192.0.2.7"), string(b"*"), string(b"192.0.2.7") + b"x", b"x"]
)
def test_an_invalid_source_address_refuses_the_certificate(value: bytes) -> None:
    assert "source-address" in refusal(built(critical=string(b"source-address") + string(value)))[0]


def test_principals(ca: Ca, alice: Key) -> None:
    both = parse_certificate(blob(ca.sign(alice, principals=["root", "alice"])))
    check_principals(both, ["git", "alice"])
    check_principals(both, [])
    with pytest.raises(NotAccepted, match=r"^the certificate lists the principals root, alice, needed is deploy or git$"):
        check_principals(both, ["git", "deploy"])
    none = parse_certificate(blob(ca.sign(alice, principals=[])))
    for allowed in ([], ["git"]):
        with pytest.raises(NotAccepted, match="lists no principal"):
            check_principals(none, allowed)


def test_names_that_a_terminal_would_not_show_are_replaced() -> None:
    """An unassigned character, which Atheris found, and one that reverses the writing direction."""
    text, _ = refusal_of_principals("\u05cba\u202eb".encode())
    assert text.startswith("the certificate lists the principals ?a?b, needed is git")


def refusal_of_principals(name: bytes) -> tuple[str, str]:
    with pytest.raises(NotAccepted) as caught:
        check_principals(parse_certificate(built(principals=string(name))), ["git"])
    return str(caught.value), caught.value.reason


def test_a_certificate_as_text_is_one_line() -> None:
    assert isinstance(parse_certificate(built()), Certificate)
    assert str(parse_certificate(built(principals=b""))).startswith("ID alice (serial 7) CA SHA256:")
