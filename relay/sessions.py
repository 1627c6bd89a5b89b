"""`relay sessions`: asks a running relay, over its Unix socket, who is in, and ends one."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from relay import control
from relay.errors import ConfigError
from relay.human import age, size
from relay.load import load_config

_COLUMNS = ("ID", "WHO", "FROM", "SERVICE", "REPOSITORY", "UPSTREAM", "AGE", "IN", "OUT")


async def show(config: Path, as_json: bool) -> int:
    """Prints who is in, the longest first; 1 when that may not be all."""
    async with _relay(config) as ask:
        answer = await ask("sessions", "", control.Sessions)
    print_lines(answer.lines, as_json)
    if answer.silent:
        who = "1 worker did not answer, its sessions" if answer.silent == 1 else f"{answer.silent} workers did not answer, their sessions"
        print(f"{who} are missing here", file=sys.stderr)  # noqa: T201 - the command's output
    return 1 if answer.silent else 0


def print_lines(lines: list[control.SessionLine], as_json: bool) -> None:
    lines = sorted(lines, key=lambda line: -line.seconds)
    if as_json:
        for line in lines:
            print(json.dumps({name: getattr(line, name) for name in line.__struct_fields__}))  # noqa: T201
        return
    rows = [_COLUMNS] + [
        (
            line.id,
            line.identity,
            line.address,
            line.service or "-",
            line.repository or "-",
            line.upstream or "-",
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
    async with _relay(config) as ask:
        found = await ask("kill", session_id, bool)
    if not found:
        print(f"no live session has the id {session_id!r}; `relay sessions` lists them", file=sys.stderr)  # noqa: T201
        return 1
    return 0


@asynccontextmanager
async def _relay(config: Path) -> AsyncIterator[Any]:
    loaded = load_config(config)
    path = loaded.resolve(loaded.config.admin.sessions_socket)
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        raise ConfigError([f"{path}: no relay listens here; is one running with {config}?"]) from None
    except PermissionError:
        raise ConfigError([f"{path}: only the user that runs the relay may ask it"]) from None
    try:

        async def ask(what: control.Question, argument: str, kind: Any) -> Any:
            control.write(writer, control.Ask(1, what, argument))
            await writer.drain()
            answer = await control.read(reader)
            if not isinstance(answer, control.Answer):
                raise ConfigError([f"{path}: the relay closed the connection without an answer"])
            return msgspec.msgpack.decode(answer.body, type=kind)

        yield ask
    finally:
        writer.close()
        await writer.wait_closed()
