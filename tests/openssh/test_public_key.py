"""Public key lines from the real ssh-keygen, from security keys, and damaged in every way."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from relay.openssh.public_key import HOST_KEY_TYPES, USER_KEY_TYPES, check_blob, fingerprint, parse_line
from tests.support.keys import SECURITY_KEY_KINDS, SecurityKeyKind, SoftwareSecurityKey

ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE2G6GxoGlFTDA+jTwgWDaNqTHbBMlX5A2lE0iVN9NaY"


def keygen(folder: Path, *arguments: str) -> str:
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-C", "a comment", "-f", folder / "key", *arguments], check=True, timeout=60)
    return (folder / "key.pub").read_text()


@pytest.mark.parametrize(
    ("arguments", "kind", "bits"),
    [
        (["-t", "ed25519"], "ssh-ed25519", 256),
        (["-t", "ecdsa", "-b", "256"], "ecdsa-sha2-nistp256", 256),
        (["-t", "ecdsa", "-b", "384"], "ecdsa-sha2-nistp384", 384),
        (["-t", "ecdsa", "-b", "521"], "ecdsa-sha2-nistp521", 521),
        (["-t", "rsa", "-b", "2048"], "ssh-rsa", 2048),
    ],
)
def test_what_ssh_keygen_writes_is_read_with_its_fingerprint(tmp_path: Path, arguments: list[str], kind: str, bits: int) -> None:
    key = parse_line(keygen(tmp_path, *arguments))
    assert (key.type, key.comment, key.bits) == (kind, "a comment", bits)
    told = subprocess.run(["ssh-keygen", "-l", "-f", tmp_path / "key.pub"], check=True, capture_output=True, text=True, timeout=60).stdout
    assert told.split()[:2] == [str(bits), fingerprint(key.blob)]


@pytest.mark.parametrize("kind", SECURITY_KEY_KINDS)
def test_security_keys_are_for_users_and_not_for_hosts(kind: SecurityKeyKind) -> None:
    token = SoftwareSecurityKey(kind)
    assert fingerprint(parse_line(token.line).blob) == token.fingerprint
    with pytest.raises(ValueError, match="is not possible here; allowed are ssh-ed25519, "):
        parse_line(token.line, HOST_KEY_TYPES)


def rsa_line(bits: int) -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def test_a_short_rsa_key_is_refused_with_its_size() -> None:
    with pytest.raises(ValueError, match="is an RSA key of 1024 bits, allowed are 2048 to 16384"):
        parse_line(rsa_line(1024))


def blob_line(kind: str, *fields: bytes, says: str | None = None) -> str:
    blob = b"".join(len(field).to_bytes(4, "big") + field for field in (kind.encode(), *fields))
    return f"{says or kind} {base64.b64encode(blob).decode()}"


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("", "is empty, must begin with the key type"),
        ("ssh-ed25519", "is cut off after ssh-ed25519"),
        ("ssh-ed25519 !!!", "is not valid base64"),
        (ED25519[:-4], "is cut off or damaged"),
        (ED25519 + "AAAA", "is cut off or damaged"),
        ("ssh-ed25519 AAAA", "is cut off or damaged"),
        (blob_line("ssh-ed25519", bytes(31)), "is damaged"),
        (blob_line("ssh-ed25519", bytes(32), says="ssh-rsa"), 'says ssh-rsa but holds a key of type "ssh-ed25519"'),
        (blob_line("ecdsa-sha2-nistp256", b"nistp384", b"\4" + bytes(64)), "is damaged"),
        (blob_line("ecdsa-sha2-nistp256", b"nistp256", b"\2" + bytes(64)), "is damaged"),
        (blob_line("ssh-rsa", b"\1\0\1", b"\x80" + bytes(256)), "is damaged"),
        (blob_line("ssh-rsa", b"\1\0\0", b"\x7f" + bytes(256)), "is damaged"),
        (blob_line("sk-ssh-ed25519@openssh.com", bytes(32), b""), "is damaged"),
        (blob_line("ssh-dss", b"p", b"q", b"g", b"y"), r"is a DSA key \(ssh-dss\)"),
        ("ssh-ed25519-cert-v01@openssh.com AAAA", "is a certificate"),
        (f'from="10.0.0.1" {ED25519}', "something in front of the key"),
        (f"git.internal {ED25519}", "something in front of the key"),
        ("ssh-foo AAAA", 'begins with "ssh-foo", must begin with the key type: ssh-ed25519'),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "is a private key"),
        ("---- BEGIN SSH2 PUBLIC KEY ----", "ssh-keygen -i -f FILE"),
        ("-----BEGIN PUBLIC KEY-----", "ssh-keygen -i -m PKCS8 -f FILE"),
        (ED25519 + " x" * 20_000, "characters, allowed are 24576"),
    ],
)
def test_what_is_no_key_is_refused_with_the_reason(line: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        parse_line(line)


@given(st.text(max_size=200) | st.tuples(st.sampled_from(USER_KEY_TYPES), st.text(max_size=60)).map(" ".join))
def test_any_text_is_a_key_or_refused_in_words(text: str) -> None:
    try:
        parse_line(text)
    except ValueError as error:
        assert str(error).isprintable()


@given(st.sampled_from(USER_KEY_TYPES), st.binary(max_size=120))
def test_any_blob_is_a_key_or_refused_in_words(kind: str, rest: bytes) -> None:
    try:
        check_blob(len(kind).to_bytes(4, "big") + kind.encode() + rest, kind)
    except ValueError as error:
        assert str(error).isprintable()


def test_refusals_never_repeat_key_material() -> None:
    with pytest.raises(ValueError) as caught:
        parse_line(ED25519[:-4])
    assert ED25519.split()[1][:20] not in str(caught.value)
    with pytest.raises(ValueError, match="begins with no key type") as caught:  # a line from the middle of a private key
        parse_line("QyNTUxOQAAACD0vdRp3rE6yxf2dw4iYHzVZXItvN")
    assert "QyNTUxOQ" not in str(caught.value)
