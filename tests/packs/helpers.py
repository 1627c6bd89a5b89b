"""Stores on one folder, and readers that wait for what comes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relay.packs.store import About, EntryFailed, Found, Reader, Store, Writer
from tests.support.wait import wait_until_async

ABOUT = About("main", "team/app", "", "full")
LARGE = 1 << 40


def key_of(name: str | int) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def make_store(folder: Path, **settings: Any) -> Store:
    """The store of one worker that keeps the first of equal fetches, with room for anything unless told otherwise."""
    return Store(folder, **{"max_bytes": LARGE, "free_bytes": 0, "ttl_seconds": 300.0, "first": True} | settings)


def filling(store: Store, key: bytes, about: About = ABOUT) -> tuple[Reader, Writer]:
    found = store.ask(key, about)
    assert found.kind == "fill" and found.reader is not None and found.writer is not None, found
    return found.reader, found.writer


def reading(store: Store, key: bytes, kind: str) -> Reader:
    found: Found = store.ask(key, ABOUT)
    assert found.kind == kind and found.reader is not None and found.writer is None, found
    return found.reader


async def news(reader: Reader) -> None:
    """Waits until the reader has something new to say."""
    told = asyncio.Event()
    reader.on_news(told.set)
    await asyncio.wait_for(told.wait(), 60)


async def read_some(reader: Reader, count: int) -> bytes:
    """Reads on until there are `count` further bytes, or more."""
    got = b""
    while len(got) < count:
        if not (data := bytes(reader.read())):
            await news(reader)
        got += data
    return got


async def read_all(reader: Reader) -> bytes:
    """All further bytes of an entry, up to its end. Raises EntryFailed."""
    got = []
    while not reader.whole_read:
        if data := bytes(reader.read()):
            got.append(data)
        else:
            await news(reader)
    assert not reader.read()
    return b"".join(got)


async def failure(reader: Reader) -> str:
    """Reads on until the entry fails; why."""
    try:
        await read_all(reader)
    except EntryFailed as error:
        return str(error)
    raise AssertionError("the entry did not fail")


async def keep(store: Store, key: bytes, body: bytes, about: About = ABOUT) -> None:
    """Puts a whole entry into the folder, as a client that reads all of it."""
    reader, writer = filling(store, key, about)
    writer.write(body)
    writer.publish()
    assert await read_all(reader) == body
    reader.close()


def names(folder: Path) -> list[str]:
    """What lies in the folder, but the table of fetches that were seen."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".seen")


async def until(condition: Callable[[], object]) -> None:
    await wait_until_async(lambda: bool(condition()))
