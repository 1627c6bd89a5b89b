"""Finds out whether a git host ignores case, by requesting one repository under two spellings of its path."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

from relay.errors import RelayError
from relay.model import Command, Exit
from relay.upstream.libssh2 import Connection

_REFS = re.compile(rb"[0-9a-f]{4}")  # the first packet's length: git-upload-pack has found the repository


class _Answer:
    """A peer that reads a command's output up to the first packet's length."""

    def __init__(self) -> None:
        self._read = b""
        self._found: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def found(self) -> bool:
        return await self._found

    def _tell(self, found: bool) -> None:
        if not self._found.done():
            self._found.set_result(found)

    def upstream_data(self, data: memoryview) -> None:
        self._read += bytes(data[: 4 - len(self._read)])
        if len(self._read) == 4:
            self._tell(_REFS.fullmatch(self._read) is not None)

    def upstream_stderr(self, data: memoryview) -> None:
        pass

    def upstream_unread(self, count: int) -> bool:
        return True

    def upstream_accepted(self) -> None:
        pass

    def upstream_eof(self) -> None:
        pass

    owed: float | None = None  # no session waits for this connection

    def give_way(self) -> bool:
        return False

    def upstream_ended(self, how: Exit | RelayError) -> None:
        self._tell(False)


def other_spelling(path: str) -> str | None:
    """The path with its last segment in the other case, .git apart; None where there is no letter in it."""
    folder, slash, name = path.rpartition("/")
    stem, dot, _ = name.partition(".git")
    swapped = folder + slash + stem.swapcase() + (name[len(stem) :] if dot else "")
    return None if swapped == path else swapped


async def ignores_case(dial: Callable[[], Awaitable[Connection]], path: str) -> bool | None:
    """Whether the git host finds the repository at `path` under another spelling too; None where it does not find it at all.

    A login for each question. Raises what `dial` does.
    """
    other = other_spelling(path)
    if other is None or not await _is_there(dial, path):
        return None
    return await _is_there(dial, other)


async def _is_there(dial: Callable[[], Awaitable[Connection]], path: str) -> bool:
    connection = await dial()
    try:
        await connection.run(Command(service="git-upload-pack", repository="").line(path), [])
        answer = _Answer()
        connection.attach(answer)
        return await answer.found()
    finally:
        connection.close()
