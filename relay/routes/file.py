"""Routes in a TOML file: the first whose pattern matches says which git host, and the path it is asked for. Read again when changed."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from msgspec import Meta
from msgspec.structs import replace

from relay.config import Table
from relay.errors import ConfigError, Denied
from relay.globs import compile_glob, glob_fault
from relay.model import PATH_CHARACTERS, Command, Identity, Route, path_faults
from relay.tables import Problems, quoted, read
from relay.watch import LOOK_SECONDS, Watched, stamp_file

PLACEHOLDER = "{repository}"


class RouteTable(Table, frozen=True, forbid_unknown_fields=True):
    """Where some repositories live."""

    repositories: Annotated[str, Meta(description="* within one path segment, ** across")]
    upstream: Annotated[str, Meta(description="the NAME of an [upstreams.NAME] table")]
    path: Annotated[str, Meta(min_length=1, max_length=PATH_CHARACTERS, description="what the git host is asked for")]
    read_upstream: str | None = None  # another NAME, whose git hosts have copies under the same path: reads go there, writes never
    read_fallback: bool = True  # reads go to upstream when no host of read_upstream answers


class RoutesFile(Table, frozen=True, forbid_unknown_fields=True):
    """routes.toml"""

    route: Annotated[list[RouteTable], Meta(min_length=1)]


class Target(NamedTuple):
    """One route, ready to be asked."""

    repositories: re.Pattern[str]
    route: Route  # its path with the placeholder


class FileRoutes:
    """The routes are asked in order."""

    source = "file"

    def __init__(self, path: Path, upstreams: Collection[str], *, look_seconds: float = LOOK_SECONDS) -> None:
        names = frozenset(upstreams)
        self._routes = Watched(f"routes in {path}", lambda: stamp_file(path), lambda _: load(path, names), look_seconds=look_seconds)
        if self._routes.problems:
            raise ConfigError(self._routes.problems)

    async def find(self, command: Command, identity: Identity) -> Route:
        for target in await self._routes.current():
            if target.repositories.fullmatch(command.repository):
                return replace(target.route, path=target.route.path.replace(PLACEHOLDER, command.repository))
        raise Denied(f"no route leads to {command.repository}")

    async def close(self) -> None:
        await self._routes.close()


def load(path: Path, upstreams: Collection[str]) -> tuple[Sequence[Target], list[str]]:
    """The routes, and one line for each problem. Without any upstream, which is a problem of its own, names are not judged."""
    try:
        file, problems = read(path, RoutesFile)
    except ConfigError as error:
        return (), error.problems
    targets = [_target(f"route#{number}", table, upstreams, problems) for number, table in enumerate(file.route, 1)]
    return ((), problems.lines) if problems.lines else (tuple(targets), [])


def _target(key: str, table: RouteTable, upstreams: Collection[str], problems: Problems) -> Target:
    if (fault := glob_fault(table.repositories)) is not None:
        problems.add(f"{key}.repositories", f"{quoted(table.repositories)} {fault}")
    for field, name in (("upstream", table.upstream), ("read_upstream", table.read_upstream)):
        if upstreams and name is not None and name not in upstreams:
            problems.add(f"{key}.{field}", f"is {quoted(name)}, the upstreams are {', '.join(map(quoted, sorted(upstreams)))}")
    if table.read_upstream == table.upstream:
        problems.add(f"{key}.read_upstream", f"is {quoted(table.upstream)} as upstream, must be another or be left out")
    for fault in path_faults(table.path):
        problems.add(f"{key}.path", fault)
    if re.search(r"[{}]", table.path.replace(PLACEHOLDER, "")):
        problems.add(f"{key}.path", f"has braces besides {PLACEHOLDER}, which is the only placeholder that is allowed")
    elif "*" in table.repositories and PLACEHOLDER not in table.path:
        problems.add(f"{key}.path", f"is the same for all of {quoted(table.repositories)}, must have {PLACEHOLDER} in it")
    route = Route(upstream=table.upstream, path=table.path, read_upstream=table.read_upstream, read_fallback=table.read_fallback)
    return Target(compile_glob(table.repositories), route)
