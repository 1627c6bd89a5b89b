"""What `relay check` warns of in routes.toml: routes that no repository takes, and upstreams to which none leads."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final, NamedTuple

from relay.config.toml import Problems, read
from relay.errors import ConfigError
from relay.git.coverage import covers
from relay.routes.file import RoutesFile
from relay.text import quoted

COMPARED: Final = 1_000  # routes; those behind are not compared with those before


class Look(NamedTuple):
    """What the file says, looked at as a whole."""

    remarks: list[str]  # one for each route that earlier ones leave nothing for
    patterns: list[str]  # of all routes
    unused: list[str]  # upstreams to which no route leads


def look(path: Path, upstreams: Collection[str]) -> Look | None:
    """None where the file cannot be read, which is told as a problem already."""
    try:
        file, problems = read(path, RoutesFile)
    except ConfigError:
        return None
    if problems.lines:
        return None
    told = Problems(problems.places)
    before: list[str] = []
    for number, route in enumerate(file.route[:COMPARED], 1):
        all_of_it = f"all that {quoted(route.repositories)} does"
        single = next((earlier for earlier, pattern in enumerate(before, 1) if covers([pattern], route.repositories)), None)
        if single is not None:
            told.add(f"route#{number}", f"is never taken: route#{single} matches {all_of_it}, and comes before")
        elif covers(before, route.repositories):
            told.add(f"route#{number}", f"is never taken: the routes before it match {all_of_it}")
        before.append(route.repositories)
    if len(file.route) > COMPARED:
        told.add("route", f"only the first {COMPARED} routes were compared with those before them")
    named = {name for route in file.route for name in (route.upstream, route.read_upstream)}
    return Look(told.lines, [route.repositories for route in file.route], [name for name in upstreams if name not in named])
