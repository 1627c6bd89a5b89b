"""Where a route leads one identity and repository: its placeholders replaced, and the new name of a repository that has moved; pure."""

from __future__ import annotations

from msgspec.structs import replace

from relay.errors import Denied
from relay.git.globs import glob_fault
from relay.git.names import BadName, check_repository
from relay.git.namespaces import PLACEHOLDER as IDENTITY
from relay.git.namespaces import namespace
from relay.model import Command, Identity, Route
from relay.routes import PLACEHOLDER

_STARS = ("*", "**")


def placed(route: Route, pattern: str, command: Command, identity: Identity) -> Route:
    """The route of one repository, which `pattern` matches for this identity.

    Raises Denied if the route has {identity} in it and this identity no namespace, or if the new name would be too long.
    """
    name = None
    named = IDENTITY in route.path or IDENTITY in (route.moved_to or "")
    if named and (name := namespace(identity.name, folded=command.folded)) is None:
        raise Denied(f"the route of {command.repository} has {IDENTITY} in it, and {identity.name} can be no folder's name")
    if route.moved_to is None:
        # the client's text last: it may hold what looks like a placeholder
        before, *rest = route.path.split(PLACEHOLDER)
        parts = [part if name is None else part.replace(IDENTITY, name) for part in (before, *rest)]
        return replace(route, path=command.repository.join(parts))
    return replace(route, moved_to=_new_name(route.moved_to if name is None else route.moved_to.replace(IDENTITY, name), pattern, command))


def _new_name(moved_to: str, pattern: str, command: Command) -> str:
    *folder, last = moved_to.split("/")
    if last not in _STARS:
        return moved_to
    kept = command.repository.split("/")[pattern.count("/") :]  # what the star at the end of the pattern matches
    name = "/".join([*folder, *kept])
    try:
        check_repository(name)
    except BadName as bad:
        raise Denied(f"{command.repository} would be {name} now: {bad}") from None
    return name


def move_fault(pattern: str, moved_to: str) -> str | None:
    """Why `moved_to` can be no new name for what `pattern` matches, and what is allowed; None when it can.

    A star is possible only as the last segment of both: what it matches is kept.
    """
    if (fault := glob_fault(moved_to, placeholder=True)) is not None:
        return fault
    if moved_to == pattern:
        return "is the name that it has in repositories, must be another one"
    (folder, end), (new_folder, new_end) = (_parted(one.replace(IDENTITY, "x")) for one in (pattern, moved_to))
    if "*" in folder:
        return "needs repositories that are a name, or have one * or ** as their last segment, such as old/**"
    if "*" in new_folder or end != new_end:
        return f"must end in {end}, as repositories do, and have no other star" if end else "must be a name: repositories is one, too"
    return None


def _parted(pattern: str) -> tuple[str, str]:
    """A pattern without the star that is its last segment, and that star; empty without one."""
    folder, _, last = pattern.rpartition("/")
    return (folder, last) if last in _STARS else (pattern, "")
