"""What proves the relay to an authority: a bearer token from a file, or a JWT signed for each request (RFC 6750, RFC 7519, RFC 8037)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from relay.backends.watched import LOOK_SECONDS, Watched, stamp_file

FILE_BYTES = 65_536  # no token or key is larger
SECRET_BYTES = 32  # the fewest that HS256 takes (RFC 7518 section 3.2)
VALID_SECONDS = 60  # how long a JWT is valid; the clocks of both may differ by half of it
ISSUER = "git-ssh-relay"

_BINARY = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

Sign = Callable[[bytes], bytes]


class Token:
    """The value of the Authorization header; the file is read again when it changed. Never in a log, never in a problem's text."""

    def __init__(self, path: Path, what: str, audience: str | None = None, *, look_seconds: float = LOOK_SECONDS) -> None:
        """A bearer token, or with `audience` the key that signs JWTs. `what` names the setting in problems."""
        self._audience = audience
        self._secret = Watched(
            what, lambda: stamp_file(path), lambda _: _read(path, what, signs=audience is not None), look_seconds=look_seconds
        )
        self.problems = self._secret.problems

    async def header(self) -> str:
        secret = await self._secret.current()
        if isinstance(secret, str):
            return f"Bearer {secret}"
        assert self._audience is not None
        return f"Bearer {jwt(*secret, self._audience, time.time())}"

    async def secret(self) -> str:
        """What the file of a bearer token holds."""
        secret = await self._secret.current()
        assert isinstance(secret, str)
        return secret

    async def sign(self) -> Sign:
        """What the file of a key signs with; the same text has the same signature."""
        secret = await self._secret.current()
        assert not isinstance(secret, str)
        return secret[1]

    async def close(self) -> None:
        await self._secret.close()


def jwt(algorithm: str, sign: Sign, audience: str, now: float) -> str:
    """A JWT in compact form (RFC 7515 section 7.1), with iss, aud, iat, nbf, exp and jti."""
    issued = int(now)
    claims = {
        "iss": ISSUER,
        "aud": audience,
        "iat": issued,
        "nbf": issued - VALID_SECONDS // 2,
        "exp": issued + VALID_SECONDS,
        "jti": token_hex(16),
    }
    text = b".".join(_base64(msgspec.json.encode(part)) for part in ({"alg": algorithm, "typ": "JWT"}, claims))
    return b".".join((text, _base64(sign(text)))).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _read(path: Path, what: str, *, signs: bool) -> tuple[str | tuple[str, Sign], list[str]]:
    """A bearer token, or an algorithm and its signing; and what is wrong with the file, which is not named: it may be the secret itself."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(FILE_BYTES + 1)
    except OSError as error:
        return "", [f"{what}: the file cannot be read ({error.strerror}), must be the path of a file that holds it"]
    if mode & 0o007:
        return "", [f"{what}: the file is open to everyone (mode {stat.S_IMODE(mode):04o}), must be 0600 or 0640"]
    if len(data) > FILE_BYTES:
        return "", [f"{what}: the file is larger than the {FILE_BYTES} bytes that are allowed"]
    if not signs:
        text = _without_line_end(data).decode("ascii", "replace")
        if not text.isascii() or not text.isprintable() or not text or " " in text:
            return "", [f"{what}: the file must hold one token of printable ASCII characters and nothing else"]
        return text, []
    if b"-----BEGIN" in data:
        try:
            key = load_pem_private_key(data, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            return "", [f"{what}: the file must hold an Ed25519 private key in PEM: openssl genpkey -algorithm ed25519"]
        return ("EdDSA", key.sign), []
    data = _without_line_end(data) if len(data) != SECRET_BYTES and _is_text(data) else data
    if len(data) < SECRET_BYTES:
        return "", [f"{what}: the file holds {len(data)} bytes, HS256 needs {SECRET_BYTES} or more: openssl rand -base64 48"]
    return ("HS256", lambda text: hmac.digest(data, text, hashlib.sha256)), []


def _is_text(data: bytes) -> bool:
    """UTF-8 without control characters but tabs and line ends. Of 33 random bytes or more, fewer than 1 in 2**33 are that."""
    try:
        return not _BINARY.search(data.decode())
    except UnicodeDecodeError:
        return False


def _without_line_end(data: bytes) -> bytes:
    """Without the one line end that an editor, or `echo`, puts behind a text; an authority reads the same file the same way."""
    return data.removesuffix(b"\n").removesuffix(b"\r") if data.endswith(b"\n") else data
