"""`relay upstreams --watch`: shows the upstreams periodically, full-screen on a terminal, else in plain tables."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from relay.commands.asking import has_screen, missing, watched
from relay.commands.upstreams import as_object, print_lines
from relay.process import messages
from relay.text import rfc3339


async def watch(config: Path, interval: float, as_json: bool) -> int:
    """Runs until a key or a signal ends it; raises ConfigError when no relay listens at the start."""
    tables = await watched(config, interval, "upstreams", messages.Upstreams)
    if as_json or not has_screen(interval):
        return await print_looks(tables, as_json)
    from relay.commands.upstreams_screen import Screen

    return await Screen(config, interval).run(tables)


async def print_looks(tables: AsyncGenerator[messages.Upstreams | str, None], as_json: bool) -> int:
    """Prints each table, or a JSON object for it; a problem is printed to stderr once."""
    told = ""
    async with aclosing(tables) as all_tables:
        async for look in all_tables:
            trouble = look if isinstance(look, str) else missing(look.silent, "connections") if look.silent else ""
            if trouble and trouble != told:
                print(trouble, file=sys.stderr)  # noqa: T201
            told = trouble
            if isinstance(look, str):
                continue
            if as_json:
                upstreams = [as_object(line) for line in look.lines]
                print(json.dumps({"time": rfc3339(time.time()), "silent": look.silent, "upstreams": upstreams}), flush=True)  # noqa: T201
            else:
                print_lines(look.lines, as_json=False)
                print(flush=True)  # noqa: T201
    return 0
