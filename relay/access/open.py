"""Opens the access backend that the settings ask for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from pathlib import Path

from relay import config
from relay.access import Access, Grouping
from relay.backends.asked import AskedBackend
from relay.backends.cache import Cache
from relay.events import Observer
from relay.keys import Membership
from relay.model import Command, Grant, Identity


def _is_about(key: Hashable, identity: str) -> bool:
    """Whether a key of the cache, as `AskedAccess.check` makes it, is about this identity."""
    return isinstance(key, tuple) and key[0].name == identity


class AskedAccess(AskedBackend[Access, Grant]):
    """An access backend as the relay asks it."""

    question = "access"

    async def check(self, identity: Identity, command: Command, client_address: str, session_id: str) -> Grant:
        # everything that decides the answer, the identity first (see `_is_about`): an HTTP authority may decide by the client's address
        address = client_address if self.source == "http" else ""
        key = (identity, command.repository, command.service, command.operation, address)
        return await self._ask(key, lambda: self._backend.check(identity, command, client_address, session_id))

    @property
    def groups(self) -> Callable[[str], Awaitable[Membership]] | None:
        """How to find out the groups of an identity; None if the backend has none."""
        return self._backend.groups_of if isinstance(self._backend, Grouping) else None


def open_access(
    settings: config.AnyAccess,
    base: Path,
    observer: Observer | None = None,
    *,
    upstreams: Collection[str] | None = None,
    folded: bool = False,
) -> AskedAccess:
    """The backend that the settings ask for, with a cache unless it is a file. Files are relative to `base`.

    A grant with a route to none of `upstreams` is no answer (Undecided); None accepts any. With `folded` the names of all repositories that
    are asked about are folded.

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

            changes = Changes(cache.trust, lambda name: cache.forget(None if name is None else lambda key: _is_about(key, name)))
            backend = RedisAccess(settings, base, changes)
    return AskedAccess(backend, observer, cache)


def review_access(
    settings: config.AnyAccess,
    base: Path,
    known: Collection[str] | None,
    routed: Sequence[str] | None,
    moved: Sequence[tuple[str, int]] = (),
) -> list[str]:
    """The warnings about an access file, one line each. `known`, `routed` and `moved` are as in relay.access.remarks."""
    if not isinstance(settings, config.FileAccessSettings):
        return []
    from relay.access.remarks import remarks

    return remarks(base / settings.path, known, routed, moved)


def access_groups(settings: config.AnyAccess, base: Path) -> dict[str, frozenset[str]] | None:
    """The groups of an access file with their members; None for other backends, and for a file that cannot be read."""
    if not isinstance(settings, config.FileAccessSettings):
        return None
    from relay.access.file import read_rules

    found, _ = read_rules(base / settings.path)
    return found.groups if found.whole else None


def explain_access(settings: config.AnyAccess, base: Path, who: str, command: Command, *, folded: bool = False) -> list[str]:
    """A line for each rule of an access file about the repository; empty for other backends."""
    if not isinstance(settings, config.FileAccessSettings):
        return []
    from relay.access.explain import explain

    return explain(base / settings.path, who, command, folded=folded)
