"""Reads files that decide who is trusted: the whole file, or one line that says what is wrong with it."""

from __future__ import annotations

import os
import stat

from relay.config.trust import everyone_may_write

_PRIVATE = (b"PRIVATE KEY-----", b"PuTTY-User-Key-File-")  # RFC 7468's label, and what PuTTY writes


def read_trusted(path: str, what: str, limit: int) -> tuple[bytes, str | None]:
    """The content of the file, and None; or no content, and the fault as `path: what is wrong, what is allowed`."""
    data, fault = read_whole(path, what, limit)
    return b"" if fault is not None or data is None else data, fault


def read_whole(path: str, what: str, limit: int) -> tuple[bytes | None, str | None]:
    """As `read_trusted`, but with a fault, too, returns the content, which shows what was removed. None: the file cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            exposed = everyone_may_write(mode, descriptor)
            data = _whole(descriptor, limit)
        finally:
            os.close(descriptor)
    except OSError as error:
        return None, f"{path}: cannot be read ({error.strerror}), must be {what}"
    if len(data) > limit:
        return None, f"{path}: is larger than the {limit} bytes that are allowed"
    if exposed:
        return data, f"{path}: may be written by everyone (mode {stat.S_IMODE(mode):04o}), must not: chmod o-w {path}"
    if any(mark in data for mark in _PRIVATE):  # one problem for the file: a message must not repeat its lines
        return data, f"{path}: is a private key, must be a public key; take the private key away from here"
    return data, None


def _whole(descriptor: int, limit: int) -> bytes:
    """The content of the file, at most `limit` + 1 bytes."""
    parts = []
    left = limit + 1
    while left and (part := os.read(descriptor, min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
