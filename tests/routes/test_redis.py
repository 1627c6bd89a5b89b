"""Routes in Redis: the most specific route applies, the placeholder is filled in, invalid answers are undecided."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from relay import config
from relay.errors import Denied, Undecided
from relay.model import Command, Identity, Route
from relay.routes import Routes
from relay.routes.open import open_routes
from tests.support.heard import Heard
from tests.support.redis import RedisServer
from tests.support.wait import wait_until_async

ALICE = Identity(name="alice", fingerprint="SHA256:x")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as one:
        yield one


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
async def routes(server: RedisServer, heard: Heard) -> AsyncIterator[Routes]:
    one = open_routes(config.RedisRoutesSettings(urls=[server.url], timeout_seconds=5), Path(), {"main", "old"}, heard)
    yield one
    await one.close()


async def find(routes: Routes, repository: str) -> Route:
    return await routes.find(Command(service="git-upload-pack", repository=repository), ALICE)


async def test_the_most_specific_route_counts(server: RedisServer, routes: Routes) -> None:
    server.run("HSET", "relay:route:**", "upstream", "main", "path", "/srv/{repository}.git")
    server.run("HSET", "relay:route:old/**", "upstream", "old", "path", "/attic/{repository}")
    server.run("HSET", "relay:route:old/app", "upstream", "main", "path", "/moved.git")
    assert await find(routes, "team/app") == Route(upstream="main", path="/srv/team/app.git")
    assert await find(routes, "old/x/y") == Route(upstream="old", path="/attic/old/x/y")
    assert await find(routes, "old/app") == Route(upstream="main", path="/moved.git")


@pytest.mark.parametrize(
    "fields",
    [
        ("upstream", "main"),
        ("path", "/x"),
        ("upstream", "other", "path", "/x"),
        ("upstream", "main", "path", "-x"),
        ("read_upstream", "old"),
        ("upstream", "main", "path", "/x", "read_upstream", "other"),
        ("upstream", "main", "path", "/x", "read_fallback", "true"),
    ],
)
async def test_an_invalid_answer_is_undecided(server: RedisServer, routes: Routes, fields: tuple[str, ...]) -> None:
    server.run("HSET", "relay:route:a", *fields)
    with pytest.raises(Undecided) as caught:
        await find(routes, "a")
    assert caught.value.why == "invalid"


async def test_a_published_move_takes_effect_at_once(server: RedisServer, routes: Routes, heard: Heard) -> None:
    server.run("HSET", "relay:route:a", "upstream", "old", "path", "/a")

    async def kept() -> bool:
        """A backend that is subscribed to changes, so that it caches answers."""
        return await find(routes, "a") == Route(upstream="old", path="/a") and heard.cache[-1] == "hit"

    await wait_until_async(kept)
    server.run("HSET", "relay:route:a", "upstream", "main", "path", "/b")
    server.run("PUBLISH", "relay:changes", "routes a")

    async def moved() -> bool:
        return await find(routes, "a") == Route(upstream="main", path="/b")

    await wait_until_async(moved)
    server.run("DEL", "relay:route:a")
    server.run("PUBLISH", "relay:changes", "routes")

    async def gone() -> bool:
        try:
            await find(routes, "a")
        except Denied:
            return True
        return False

    await wait_until_async(gone)


async def test_a_folder_that_has_moved_and_one_of_the_identitys_own(server: RedisServer, routes: Routes) -> None:
    server.run("HSET", "relay:route:gone/**", "moved_to", "team/**")
    server.run("HSET", "relay:route:users/{identity}/**", "upstream", "main", "path", "/home/{identity}/{repository}")
    server.run("HSET", "relay:route:users/**", "upstream", "old", "path", "/{repository}")
    assert await find(routes, "gone/a/b") == Route(moved_to="team/a/b")
    assert await find(routes, "users/alice/x") == Route(upstream="main", path="/home/alice/users/alice/x")
    assert await find(routes, "users/bob/x") == Route(upstream="old", path="/users/bob/x")
    with pytest.raises(Denied, match="has a meaning in rules"):
        await find(routes, "users/{identity}/x")
    with pytest.raises(Denied, match="in more than 4 places"):
        await find(routes, "alice/" * 5 + "x")


@pytest.mark.parametrize("fields", [("moved_to", "b", "upstream", "main"), ("moved_to", "b/**"), ("moved_to", "b.git"), ("moved_to", "a")])
async def test_a_new_name_that_is_none_is_undecided(server: RedisServer, routes: Routes, fields: tuple[str, ...]) -> None:
    server.run("HSET", "relay:route:a", *fields)
    with pytest.raises(Undecided) as caught:
        await find(routes, "a")
    assert caught.value.why == "invalid"
