"""What psutil says of processes that may end at any moment."""

from __future__ import annotations

import psutil


def alive(process: psutil.Process) -> bool:
    """Neither gone nor a zombie: an orphan's reaping is up to init, which may take its time."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
