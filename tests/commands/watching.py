"""A command with --watch as a process without a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.support.relay_process import RelayProcess

ROOT = Path(__file__).parents[2]


@contextmanager
def watching(relay: RelayProcess, command: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    arguments = [sys.executable, "-m", "relay", command, "-c", str(relay.config_file), "--watch", "--interval", "0.1", *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdout=pipe, stderr=pipe, text=True, env=env, cwd="/") as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout
        finally:
            process.kill()


def next_that(lines: IO[str], wanted: Callable[[str], bool]) -> str:
    """Blocks until such a line; the test's timeout ends it."""
    return next(line for line in lines if wanted(line))
