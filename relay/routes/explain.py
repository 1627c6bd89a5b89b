"""Which routes of a routes file are about one repository, for `relay check --explain`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from relay.config.toml import read
from relay.errors import ConfigError
from relay.model import Command, Identity
from relay.routes.file import RoutesFile, RouteTable, read_routes


def explain(path: Path, who: str, command: Command, upstreams: Collection[str], ignoring: Collection[str] = ()) -> list[str]:
    """A line for each route about the repository; the first one decides. Raises ConfigError as `read`."""
    file, problems = read(path, RoutesFile)
    routes, faults = read_routes(path, upstreams, ignoring)
    if faults:
        raise ConfigError(faults)
    found = [
        f"{problems.where(f'route#{number}')}: {table.repositories} {_leads(table)}"
        for number, (table, target) in enumerate(zip(file.route, routes.targets, strict=True), 1)
        if target.matches(command, Identity(name=who, fingerprint=""))
    ]
    if not found:
        return [f"{path}: no route is about this repository"]
    return [f"{found[0]}: decides", *(f"{line}: not asked, the first one decides" for line in found[1:])]


def _leads(table: RouteTable) -> str:
    return f"leads to upstream {table.upstream}" if table.moved_to is None else f"has moved to {table.moved_to}"
