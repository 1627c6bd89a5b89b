"""What an example left to its reader to fill in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from relay.config import FileAccessSettings, FileKeysSettings, FileRoutesSettings
from relay.config.load import Loaded
from relay.config.placeholders import placeholders
from relay.text import plain


def with_placeholders(loaded: Loaded, lines: list[str]) -> list[str]:
    """The problems, with one line for each place that an example left to its reader, instead of what only follows from that."""
    left = [plain(line) for line in placeholders(_own_files(loaded))]
    places = tuple(line.partition(": ")[0] + ":" for line in left)
    return left + [line for line in lines if not line.startswith(places)] if left else lines


def _own_files(loaded: Loaded) -> Iterator[Path]:
    """The files that a site writes by hand."""
    config = loaded.config
    yield loaded.path
    for upstream in config.upstreams.values():
        if upstream.known_hosts is not None:
            yield loaded.resolve(upstream.known_hosts)
    if isinstance(config.keys, FileKeysSettings):
        yield loaded.resolve(config.keys.path)
    if isinstance(config.access, FileAccessSettings):
        yield loaded.resolve(config.access.path)
    if isinstance(config.routes, FileRoutesSettings):
        yield loaded.resolve(config.routes.path)
