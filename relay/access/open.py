"""The access backend that the settings ask for, opened."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from pathlib import Path

from relay import config
from relay.access import Access
from relay.backends.asked import ask
from relay.backends.cache import Cache
from relay.backends.watched import Tell, Watching
from relay.events import Observer
from relay.model import Command, Grant, Identity


def _of(key: Hashable, who: str) -> bool:
    """Whether a cache's key is about this identity."""
    return isinstance(key, tuple) and key[0].name == who


class AskedAccess:
    """A backend as the relay asks it: through a cache, if it has one; each question that reaches it is told to the observer."""

    def __init__(self, backend: Access, observer: Observer, cache: Cache[Grant] | None = None) -> None:
        self.source = backend.source
        self._backend = backend
        self._observer = observer
        self._cache = cache
        self._by_address = backend.source == "http"  # an authority may decide by where the client is; nobody else is told

    async def check(self, identity: Identity, command: Command, client_address: str, session_id: str) -> Grant:
        async def look_up() -> Grant:
            answer = self._backend.check(identity, command, client_address, session_id)
            return await ask(self._observer, "access", self.source, answer)

        if self._cache is None:
            return await look_up()
        # all that the backend is told but the session's id, identity first; GIT_PROTOCOL is nobody's business
        key = (identity, command.repository, command.service, command.operation, client_address if self._by_address else "")
        return await self._cache.get(key, look_up)

    def watch(self, tell: Tell) -> None:
        if isinstance(self._backend, Watching):
            self._backend.watch(tell)

    async def close(self) -> None:
        if self._cache is not None:
            await self._cache.close()
        await self._backend.close()


def open_access(
    settings: config.AnyAccess,
    base: Path,
    observer: Observer | None = None,
    *,
    upstreams: Collection[str] | None = None,
    folded: bool = False,
) -> Access:
    """The backend that the settings ask for, behind a cache unless it is a file; files are relative to `base`.

    A route that comes with a grant leads to one of `upstreams`, if they are told, or is no answer. With `folded` every name that is asked
    about is folded.

    Raises relay.errors.ConfigError with every problem in what it reads at start. Needs no running loop.
    """
    observer = observer or Observer()
    if isinstance(settings, config.FileAccessSettings):
        from relay.access.file import FileAccess

        return AskedAccess(FileAccess(base / settings.path, folded=folded), observer)
    backend: Access
    cache: Cache[Grant] = Cache("access", str(settings.__struct_config__.tag), settings.cache, observer)
    match settings:
        case config.HttpAccessSettings():
            from relay.access.http import HttpAccess

            backend = HttpAccess(settings, base, upstreams)
        case config.RedisAccessSettings():
            from relay.access.redis import RedisAccess
            from relay.backends.redis import Changes

            changes = Changes(cache.trust, lambda who: cache.forget(None if who is None else lambda key: _of(key, who)))
            backend = RedisAccess(settings, base, changes)
    return AskedAccess(backend, observer, cache)


def look_at_access(settings: config.AnyAccess, base: Path, known: Collection[str] | None, routed: Sequence[str] | None) -> list[str]:
    """What there is to warn of in a file, one line each; `known` and `routed` as in relay.access.remarks."""
    if not isinstance(settings, config.FileAccessSettings):
        return []
    from relay.access.remarks import remarks

    return remarks(base / settings.path, known, routed)
