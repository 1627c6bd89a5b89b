"""`relay upstreams`: shows the upstreams of a running relay with their addresses, and pauses, drains or freezes them at run time."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from relay.commands.asking import Asker, connected, missing, socket_of
from relay.process import messages
from relay.process.switches import Action, sentence
from relay.text import age, counted, escaped, rfc3339

LOOK_SECONDS = 0.2  # between two looks of `pause --wait`
CELL_BYTES = 500

HEAD = ("UPSTREAM", "STATE", "SINCE", "BY", "LEASED", "IDLE", "WAITING")
RIGHT = frozenset({"LEASED", "IDLE", "WAITING"})


class Row(NamedTuple):
    """One line of the table: an upstream, an address of it, or the text of a freeze, which is `cells[0]` alone."""

    cells: tuple[str, ...]
    state: str  # the worst of the states: down, paused, frozen, draining, up, unknown; or text


async def show(config: Path, as_json: bool) -> int:
    """Prints the upstreams; 1 when a worker did not answer."""
    async with connected(socket_of(config), config) as ask:
        answer = await _look(ask)
    print_lines(answer.lines, as_json)
    if answer.silent:
        print(missing(answer.silent, "connections"), file=sys.stderr)  # noqa: T201 - the command's output
    return 1 if answer.silent else 0


def print_lines(lines: Sequence[messages.UpstreamState], as_json: bool) -> None:
    if as_json:
        for line in lines:
            print(json.dumps(as_object(line)))  # noqa: T201
        return
    table = [Row(HEAD, ""), *rows(lines, time.time())]
    whole = [row for row in table if len(row.cells) > 1]
    widths = [max(len(row.cells[column]) for row in whole) for column in range(len(HEAD))]
    for row in table:
        cells = zip(HEAD, row.cells, widths, strict=False)
        texts = [cell.rjust(width) if head in RIGHT else cell.ljust(width) for head, cell, width in cells]
        print("  ".join(texts).rstrip())  # noqa: T201


def rows(lines: Sequence[messages.UpstreamState], now: float) -> Iterator[Row]:
    """The table's rows. `now`: seconds since the epoch."""
    for line in lines:
        words = states(line)
        since, by = (line.paused_since, line.paused_by) if line.paused_since else (line.frozen_since, line.frozen_by)
        counts = (str(line.leased), str(line.idle), str(line.waiting))
        yield Row((escaped(line.name, CELL_BYTES), ", ".join(words), *_since(since, by, now), *counts), words[-1])
        for one in line.addresses:
            words = [_word(one.up), *(["draining"] if one.draining_since else [])]
            when = _since(one.draining_since, one.draining_by, now)
            state = "down" if one.up is False else words[-1]
            yield Row((f"  {escaped(one.address, CELL_BYTES)}", ", ".join(words), *when, str(one.leased), str(one.idle), ""), state)
        if line.frozen_since:
            yield Row((f"  who pushes reads: {escaped(line.frozen, CELL_BYTES)}",), "text")


def states(line: messages.UpstreamState) -> list[str]:
    """The states of an upstream; the one that matters most is the last."""
    ups = [one.up for one in line.addresses]
    up = True if True in ups else None if None in ups else False
    words = [_word(up)] if not line.paused_since else []
    if line.frozen_since:
        words.append("frozen")
    if line.paused_since:
        words.append("paused")
    return words if up is not False or line.paused_since else [*words[1:], "down"]


def _word(up: bool | None) -> str:
    return "unknown" if up is None else "up" if up else "down"


def _since(since: float, by: str, now: float) -> tuple[str, str]:
    return (age(max(0.0, now - since)), escaped(by.partition(" ")[0], CELL_BYTES)) if since else ("", "")


def as_object(line: messages.UpstreamState) -> dict[str, Any]:
    """An upstream as a JSON object."""
    return {
        "upstream": line.name,
        "states": states(line),
        "paused_since": _time(line.paused_since),
        "paused_by": line.paused_by or None,
        "frozen_since": _time(line.frozen_since),
        "frozen_by": line.frozen_by or None,
        "frozen": line.frozen or None,
        "leased": line.leased,
        "idle": line.idle,
        "dialing": line.dialing,
        "waiting": line.waiting,
        "addresses": [
            {
                "address": one.address,
                "up": one.up,
                "draining_since": _time(one.draining_since),
                "draining_by": one.draining_by or None,
                "leased": one.leased,
                "idle": one.idle,
                "dialing": one.dialing,
            }
            for one in line.addresses
        ],
    }


def _time(since: float) -> str | None:
    return rfc3339(since) if since else None


async def switch(config: Path, action: Action, upstream: str, argument: str = "", wait: float | None = None) -> int:
    """Switches an upstream in all workers; with `wait`, for pause, returns when no connection to it is leased, at the latest after so
    many seconds. 1 when the relay refused, a worker did not take it, or connections are still leased."""
    async with connected(socket_of(config), config) as ask:
        answer: messages.SwitchAnswer = await ask(messages.Switch(1, action, upstream, argument), messages.SwitchAnswer)
        if answer.problem:
            print(answer.problem, file=sys.stderr)  # noqa: T201 - the command's output
            return 1
        print(sentence(action, upstream, argument) + ("" if answer.changed else "; it was so before"), flush=True)  # noqa: T201
        if answer.late:
            pids = ", ".join(map(str, answer.late))
            print(f"{counted(len(answer.late), 'worker')} did not take it in time: {pids}", file=sys.stderr)  # noqa: T201
        if wait is not None and not await _all_given_back(ask, upstream, wait):
            return 1
    return 1 if answer.late else 0


async def _all_given_back(ask: Asker, upstream: str, seconds: float) -> bool:
    """Waits until no worker, draining ones included, has a connection to `upstream` leased. Prints what came of it."""
    until = time.monotonic() + seconds
    try:
        while True:
            answer = await _look(ask)
            line = next((line for line in answer.lines if line.name == upstream), None)
            if line is None or not line.paused_since:
                print(f"upstream {upstream} was resumed, or is not configured any more", file=sys.stderr)  # noqa: T201
                return False
            leased = line.leased + line.dialing  # a session may still begin on a connection that is being dialed
            if not leased and not answer.silent:
                print(f"no connection to it is leased; {counted(line.waiting, 'session', 'wait')}")  # noqa: T201
                return True
            if time.monotonic() >= until:
                break
            await asyncio.sleep(min(LOOK_SECONDS, max(0.0, until - time.monotonic())))
    except asyncio.CancelledError:
        print(f"upstream {upstream} stays paused", file=sys.stderr)  # noqa: T201
        raise
    silent = f", and {missing(answer.silent, 'connections')}" if answer.silent else ""
    left = f"after {seconds:g} s {counted(leased, 'connection', 'are')} still leased{silent}"
    print(f"{left}; upstream {upstream} stays paused, `relay sessions` lists who is on it", file=sys.stderr)  # noqa: T201
    return False


async def _look(ask: Asker) -> messages.Upstreams:
    answer: messages.Upstreams = await ask(messages.AskWorker(1, "upstreams"), messages.Upstreams)
    return answer
