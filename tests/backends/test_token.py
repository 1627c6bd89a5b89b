"""Tokens and JWTs with which the relay authenticates, and the files that they come from."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from relay.backends.token import SECRET_FILE_BYTES, VALID_SECONDS, Token, jwt
from tests.support.wait import wait_until_async

NO_KEY = "the file must hold an Ed25519 private key in PEM: openssl genpkey -algorithm ed25519"
SECRET = b"0123456789abcdef0123456789abcdef"


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def part(text: str) -> Any:
    return json.loads(unbase64(text))


def unbase64(text: str) -> bytes:
    assert "=" not in text
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey, protection: KeySerializationEncryption | None = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection or NoEncryption())


async def test_a_bearer_token_is_read_again_when_it_changed(tmp_path: Path) -> None:
    path = write(tmp_path / "token", b"first.token\n")
    token = Token(path, "keys.token_file", look_seconds=0)
    assert token.problems == []
    assert await token.header() == "Bearer first.token"
    new = write(tmp_path / "new", b"second-token")
    new.replace(path)

    async def changed() -> bool:
        return await token.header() == "Bearer second-token"

    await wait_until_async(changed)
    write(path, b"two words")  # an invalid token does not replace the valid one
    for _ in range(3):
        assert await token.header() == "Bearer second-token"
    await token.close()


async def test_an_hs256_jwt_verifies_with_the_secret_and_with_no_other(tmp_path: Path) -> None:
    token = Token(write(tmp_path / "secret", SECRET + b"\n"), "keys.jwt_key_file", "https://a.example")
    header = await token.header()
    text, _, signature = header.removeprefix("Bearer ").rpartition(".")
    assert part(text.split(".")[0]) == {"alg": "HS256", "typ": "JWT"}
    assert unbase64(signature) == hmac.digest(SECRET, text.encode(), hashlib.sha256)
    assert unbase64(signature) != hmac.digest(SECRET[:-1] + b"x", text.encode(), hashlib.sha256)
    assert await token.header() != header  # each JWT has its own jti
    await token.close()


async def signs_as(folder: Path, data: bytes, secret: bytes) -> bool:
    """Whether a key file with `data` makes the signature of HMAC with `secret`."""
    token = Token(write(folder / "secret", data), "shared.secret_file", "")
    assert token.problems == []
    sign = await token.sign()
    await token.close()
    return sign(b"text") == hmac.digest(secret, b"text", hashlib.sha256)


async def test_32_raw_bytes_are_the_secret_whatever_they_are(tmp_path: Path) -> None:
    for byte in range(256):
        one = bytes([byte])
        for data in (one + bytes(31), bytes(31) + one, one * 32, b"a" * 31 + one, b"a" * 30 + b"\r" + one, one + b"\xff" * 30 + one):
            assert await signs_as(tmp_path, data, data), data


@given(st.binary(min_size=32, max_size=80), st.sampled_from([b"", b"\n", b"\r\n", b" ", b"\0", b"\xff\n"]))
def test_a_binary_secret_keeps_every_byte(data: bytes, end: bytes) -> None:
    with TemporaryDirectory() as folder:
        assert asyncio.run(signs_as(Path(folder), b"\0" + data + end, b"\0" + data + end))


@pytest.mark.parametrize("text", [SECRET, b" " + SECRET + b"\t", b"\n" + SECRET, SECRET + b"\n" + SECRET, "geheimnisträger".encode() * 3])
@pytest.mark.parametrize(
    ("end", "lost"), [(b"", 0), (b"\n", 1), (b"\r\n", 2), (b"\n\n", 1), (b" \n", 1), (b"\r", 0), (b"\n\r\n", 2), (b" ", 0)]
)
async def test_a_text_secret_loses_one_final_line_end_and_nothing_else(tmp_path: Path, text: bytes, end: bytes, lost: int) -> None:
    data = text + end
    assert await signs_as(tmp_path, data, data[: len(data) - lost])


async def test_an_eddsa_jwt_verifies_with_the_public_key_and_says_for_whom_and_for_how_long(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    token = Token(write(tmp_path / "key", pem(key)), "keys.jwt_key_file", "https://a.example/v1")
    text, _, signature = (await token.header()).removeprefix("Bearer ").rpartition(".")
    key.public_key().verify(unbase64(signature), text.encode())
    with pytest.raises(InvalidSignature):
        ed25519.Ed25519PrivateKey.generate().public_key().verify(unbase64(signature), text.encode())
    header, claims = map(part, text.split("."))
    assert header == {"alg": "EdDSA", "typ": "JWT"}
    assert (claims["iss"], claims["aud"]) == ("git-ssh-relay", "https://a.example/v1")
    assert claims["nbf"] < claims["iat"] < claims["exp"] == claims["iat"] + VALID_SECONDS
    await token.close()


def test_times_are_whole_seconds_of_now() -> None:
    claims = part(jwt("HS256", lambda text: b"x", "a", 1_000_000.9).split(".")[1])
    assert (claims["iat"], claims["nbf"], claims["exp"]) == (1_000_000, 999_970, 1_000_060)


LARGER = f"the file is larger than the {SECRET_FILE_BYTES} bytes that are allowed"


@pytest.mark.parametrize(
    ("data", "mode", "problem"),
    [
        (None, 0, "the file cannot be read (No such file or directory), must be the path of a file that holds it"),
        (b"secret", 0o604, "the file is open to everyone (mode 0604), must be 0600 or 0640"),
        (b"secret", 0o602, "the file is open to everyone (mode 0602), must be 0600 or 0640"),
        (b"", 0o600, "the file must hold one token of printable ASCII characters and nothing else"),
        (b"secret secret", 0o600, "the file must hold one token of printable ASCII characters and nothing else"),
        (b"secret ", 0o600, "the file must hold one token of printable ASCII characters and nothing else"),
        (b"\nsecret", 0o600, "the file must hold one token of printable ASCII characters and nothing else"),
        (b"secret\n\n", 0o600, "the file must hold one token of printable ASCII characters and nothing else"),
        (b"secret\r\n\r\n", 0o600, "the file must hold one token of printable ASCII characters and nothing else"),
        (b"secret" + bytes(1), 0o600, "the file must hold one token of printable ASCII characters and nothing else"),
        pytest.param(b"\n" * (SECRET_FILE_BYTES + 1), 0o600, LARGER, id="lines"),
        (b"secret\r\nX-Admin: 1", 0o600, "the file must hold one token of printable ASCII characters and nothing else"),
        ("sécret".encode(), 0o600, "the file must hold one token of printable ASCII characters and nothing else"),
        pytest.param(b"s" * (SECRET_FILE_BYTES + 1), 0o600, LARGER, id="large"),
    ],
)
def test_invalid_tokens(tmp_path: Path, data: bytes | None, mode: int, problem: str) -> None:
    if data is not None:
        write(tmp_path / "secret", data, mode)
    problems = Token(tmp_path / "secret", "keys.token_file").problems
    assert problems == [f"keys.token_file: {problem}"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"short secret", "the file holds 12 bytes, HS256 needs 32 or more: openssl rand -base64 48"),
        (pem(ec.generate_private_key(ec.SECP256R1())), NO_KEY),
        (
            pem(ed25519.Ed25519PrivateKey.generate(), BestAvailableEncryption(b"x")),
            NO_KEY,
        ),
        (b"-----BEGIN PRIVATE KEY-----\nx", NO_KEY),
    ],
    ids=("short", "ecdsa", "protected", "cut"),  # the keys differ in each process, and names made of them would, too
)
def test_invalid_signing_keys(tmp_path: Path, data: bytes, problem: str) -> None:
    assert Token(write(tmp_path / "key", data), "keys.jwt_key_file", "a").problems == [f"keys.jwt_key_file: {problem}"]
