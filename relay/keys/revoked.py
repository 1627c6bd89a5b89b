"""Revoked keys and certificates: a file as for sshd's RevokedKeys, a KRL or public keys line by line; read again when changed.

While a changed file has a fault, everything that was revoked stays revoked, and so are the keys on its valid lines.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import replace
from pathlib import Path

from relay.keys.trusted_file import read_trusted
from relay.openssh.krl import BadKrl, Krl, looks_like_krl, parse_krl
from relay.openssh.public_key import CERTIFICATE_SUFFIX
from relay.text import plain, quoted

REVOCATION_FILE_BYTES = 64 << 20  # a million revoked keys

_WHAT = "a revocation list (ssh-keygen -k) or a file of public keys"


class RevocationFile:
    """Reads the file at `path`, and remembers what was revoked, for the next read that finds a fault."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = Krl()

    def read(self) -> tuple[Krl, list[str]]:
        revoked, problems = read_revoked(self._path)
        if not problems:
            self._last = revoked
        elif not revoked.keys <= self._last.keys:
            self._last = replace(self._last, keys=self._last.keys | revoked.keys)
        return self._last, problems


def read_revoked(path: Path) -> tuple[Krl, list[str]]:
    """What could be read of the file, and one line for each problem."""
    data, fault = read_trusted(str(path), _WHAT, REVOCATION_FILE_BYTES)
    if fault is None and not data:  # a file that is being written in place is empty for a moment; that must not revoke nothing
        fault = f"{path}: is empty, must be {_WHAT}; a comment (# none) will do"
    if fault is not None:
        return Krl(), [plain(fault)]
    if not looks_like_krl(data):
        return _read_lines(path, data)
    try:
        return parse_krl(data), []
    except BadKrl as error:
        return Krl(), [plain(f"{path}: {error}, must be {_WHAT}")]


def _read_lines(path: Path, data: bytes) -> tuple[Krl, list[str]]:
    keys: set[bytes] = set()
    problems = []
    for number, line in enumerate(data.decode("utf-8-sig", "replace").split("\n"), 1):
        if (text := line.strip()) and not text.startswith("#"):
            try:
                keys.add(_blob(text))
            except ValueError as error:
                problems.append(plain(f"{path}:{number}: {error}"))
    return Krl(keys=frozenset(keys)), problems


def _blob(text: str) -> bytes:
    """The blob of a key of any type, also of one too weak to be accepted."""
    kind, _, rest = text.partition(" ")
    if kind.endswith(CERTIFICATE_SUFFIX):
        raise ValueError(f"is a certificate ({quoted(kind)}), must be a plain key; certificates are revoked by a KRL (ssh-keygen -k)")
    try:
        blob = base64.b64decode(rest.split()[0], validate=True)
    except (IndexError, binascii.Error, ValueError):
        raise ValueError(f"begins with {quoted(kind)} and has no key behind it, must be 'type base64 comment'") from None
    if blob[4 : 4 + int.from_bytes(blob[:4], "big")] != kind.encode():
        raise ValueError(f"does not hold a key of the type {quoted(kind)}, must be copied whole from a .pub file")
    return blob
