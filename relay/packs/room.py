"""Which entries go, so that the others fit: decided from a list, without touching the disk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Kept(NamedTuple):
    """An entry of the folder."""

    name: str
    inode: tuple[int, int]
    bytes: int  # on the disk
    made: float  # seconds since the epoch
    used: float
    whole: bool  # else it is being filled, and stays


def is_old(made: float, now: float, ttl_seconds: float) -> bool:
    """Also when the clock was set back since it was made: its age is then not known."""
    return abs(now - made) >= ttl_seconds


def leaving(entries: Iterable[Kept], now: float, ttl_seconds: float, max_bytes: int, short_bytes: int) -> tuple[list[Kept], int]:
    """The entries that go, and how many bytes the others have.

    Those older than `ttl_seconds` go. Then those longest unused, until the others have at most `max_bytes`, and `short_bytes`, by which the
    file system has too little, are given back.
    """
    going: list[Kept] = []
    staying: list[Kept] = []
    for one in entries:
        (going if one.whole and is_old(one.made, now, ttl_seconds) else staying).append(one)
    total = sum(one.bytes for one in staying)
    given_back = sum(one.bytes for one in going)
    for one in sorted((one for one in staying if one.whole), key=lambda one: one.used):
        if total <= max_bytes and given_back >= short_bytes:
            break
        going.append(one)
        total -= one.bytes
        given_back += one.bytes
    return going, total
