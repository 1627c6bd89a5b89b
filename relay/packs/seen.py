"""Which fetches were asked for once: with `first = false` the second of equal ones within ttl_seconds is the first that is kept.

One table in a file of the folder, for all workers: each key has one place in it, and a new key may take the place of another one, which
then passes once more than needed. The lock of the folder must be held, so that two workers never both find a key for the first time.

Behind it is a second table, of fetches whose answer could not be kept: they pass for ttl_seconds.
"""

from __future__ import annotations

import os
import struct
from typing import Final

PLACES: Final = 65_536
_PLACE: Final = struct.Struct(">16sd")  # of the key its first half; seconds since the epoch
_TABLE_BYTES: Final = PLACES * _PLACE.size


def mark(fd: int, key: bytes, now: float, seconds: float) -> bool:
    """Marks `key` in the table of the descriptor; whether it was marked less than `seconds` ago. Raises OSError."""
    offset = _offset(key)
    known = _is_there(fd, offset, key, now, seconds)
    os.pwrite(fd, _PLACE.pack(key[:16], now), offset)
    return known


def refuse(fd: int, key: bytes, now: float) -> None:
    """The answer to the fetch of this key could not be kept. Raises OSError."""
    os.pwrite(fd, _PLACE.pack(key[:16], now), _TABLE_BYTES + _offset(key))


def is_refused(fd: int, key: bytes, now: float, seconds: float) -> bool:
    """Whether that was less than `seconds` ago. Raises OSError."""
    return _is_there(fd, _TABLE_BYTES + _offset(key), key, now, seconds)


def _offset(key: bytes) -> int:
    return int.from_bytes(key[16:20], "big") % PLACES * _PLACE.size


def _is_there(fd: int, offset: int, key: bytes, now: float, seconds: float) -> bool:
    raw = os.pread(fd, _PLACE.size, offset)
    if len(raw) < _PLACE.size:
        return False
    known, at = _PLACE.unpack(raw)
    return bool(known == key[:16]) and abs(now - at) < seconds
