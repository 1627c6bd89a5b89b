"""Routes in a TOML file: the first route whose pattern matches gives the upstream and the path there. Read again when changed.

A route with `moved_to` gives the name that the repository has now, and everything is asked about that one. {identity} in a pattern, path or
moved_to is the name of the identity that asks.

While a changed file has a fault, new routes are not accepted, and the repositories of a removed route are denied at once (`narrowed`). If
the file cannot be read at all, or is not TOML, the routes stay as they were.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, NamedTuple

from msgspec import Meta

from relay.backends.watched import LOOK_SECONDS, Tell, Watched, stamp_file
from relay.config import Table
from relay.config.toml import Problems, read
from relay.errors import ConfigError, Denied
from relay.git.coverage import covers, overlap
from relay.git.globs import compile_glob, glob_fault
from relay.git.namespaces import PLACEHOLDER as IDENTITY
from relay.git.namespaces import anybodys, has_placeholder, own
from relay.model import PATH_CHARACTERS, Command, Identity, Route, path_faults
from relay.routes import PLACEHOLDER
from relay.routes.target import move_fault, placed
from relay.text import client_text_fault, quoted

OWN_PATTERNS = 4_096  # of routes with {identity}, compiled for one identity each, that are kept


class RouteTable(Table, frozen=True, forbid_unknown_fields=True):
    """The upstream and path of some repositories, or the name that they have now."""

    repositories: Annotated[str, Meta(description="* within one path segment, ** across, {identity} for the name of who asks")]
    upstream: Annotated[str, Meta(description="the NAME of an [upstreams.NAME] table")] | None = None
    path: Annotated[str, Meta(min_length=1, max_length=PATH_CHARACTERS, description="what the git host is asked for")] | None = None
    moved_to: str | None = None  # instead of all others: the name now, as team/new; or with repositories = "old/**" as new/**
    read_upstream: str | None = None  # another NAME, whose git hosts have copies under the same path: reads go there, writes never
    read_fallback: bool = True  # reads go to upstream when no host of read_upstream answers
    read_only: str | None = None  # a text: pushes and LFS uploads are refused with it
    notice: str | None = None  # a line that git's clients read on stderr, after the login


class RoutesFile(Table, frozen=True, forbid_unknown_fields=True):
    """routes.toml"""

    route: Annotated[list[RouteTable], Meta(min_length=1)]


class Target(NamedTuple):
    """One route, compiled."""

    repositories: re.Pattern[str]  # with any segment for {identity}
    route: Route | None  # with its placeholders; None: removed by a change that has a fault
    pattern: str = ""  # as written

    def matches(self, command: Command, identity: Identity) -> bool:
        if self.repositories.fullmatch(command.repository) is None:
            return False
        if not has_placeholder(self.pattern):
            return True
        mine = own(self.pattern, identity.name, folded=command.folded)
        return mine is not None and _compiled(mine).fullmatch(command.repository) is not None


class ReadableRoutes(NamedTuple):
    """What could be read of a file."""

    targets: tuple[Target, ...]
    faulty: frozenset[str]  # patterns of routes with a fault in another field
    whole: bool  # False: the content of the file is unknown


class FileRoutes:
    """Answers from the routes in memory."""

    source = "file"

    def __init__(
        self, path: Path, upstreams: Collection[str], *, ignoring: Collection[str] = (), look_seconds: float = LOOK_SECONDS
    ) -> None:
        self._path = path
        self._upstreams = frozenset(upstreams)
        self._ignoring = frozenset(ignoring)
        self._last: tuple[Target, ...] = ()
        self._routes = Watched(
            f"routes in {path}", lambda: stamp_file(path), lambda _: self._read(), look_seconds=look_seconds, in_parts=True
        )
        if self._routes.problems:
            raise ConfigError(self._routes.problems)

    def watch(self, tell: Tell) -> None:
        self._routes.watch("routes", tell)

    def _read(self) -> tuple[Sequence[Target], list[str]]:
        """Runs in a thread."""
        now, problems = read_routes(self._path, self._upstreams, self._ignoring)
        if not problems:
            self._last = now.targets
        elif now.whole:
            self._last = narrowed(self._last, now)
        return self._last, problems

    async def find(self, command: Command, identity: Identity) -> Route:
        for target in await self._routes.current():
            if target.matches(command, identity):
                if target.route is None:
                    raise Denied(f"the route of {command.repository} was taken away")
                return placed(target.route, target.pattern, command, identity)
        raise Denied(f"no route leads to {command.repository}")

    async def close(self) -> None:
        await self._routes.close()


@lru_cache(maxsize=OWN_PATTERNS)
def _compiled(pattern: str) -> re.Pattern[str]:
    return compile_glob(pattern)


def load(path: Path, upstreams: Collection[str]) -> tuple[Sequence[Target], list[str]]:
    """The routes, and one line for each problem. If `upstreams` is empty, which is reported elsewhere, their names are not checked."""
    now, problems = read_routes(path, upstreams)
    return () if problems else now.targets, problems


def read_routes(path: Path, upstreams: Collection[str], ignoring: Collection[str] = ()) -> tuple[ReadableRoutes, list[str]]:
    """The routes that can be read, and one line for each problem."""
    try:
        file, problems = read(path, RoutesFile)
    except ConfigError as error:
        return ReadableRoutes((), frozenset(), whole=False), error.problems
    targets: list[Target] = []
    faulty: set[str] = set()
    _check_moves(file.route, problems)
    for number, table in enumerate(file.route, 1):
        key = f"route#{number}"
        target = _target(key, table, upstreams, ignoring, problems)
        if not any(one == key or one.startswith(f"{key}.") for one in problems.keys):
            targets.append(target)
        elif not any(one.startswith(f"{key}.repositories") for one in problems.keys):
            faulty.add(target.repositories.pattern)
    return ReadableRoutes(tuple(targets), frozenset(faulty), whole=bool(file.route)), problems.lines


def narrowed(before: Sequence[Target], now: ReadableRoutes) -> tuple[Target, ...]:
    """The routes while the changed file has a fault: those before that the file still has, in their old order.

    A route whose pattern the file still has, with a fault in another field, stays as it was. A removed route still matches, and denies:
    without it the next route that matches might lead to another git host.
    """
    still = set(now.targets)
    return tuple(
        target if target in still or target.repositories.pattern in now.faulty else target._replace(route=None) for target in before
    )


def _target(key: str, table: RouteTable, upstreams: Collection[str], ignoring: Collection[str], problems: Problems) -> Target:
    if table.moved_to is not None:
        folded = bool(upstreams) and set(upstreams) <= set(ignoring)
    else:
        folded = table.upstream in ignoring or table.read_upstream in ignoring
    if (fault := glob_fault(table.repositories, folded=folded, placeholder=True)) is not None:
        problems.add(f"{key}.repositories", f"{quoted(table.repositories)} {fault}")
    compiled = compile_glob(anybodys(table.repositories))
    if table.moved_to is not None:
        _check_moved(key, table, table.moved_to, problems)
        return Target(compiled, Route(moved_to=table.moved_to), table.repositories)
    for field, value in (("upstream", table.upstream), ("path", table.path)):
        if value is None and not problems.about(f"{key}.{field}"):
            problems.add(f"{key}.{field}", "is missing, must be there; or moved_to must be, with the name that the repository has now")
    for field, name in (("upstream", table.upstream), ("read_upstream", table.read_upstream)):
        if upstreams and name is not None and name not in upstreams:
            problems.add(f"{key}.{field}", f"is {quoted(name)}, the upstreams are {', '.join(map(quoted, sorted(upstreams)))}")
    if table.read_upstream is not None and table.read_upstream == table.upstream:
        problems.add(f"{key}.read_upstream", f"is {quoted(table.upstream)} as upstream, must be another or be left out")
    if table.read_only is not None and (fault := client_text_fault(table.read_only)) is not None:
        problems.add(f"{key}.read_only", fault)
    if table.notice is not None and (fault := client_text_fault(table.notice)) is not None:
        problems.add(f"{key}.notice", fault)
    _check_path(key, table, problems)
    route = Route(
        upstream=table.upstream or "",
        path=table.path or "",
        read_upstream=table.read_upstream,
        read_fallback=table.read_fallback,
        read_only=table.read_only,
        notice=table.notice,
    )
    return Target(compiled, route, table.repositories)


def _check_path(key: str, table: RouteTable, problems: Problems) -> None:
    if table.path is None:
        return
    for fault in path_faults(table.path):
        problems.add(f"{key}.path", fault)
    if re.search(r"[{}]", table.path.replace(PLACEHOLDER, "").replace(IDENTITY, "")):
        problems.add(f"{key}.path", f"has braces besides {PLACEHOLDER} and {IDENTITY}, which are the only placeholders that are allowed")
    elif "*" in table.repositories and PLACEHOLDER not in table.path:
        problems.add(f"{key}.path", f"is the same for all of {quoted(table.repositories)}, must have {PLACEHOLDER} in it")
    elif has_placeholder(table.repositories) and PLACEHOLDER not in table.path and IDENTITY not in table.path:
        problems.add(f"{key}.path", f"is the same for all of {quoted(table.repositories)}, must have {PLACEHOLDER} or {IDENTITY} in it")


def _check_moved(key: str, table: RouteTable, moved_to: str, problems: Problems) -> None:
    for field in ("upstream", "path", "read_upstream", "read_only", "notice"):
        if getattr(table, field) is not None:
            problems.add(f"{key}.{field}", "is set beside moved_to, must be left out: the route of the new name decides")
    if not problems.about(f"{key}.repositories") and (fault := move_fault(table.repositories, moved_to)) is not None:
        problems.add(f"{key}.moved_to", f"{quoted(moved_to)} {fault}")


def _check_moves(routes: Sequence[RouteTable], problems: Problems) -> None:
    """Refuses chains and loops: what has moved must have moved to where it is, not to a name that has moved, too."""
    moved = [(number, anybodys(route.repositories)) for number, route in enumerate(routes) if route.moved_to is not None]
    names = {pattern: number for number, pattern in reversed(moved) if "*" not in pattern}
    wild = [(number, pattern) for number, pattern in moved if "*" in pattern]
    for number, route in enumerate(routes):
        if route.moved_to is None or glob_fault(route.moved_to, placeholder=True) is not None:
            continue
        target = anybodys(route.moved_to)
        if "*" in target:
            met = [other for other, pattern in moved if overlap(pattern, target)]
        else:
            met = [names[target]] if target in names else []
            met += [other for other, pattern in wild if overlap(pattern, target)]
        for other in sorted(met):
            before = [one.repositories for one in routes[:other] if one.moved_to is None and not has_placeholder(one.repositories)]
            if covers(before, target):
                continue  # a route before it leads there already
            if other == number:
                why = f"lies within {quoted(route.repositories)} itself, which would move for ever; a route before this one must lead there"
            else:
                why = f"has moved itself by route#{other + 1}, must be the name that it has now"
            problems.add(f"route#{number + 1}.moved_to", f"{quoted(route.moved_to)} {why}")
            break
