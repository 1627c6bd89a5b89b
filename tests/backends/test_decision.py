"""Decisions under another name: folded, or moved. Access rules of an old name count for nothing, neither a yes nor a no."""

from __future__ import annotations

import pytest

from relay.backends.decision import Deciding, Decision
from relay.errors import Denied, Undecided
from relay.model import Command, Grant, Route

MAIN = Route(upstream="main", path="/x")


class Site:
    """Which names may be read and where each is; what was asked, in order."""

    def __init__(
        self,
        routes: dict[str, Route],
        readable: set[str],
        ignoring: frozenset[str] = frozenset(),
        grants: dict[str, Route] | None = None,
    ) -> None:
        self.routes, self.readable, self.ignoring, self.grants = routes, readable, ignoring, grants or {}
        self.checked: list[str] = []
        self.names: list[tuple[str, str]] = []

    async def check(self, command: Command) -> Grant:
        self.checked.append(command.repository)
        if command.repository not in self.readable:
            raise Denied(f"no rule for {command.repository}")
        return Grant(access="read", route=self.grants.get(command.repository))

    async def find(self, command: Command) -> Route:
        if command.repository not in self.routes:
            raise Denied(f"no route to {command.repository}")
        return self.routes[command.repository]

    async def decide(self, repository: str) -> Decision:
        became = lambda command, moved_from: self.names.append((command.repository, moved_from))  # noqa: E731
        deciding = Deciding(self.ignoring, False, self.check, self.find, became)
        return await deciding.decide(Command(service="git-upload-pack", repository=repository))


@pytest.mark.parametrize("readable", [{"new"}, {"new", "old"}])
async def test_the_new_name_decides(readable: set[str]) -> None:
    site = Site({"old": Route(moved_to="new"), "new": MAIN}, readable)
    found = await site.decide("old")
    assert (found.command.repository, found.moved_from, found.route) == ("new", "old", MAIN)
    assert site.checked == ["old", "new"]
    assert site.names[-1] == ("new", "old")


async def test_who_may_not_read_the_new_name_gets_what_everybody_gets_though_the_old_name_is_allowed() -> None:
    site = Site({"old": Route(moved_to="new"), "new": MAIN}, {"old"})
    with pytest.raises(Denied) as moved:
        await site.decide("old")
    with pytest.raises(Denied) as nothing:
        await site.decide("nothing")
    assert moved.value.message == nothing.value.message == Denied.message


async def test_a_repository_that_has_not_moved_is_asked_about_once() -> None:
    site = Site({"team": MAIN}, {"team"})
    assert (await site.decide("team")).moved_from == ""
    assert site.checked == ["team"]
    site = Site({"team": MAIN}, set())
    with pytest.raises(Denied, match="no rule for team"):
        await site.decide("team")
    assert site.checked == ["team"]


async def test_a_grant_may_say_that_a_repository_has_moved() -> None:
    site = Site({"new": MAIN}, {"old", "new"}, grants={"old": Route(moved_to="new")})
    assert (await site.decide("old")).command.repository == "new"


@pytest.mark.parametrize("moved_to", ["old", "newer"])
async def test_chains_and_loops_are_undecided(moved_to: str) -> None:
    site = Site({"old": Route(moved_to="new"), "new": Route(moved_to=moved_to), "newer": MAIN}, {"old", "new", "newer"})
    with pytest.raises(Undecided) as caught:
        await site.decide("old")
    assert (caught.value.why, str(caught.value)) == ("invalid", f"old has moved to new, and that has moved to {moved_to}")


@pytest.mark.parametrize("name", ["", "../x", "a//b", "new.git", "/new", "new/", "a\nb", "x" * 2000])
async def test_a_new_name_that_is_none_is_undecided(name: str) -> None:
    with pytest.raises(Undecided) as caught:
        await Site({"old": Route(moved_to=name)}, {"old"}).decide("old")
    assert caught.value.why == "invalid"


async def test_a_new_name_may_be_at_a_host_that_ignores_case_and_an_old_one_is_found_in_any_spelling() -> None:
    folds = Route(upstream="folds", path="/x")
    site = Site({"old": Route(moved_to="Team/New"), "team/new": folds}, {"team/new"}, frozenset(["folds"]))
    for asked in ("old", "OLD"):
        found = await site.decide(asked)
        assert (found.command.repository, found.command.folded, found.route) == ("team/new", True, folds)
