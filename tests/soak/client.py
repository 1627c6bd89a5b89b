"""One client program: started, fed, read at a given rate, perhaps killed, and always waited for."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

READ_BYTES = 1 << 16
KEPT_BYTES = 1 << 18  # of stdout and of stderr, for diagnosis; the digest is over all bytes
OPERATION_SECONDS = 120.0  # an operation that takes longer hangs, which no fault excuses


@dataclass(frozen=True)
class Ended:
    """`returncode` is negative for a death by signal; `hung` when it had to be ended."""

    returncode: int
    length: int
    sha256: str
    stdout: bytes
    stderr: bytes
    hung: bool = False


async def run_client(
    arguments: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes = b"",
    bytes_per_second: float | None = None,
    kill_after: float | None = None,
    on_hang: Callable[[int], Awaitable[None]] | None = None,
) -> Ended:
    """Runs the program in a process group of its own; sends SIGKILL to the group after `kill_after` seconds.

    Never to git alone: its ssh would stay with its window used up, until the relay ends the session as stalled (test_soak.py).
    Calls `on_hang` with the group before it ends an operation that hangs.
    """
    process = await asyncio.create_subprocess_exec(
        *map(str, arguments), env=env, cwd=cwd, stdin=-1, stdout=-1, stderr=-1, start_new_session=True, limit=READ_BYTES
    )
    assert process.stdout is not None and process.stderr is not None and process.stdin is not None
    killer = None
    if kill_after is not None:
        killer = asyncio.get_running_loop().call_later(kill_after, _kill, process.pid)
    hung = False
    reading = asyncio.gather(_read(process.stdout, bytes_per_second), _read(process.stderr, None), _feed(process.stdin, stdin))
    try:
        async with asyncio.timeout(OPERATION_SECONDS):
            (length, digest, stdout), (_, _, stderr), _ = await asyncio.shield(reading)
            await process.wait()
    except TimeoutError:
        hung = True
        if on_hang is not None:
            await on_hang(process.pid)
        _kill(process.pid)
        (length, digest, stdout), (_, _, stderr), _ = await reading
        await process.wait()
    except asyncio.CancelledError:
        _kill(process.pid)
        await reading
        await process.wait()
        raise
    finally:
        if killer is not None:
            killer.cancel()
    assert process.returncode is not None
    return Ended(process.returncode, length, digest, stdout, stderr, hung)


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass  # the group ended by itself


async def _read(stream: asyncio.StreamReader, bytes_per_second: float | None) -> tuple[int, str, bytes]:
    digest, length, kept = hashlib.sha256(), 0, b""
    while data := await stream.read(READ_BYTES):
        digest.update(data)
        length += len(data)
        if len(kept) < KEPT_BYTES:
            kept += data
        if bytes_per_second is not None:
            await asyncio.sleep(len(data) / bytes_per_second)
    return length, digest.hexdigest(), kept


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    gone = (BrokenPipeError, ConnectionResetError)  # the program's exit status tells the reason
    try:
        for start in range(0, len(data), READ_BYTES):
            stream.write(data[start : start + READ_BYTES])
            await stream.drain()
    except gone:
        pass
    stream.close()
    try:
        await stream.wait_closed()  # also after an error: asyncio warns about an error that nothing awaits
    except gone:
        pass
