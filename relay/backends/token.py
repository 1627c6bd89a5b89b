"""How the relay authenticates to a backend: a bearer token from a file, or a JWT signed for each request (RFC 6750, RFC 7519, RFC 8037)."""

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

SECRET_FILE_BYTES = 65_536  # no token or key is larger
SECRET_BYTES = 32  # at least, for HS256 (RFC 7518 section 3.2)
VALID_SECONDS = 60  # of a JWT; the clocks of relay and authority may differ by half of it
ISSUER = "git-ssh-relay"

_BINARY = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

Sign = Callable[[bytes], bytes]


class Token:
    """A secret in a file, read again when changed. It never appears in a log line or in the text of a problem."""

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
        """The bearer token or password in the file."""
        secret = await self._secret.current()
        assert isinstance(secret, str)
        return secret

    async def sign(self) -> Sign:
        """Signs with the key in the file; equal texts have equal signatures."""
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
    """A bearer token, or an algorithm and its signing function; and the problems, without the path: it may be the secret itself."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(SECRET_FILE_BYTES + 1)
    except OSError as error:
        return "", [f"{what}: the file cannot be read ({error.strerror}), must be the path of a file that holds it"]
    if mode & 0o007:
        return "", [f"{what}: the file is open to everyone (mode {stat.S_IMODE(mode):04o}), must be 0600 or 0640"]
    if len(data) > SECRET_FILE_BYTES:
        return "", [f"{what}: the file is larger than the {SECRET_FILE_BYTES} bytes that are allowed"]
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
    """Whether `data` is UTF-8 without control characters except tabs and line ends; 33 random bytes are that once in 2**33 at most."""
    try:
        return not _BINARY.search(data.decode())
    except UnicodeDecodeError:
        return False


def _without_line_end(data: bytes) -> bytes:
    """Without the line end that an editor appends. The authority must read the file the same way."""
    return data.removesuffix(b"\n").removesuffix(b"\r") if data.endswith(b"\n") else data
