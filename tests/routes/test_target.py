"""Placeholders and new names: what a route becomes for one repository, and which new names are possible."""

from __future__ import annotations

import pytest

from relay.errors import Denied
from relay.model import Command, Identity, Route
from relay.routes.target import move_fault, placed


def at(route: Route, pattern: str, repository: str, who: str = "alice", *, folded: bool = False) -> Route:
    command = Command(service="git-upload-pack", repository=repository, folded=folded)
    return placed(route, pattern, command, Identity(name=who, fingerprint=""))


@pytest.mark.parametrize(
    ("pattern", "moved_to", "repository", "now"),
    [
        ("team/old", "team/new", "team/old", "team/new"),
        ("old/**", "new/**", "old/a/b", "new/a/b"),
        ("old/**", "**", "old/a/b", "a/b"),
        ("**", "group/**", "a/b", "group/a/b"),
        ("old/*", "new/sub/*", "old/a", "new/sub/a"),
        ("home/**", "users/{identity}/**", "home/a", "users/alice/a"),
        ("u/{identity}/**", "users/{identity}/**", "u/alice/a", "users/alice/a"),
    ],
)
def test_the_new_name(pattern: str, moved_to: str, repository: str, now: str) -> None:
    assert move_fault(pattern, moved_to) is None
    assert at(Route(moved_to=moved_to), pattern, repository).moved_to == now


@pytest.mark.parametrize(
    ("pattern", "moved_to", "fault"),
    [
        ("old", "old", "is the name that it has"),
        ("old", "new.git", "must leave .git away"),
        ("old", "/new", "must have no slash"),
        ("old", "../new", "must have no segment"),
        ("old", "new/*", "must be a name"),
        ("old/**", "new", "must end in \\*\\*"),
        ("old/**", "new/*", "must end in \\*\\*"),
        ("old/**", "*/new/**", "must end in \\*\\*"),
        ("old/*/x", "new/x", "needs repositories"),
        ("a*", "b", "needs repositories"),
        ("old", "{id}", "must not have {"),
    ],
)
def test_a_new_name_that_is_none(pattern: str, moved_to: str, fault: str) -> None:
    with pytest.raises(AssertionError, match=fault):
        raise AssertionError(move_fault(pattern, moved_to))


def test_the_path_has_both_placeholders_once() -> None:
    route = Route(upstream="main", path="/srv/{identity}/{repository}.git")
    assert at(route, "**", "x/{identity}").path == "/srv/alice/x/{identity}.git"
    assert at(route, "**", "x/{repository}").path == "/srv/alice/x/{repository}.git"


@pytest.mark.parametrize("who", ["..", "a/b", "*", "-x", "a{repository}b", ".git"])
def test_an_identity_that_can_be_no_folder_gets_no_route(who: str) -> None:
    for route in (Route(upstream="main", path="/srv/{identity}"), Route(moved_to="users/{identity}/**")):
        with pytest.raises(Denied, match="can be no folder's name"):
            at(route, "a/**", "a/b", who)
    with pytest.raises(Denied, match="can be no folder's name"):
        at(Route(upstream="main", path="/srv/{identity}"), "a/**", "a/b", "Alice", folded=True)


def test_a_new_name_that_would_be_too_long_is_no_repository() -> None:
    with pytest.raises(Denied, match="too long"):
        at(Route(moved_to="a-much-longer-name/**"), "x/**", "x/" + "/".join(["y" * 200] * 5) + "/" + "z" * 10)
