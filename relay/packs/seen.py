"""Which fetches were asked for once: with `first = false` the second of equal ones within ttl_seconds is the first that is kept.

One table in a file of the folder, for all workers: each key has one place in it, and a new key may take the place of another one, which
then passes once more than needed. The lock of the folder must be held, so that two workers never both find a key for the first time.
"""

from __future__ import annotations

import os
import struct
from typing import Final

PLACES: Final = 65_536
_PLACE: Final = struct.Struct(">16sd")  # of the key its first half; seconds since the epoch


def mark(fd: int, key: bytes, now: float, seconds: float) -> bool:
    """Marks `key` in the table of the descriptor; whether it was marked less than `seconds` ago. Raises OSError."""
    offset = int.from_bytes(key[16:20], "big") % PLACES * _PLACE.size
    raw = os.pread(fd, _PLACE.size, offset)
    os.pwrite(fd, _PLACE.pack(key[:16], now), offset)
    if len(raw) < _PLACE.size:
        return False
    known, at = _PLACE.unpack(raw)
    return bool(known == key[:16]) and abs(now - at) < seconds
