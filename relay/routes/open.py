"""Opens the routes backend that the settings ask for."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from pathlib import Path

from relay import config
from relay.backends.asked import AskedBackend
from relay.backends.cache import Cache
from relay.events import Observer
from relay.model import Command, Identity, Route
from relay.routes import Routes
from relay.routes.remarks import RoutesReview


def _is_about(key: Hashable, repository: str) -> bool:
    """Whether a key of the cache, as `AskedRoutes.find` makes it, is about this repository."""
    return isinstance(key, tuple) and key[0] == repository


class AskedRoutes(AskedBackend[Routes, Route]):
    """A routes backend as the relay asks it."""

    question = "routes"

    async def find(self, command: Command, identity: Identity) -> Route:
        key = (command.repository, command.service, identity.name)
        return await self._ask(key, lambda: self._backend.find(command, identity))


def open_routes(
    settings: config.AnyRoutes, base: Path, upstreams: Collection[str], observer: Observer | None = None, *, ignoring: Collection[str] = ()
) -> Routes:
    """The backend that the settings ask for, with a cache unless it is a file. Files are relative to `base`; a route must lead to one of
    `upstreams`. Names are folded before they are asked about if they lead to one of `ignoring`, the upstreams that ignore case.

    Raises relay.errors.ConfigError with every problem in what it reads at start. Needs no running loop.
    """
    observer = observer or Observer()
    if isinstance(settings, config.FileRoutesSettings):
        from relay.routes.file import FileRoutes

        return AskedRoutes(FileRoutes(base / settings.path, upstreams, ignoring=ignoring), observer)
    backend: Routes
    cache: Cache[Route] = Cache("routes", str(settings.__struct_config__.tag), settings.cache, observer)
    match settings:
        case config.HttpRoutesSettings():
            from relay.routes.http import HttpRoutes

            backend = HttpRoutes(settings, base, upstreams)
        case config.RedisRoutesSettings():
            from relay.backends.redis import Changes
            from relay.routes.redis import RedisRoutes

            changes = Changes(cache.trust, lambda name: cache.forget(None if name is None else lambda key: _is_about(key, name)))
            backend = RedisRoutes(settings, base, upstreams, changes)
    return AskedRoutes(backend, observer, cache)


def review_routes(settings: config.AnyRoutes, base: Path, upstreams: Collection[str]) -> RoutesReview | None:
    """The review of a routes file; None for other backends, and for a file that cannot be read."""
    if not isinstance(settings, config.FileRoutesSettings):
        return None
    from relay.routes.remarks import review

    return review(base / settings.path, upstreams)


def explain_routes(
    settings: config.AnyRoutes, base: Path, who: str, command: Command, upstreams: Collection[str], ignoring: Collection[str] = ()
) -> list[str]:
    """A line for each route of a routes file about the repository; empty for other backends."""
    if not isinstance(settings, config.FileRoutesSettings):
        return []
    from relay.routes.explain import explain

    return explain(base / settings.path, who, command, upstreams, ignoring)
