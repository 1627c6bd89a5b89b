"""Imports asyncssh without its search for libnettle and liboqs, of whose algorithms (UMAC, sntrup761) the relay offers none.

The search runs ldconfig, and gcc and ld where they are installed, for each of five names: a sixth of the CPU that a worker's start takes.
Whoever starts fast imports this module before any other that imports asyncssh.
"""

from __future__ import annotations

import ctypes.util

NOT_WANTED = frozenset({"nettle", "libnettle", "libnettle-6", "oqs", "liboqs"})

_find = ctypes.util.find_library


def _find_wanted(name: str) -> str | None:
    return None if name in NOT_WANTED else _find(name)


ctypes.util.find_library = _find_wanted
try:
    import asyncssh  # noqa: F401 - the import is what this module is for
finally:
    ctypes.util.find_library = _find
