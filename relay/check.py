"""`relay check`: each problem in what `relay serve` would read is one line; with a way to connect, upstreams are tried too."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from relay.errors import ConfigError
from relay.load import Loaded, load_all

Connect = Callable[[Loaded], Coroutine[Any, Any, list[str]]]


def check(path: Path, connect: Connect | None = None) -> int:
    """Prints the problems, or one line that all is well. Returns the exit status, 0 or 1.

    `connect`, for --connect, logs in to every upstream and returns its problems as lines; it is asked only when there are no others.
    """
    try:
        loaded = load_all(path)
        if connect is not None and (problems := asyncio.run(connect(loaded))):
            raise ConfigError(problems)
    except ConfigError as error:
        sys.stdout.write("".join(f"{line}\n" for line in error.problems))
        return 1
    sys.stdout.write(f"{path}: all is well{' and every upstream can be reached' if connect is not None else ''}\n")
    return 0
