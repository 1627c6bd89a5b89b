"""`relay sessions`: lists the live sessions of a running relay over its Unix socket, or ends one."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from relay.config.load import load_config
from relay.errors import ConfigError
from relay.observe.snapshot import Untaken
from relay.process import messages
from relay.text import age, escaped, plain, rfc3339, size

Asker = Callable[[messages.WorkerQuestion, str, Any], Awaitable[Any]]  # question, argument, type of the answer

CELL_BYTES = 1100  # fits any repository name

_COLUMNS = ("ID", "WHO", "FROM", "SERVICE", "REPOSITORY", "UPSTREAM", "HOST", "AGE", "IN", "OUT")


async def show(config: Path, as_json: bool) -> int:
    """Prints the live sessions, the oldest first; 1 when a worker did not answer."""
    async with connected(socket_of(config), config) as ask:
        answer = await ask("sessions", "", messages.Sessions)
    for one in answer.untaken:
        print(untaken(one), file=sys.stderr)  # noqa: T201 - the command's output
    print_lines(answer.lines, as_json)
    if answer.silent:
        print(missing(answer.silent), file=sys.stderr)  # noqa: T201 - the command's output
    return 1 if answer.silent else 0


def missing(silent: int) -> str:
    who = "1 worker did not answer, its sessions" if silent == 1 else f"{silent} workers did not answer, their sessions"
    return f"{who} are missing here"


def untaken(change: Untaken) -> str:
    """The line about a change that is not in force."""
    return f"{change.what}: a change is not in force since {rfc3339(change.since)}: {plain(change.problem)}"


def print_lines(lines: list[messages.LiveSession], as_json: bool) -> None:
    lines = sorted(lines, key=lambda line: -line.seconds)
    if as_json:
        for line in lines:
            print(json.dumps({name: getattr(line, name) for name in line.__struct_fields__}))  # noqa: T201
        return
    rows = [_COLUMNS] + [
        (
            *(
                escaped(text, CELL_BYTES) or "-"
                for text in (line.id, line.identity, line.address, line.service, line.repository, line.upstream, line.host)
            ),
            age(line.seconds),
            size(line.bytes_in),
            size(line.bytes_out),
        )
        for line in lines
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201


async def kill(config: Path, session_id: str) -> int:
    async with connected(socket_of(config), config) as ask:
        found = await ask("kill", session_id, bool)
    if not found:
        print(f"no live session has the id {session_id!r}; `relay sessions` lists them", file=sys.stderr)  # noqa: T201
        return 1
    print(f"session {session_id} is ended; its client reads that an operator ended it")  # noqa: T201
    return 0


def socket_of(config: Path) -> Path:
    """The path of the operators' socket in this configuration; raises ConfigError."""
    loaded = load_config(config)
    return loaded.resolve(loaded.config.admin.sessions_socket)


@asynccontextmanager
async def connected(path: Path, config: Path) -> AsyncIterator[Asker]:
    """A connection to the relay at `path`; raises ConfigError when none listens, or it closes the connection; the error names `config`."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        raise ConfigError([f"{path}: no relay listens here; is one running with {config}?"]) from None
    except PermissionError:
        raise ConfigError([f"{path}: only the user that runs the relay may ask it"]) from None
    try:

        async def ask(what: messages.WorkerQuestion, argument: str, kind: Any) -> Any:
            try:
                messages.write(writer, messages.AskWorker(1, what, argument))
                await writer.drain()
                answer = await messages.read(reader)
            except ConnectionError:
                answer = None
            if not isinstance(answer, messages.Answer):
                raise ConfigError([f"{path}: the relay closed the connection without an answer"])
            return msgspec.msgpack.decode(answer.body, type=kind)

        yield ask
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
