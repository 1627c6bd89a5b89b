"""What every routes backend must do, whatever its source. A new backend adds its factory to BACKENDS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from relay import config
from relay.errors import Denied
from relay.model import Command, Identity, Route
from relay.routes import Routes
from relay.routes.open import open_routes
from tests.support.authority import Authority
from tests.support.redis import RedisServer
from tests.support.toml import toml_text

Open = Callable[[Path, Mapping[str, Route]], Routes]  # the route of each repository
Backend = Callable[[ExitStack, Path, Mapping[str, Route]], Routes]

ALICE = Identity(name="alice", fingerprint="SHA256:x")


def file_backend(stack: ExitStack, folder: Path, homes: Mapping[str, Route]) -> Routes:
    table = {"route": [{"repositories": name, **fields(home), "read_fallback": home.read_fallback} for name, home in homes.items()]}
    (folder / "routes.toml").write_text(toml_text(table))
    return open_routes(config.FileRoutesSettings(), folder, {name for home in homes.values() for name in home.names})


def http_backend(stack: ExitStack, folder: Path, homes: Mapping[str, Route]) -> Routes:
    authority = stack.enter_context(Authority(folder))
    authority.write(routes={name: {**fields(home), "read_fallback": home.read_fallback} for name, home in homes.items()})
    return open_routes(config.HttpRoutesSettings(url=authority.url), folder, {name for home in homes.values() for name in home.names})


def redis_backend(stack: ExitStack, folder: Path, homes: Mapping[str, Route]) -> Routes:
    server = stack.enter_context(RedisServer())
    for name, home in homes.items():
        told = {**fields(home), "read_fallback": "yes" if home.read_fallback else "no"}
        server.run("HSET", f"relay:route:{name}", *(word for pair in told.items() for word in pair))
    return open_routes(config.RedisRoutesSettings(urls=[server.url]), folder, {name for home in homes.values() for name in home.names})


BACKENDS: list[Backend] = [file_backend, http_backend, redis_backend]


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.__name__)
def backend(request: pytest.FixtureRequest) -> Iterator[Open]:
    with ExitStack() as stack:  # the backend's servers
        yield partial(request.param, stack)


def fields(home: Route) -> dict[str, str]:
    """The route's fields in a table or an answer."""
    if home.moved_to is not None:
        return {"moved_to": home.moved_to}
    optional = {"read_upstream": home.read_upstream, "read_only": home.read_only, "notice": home.notice}
    return {"upstream": home.upstream, "path": home.path, **{name: value for name, value in optional.items() if value is not None}}


async def find(routes: Routes, repository: str) -> Route:
    return await routes.find(Command(service="git-upload-pack", repository=repository), ALICE)


async def test_each_repository_has_its_route(backend: Open, tmp_path: Path) -> None:
    homes = {"team/app": Route(upstream="main", path="/srv/git/team/app.git"), "old": Route(upstream="archive", path="/a b/'old'")}
    homes["copied"] = Route(upstream="main", path="/srv/git/copied.git", read_upstream="replicas")
    homes["spared"] = Route(upstream="main", path="/srv/git/spared.git", read_upstream="replicas", read_fallback=False)
    homes["closed"] = Route(upstream="main", path="/srv/git/closed.git", read_only="it is archived; 移動中")
    homes["told"] = Route(upstream="main", path="/srv/git/told.git", notice="it closes on Friday")
    homes["renamed"] = Route(moved_to="team/app")
    routes = backend(tmp_path, homes)
    for name, home in homes.items():
        assert await find(routes, name) == home
    await routes.close()


async def test_a_repository_without_a_route_is_denied_like_one_that_may_not_be_read(backend: Open, tmp_path: Path) -> None:
    routes = backend(tmp_path, {"team/app": Route(upstream="main", path="/x")})
    with pytest.raises(Denied) as caught:
        await find(routes, "team/other")
    assert caught.value.message == Denied.message
    assert routes.source in ("file", "http", "redis", "exec")
    await routes.close()
