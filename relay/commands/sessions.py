"""`relay sessions`: lists the live sessions of a running relay over its Unix socket, or ends one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from relay.commands.asking import connected, missing, socket_of
from relay.observe.snapshot import Untaken
from relay.process import messages
from relay.text import age, escaped, plain, quoted, rfc3339, size

CELL_BYTES = 1100  # fits any repository name

_COLUMNS = ("ID", "WHO", "FROM", "SERVICE", "REPOSITORY", "UPSTREAM", "HOST", "AGE", "IN", "OUT")


async def show(config: Path, as_json: bool) -> int:
    """Prints the live sessions, the oldest first; 1 when a worker did not answer."""
    async with connected(socket_of(config), config) as ask:
        answer = await ask(messages.AskWorker(1, "sessions"), messages.Sessions)
    for one in answer.untaken:
        print(untaken(one), file=sys.stderr)  # noqa: T201 - the command's output
    print_lines(answer.lines, as_json)
    if answer.silent:
        print(missing(answer.silent, "sessions"), file=sys.stderr)  # noqa: T201 - the command's output
    return 1 if answer.silent else 0


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
    return await _kill(config, "kill", session_id, f"no live session has the id {session_id!r}")


async def kill_identity(config: Path, identity: str) -> int:
    """Ends all sessions of an identity; who has none is no error of the relay, and exit status 1."""
    return await _kill(config, "kill_identity", identity, f"no live session is of {quoted(identity)}")


async def _kill(config: Path, what: messages.WorkerQuestion, whom: str, none: str) -> int:
    async with connected(socket_of(config), config) as ask:
        ended = await ask(messages.AskWorker(1, what, whom), list[str])
    if not ended:
        print(f"{none}; `relay sessions` lists them", file=sys.stderr)  # noqa: T201
        return 1
    for session_id in ended:
        print(f"session {session_id} is ended; its client reads that an operator ended it")  # noqa: T201
    return 0
