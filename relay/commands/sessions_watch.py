"""`relay sessions --watch`: lists the sessions periodically, full-screen on a terminal, else in plain lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from relay.commands.asking import has_screen, missing, watched
from relay.commands.sessions import print_lines, untaken
from relay.commands.sessions_rates import Live, Row, ordered
from relay.process import messages
from relay.text import rfc3339


async def watch(config: Path, interval: float, sort: str, as_json: bool) -> int:
    """Runs until a key or a signal ends it; raises ConfigError when no relay listens at the start."""
    lists = await watched(config, interval, "sessions", messages.Sessions)
    if as_json or not has_screen(interval):
        return await print_looks(lists, sort, as_json)
    from relay.commands.sessions_screen import Screen

    return await Screen(config, interval, sort).run(lists)


async def print_looks(lists: AsyncGenerator[messages.Sessions | str, None], sort: str, as_json: bool) -> int:
    """Prints each list, or a JSON object for it; a problem is printed to stderr once."""
    live, told, untaken_told = Live(), "", set[str]()
    async with aclosing(lists) as all_looks:
        async for look in all_looks:
            trouble = look if isinstance(look, str) else missing(look.silent, "sessions") if look.silent else ""
            if trouble and trouble != told:
                print(trouble, file=sys.stderr)  # noqa: T201
            told = trouble
            if isinstance(look, str):
                continue
            changes = {untaken(one): None for one in look.untaken}
            for line in changes:
                if line not in untaken_told:
                    print(line, file=sys.stderr)  # noqa: T201
            untaken_told = set(changes)
            rows = ordered(live.look(look.lines), sort)
            if as_json:
                print(json.dumps(_object(live, rows, look)), flush=True)  # noqa: T201
            else:
                print_lines([row.line for row in rows], as_json=False)
                print(flush=True)  # noqa: T201
    return 0


def _object(live: Live, rows: list[Row], look: messages.Sessions) -> dict[str, Any]:
    total = live.totals
    return {
        "time": rfc3339(time.time()),
        "rate_in": round(total.rate_in),
        "rate_out": round(total.rate_out),
        "silent": look.silent,
        "untaken": [{"what": one.what, "since": rfc3339(one.since), "problem": one.problem} for one in look.untaken],
        "sessions": [_session(row) for row in rows],
    }


def _session(row: Row) -> dict[str, Any]:
    rates = {name: None if rate is None else round(rate) for name, rate in (("rate_in", row.rate_in), ("rate_out", row.rate_out))}
    return {**msgspec.structs.asdict(row.line), **rates, "quiet_seconds": round(row.quiet_seconds, 3)}
