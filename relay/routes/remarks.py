"""Warnings of `relay check` about routes.toml: routes that are never used, and upstreams to which no route leads."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final, NamedTuple

from relay.config.toml import Problems, read
from relay.errors import ConfigError
from relay.git.coverage import covers, overlap
from relay.git.namespaces import anybodys
from relay.routes.file import RoutesFile
from relay.text import quoted

ROUTES_COMPARED: Final = 1_000  # later routes are not compared with earlier ones


class RoutesReview(NamedTuple):
    """Warnings about the file, and what it has as a whole."""

    remarks: list[str]  # one for each route that is never used, because earlier ones match all that it does
    patterns: list[str]  # of all routes that lead to an upstream
    moved: list[tuple[str, int]]  # the pattern of each route with moved_to, and how many of `patterns` come before it
    unused: list[str]  # upstreams to which no route leads


def review(path: Path, upstreams: Collection[str]) -> RoutesReview | None:
    """None if the file cannot be read, which is already reported as a problem."""
    try:
        file, problems = read(path, RoutesFile)
    except ConfigError:
        return None
    if problems.lines:
        return None
    warnings = Problems(problems.places)
    before: list[str] = []
    for number, route in enumerate(file.route[:ROUTES_COMPARED], 1):
        all_of_it = f"all that {quoted(route.repositories)} does"
        single = next((earlier for earlier, pattern in enumerate(before, 1) if covers([pattern], route.repositories)), None)
        if single is not None:
            warnings.add(f"route#{number}", f"is never taken: route#{single} matches {all_of_it}, and comes before")
        elif covers(before, route.repositories):
            warnings.add(f"route#{number}", f"is never taken: the routes before it match {all_of_it}")
        before.append(route.repositories)
    if len(file.route) > ROUTES_COMPARED:
        warnings.add("route", f"only the first {ROUTES_COMPARED} routes were compared with those before them")
    leading: list[str] = []
    moved: list[tuple[str, int]] = []
    for route in file.route:
        if route.moved_to is None:
            leading.append(anybodys(route.repositories))
        else:
            moved.append((route.repositories, len(leading)))
    for number, route in enumerate(file.route, 1):
        if route.moved_to is not None and not any(overlap(pattern, anybodys(route.moved_to)) for pattern in leading):
            warnings.add(f"route#{number}.moved_to", f"no route leads to {quoted(route.moved_to)}, so nobody gets there")
    named = {name for route in file.route for name in (route.upstream, route.read_upstream)}
    return RoutesReview(warnings.lines, leading, moved, [name for name in upstreams if name not in named])
