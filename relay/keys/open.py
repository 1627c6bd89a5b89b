"""The keys backend and the certificates that the settings ask for, opened."""

from __future__ import annotations

from pathlib import Path

from relay import config
from relay.backends.asked import AskedBackend
from relay.backends.cache import Cache, Level
from relay.errors import Denied
from relay.events import Observer
from relay.keys import Certificates, Keys, Lines


class AskedKeys(AskedBackend[Keys, str]):
    """A keys backend as the relay asks it."""

    question = "keys"

    @property
    def lines(self) -> Lines | None:
        """The backend's conditions on keys and its CAs, if it can have any."""
        return self._backend if isinstance(self._backend, Lines) else None

    async def owner(self, fingerprint: str, public_key: str) -> str | None:
        try:
            return await self._ask(fingerprint, lambda: self._owner(fingerprint, public_key))
        except Denied:
            return None

    async def _owner(self, fingerprint: str, public_key: str) -> str:
        """The cache and the observer know a key without an owner as a no, which is Denied."""
        if (name := await self._backend.owner(fingerprint, public_key)) is None:
            raise Denied(f"{fingerprint} is nobody's key")
        return name


def hold_none(settings: config.AnyKeys, base: Path) -> str | None:
    """One line when the backend is files that nobody's key is in; others are not asked."""
    if not isinstance(settings, config.FileKeysSettings):
        return None
    from relay.keys.file import load

    path = base / settings.path
    book, _ = load(path)
    if book.owners or book.authorities:
        return None
    return f"{path}: holds no key yet, so nobody can log in{'; only files that end in .pub are read' if path.is_dir() else ''}"


def identities(settings: config.AnyKeys, base: Path) -> frozenset[str] | None:
    """All that a key in the files is of; None for other backends, which cannot be asked for all."""
    if not isinstance(settings, config.FileKeysSettings):
        return None
    from relay.keys.file import load

    book, _ = load(base / settings.path)
    return frozenset(book.owners.values()).union(line.identity or "" for lines in book.authorities.values() for line in lines)


def passed_over(settings: config.AnyKeys, base: Path) -> list[str]:
    """One line for each file in the folder of keys that is not read, though somebody has put it there."""
    if not isinstance(settings, config.FileKeysSettings):
        return []
    from relay.keys.file import passed_over

    return passed_over(base / settings.path)


def open_keys(settings: config.AnyKeys, base: Path, observer: Observer | None = None, level: Level[str] | None = None) -> AskedKeys:
    """The backend that the settings ask for, behind a cache unless it is a file; files are relative to `base`. `level` has what other
    relays were told, for backends that have no such thing themselves (`shares`).

    Raises relay.errors.ConfigError with every problem in what it reads at start. Needs no running loop.
    """
    observer = observer or Observer()
    if isinstance(settings, config.FileKeysSettings):
        from relay.keys.file import FileKeys

        return AskedKeys(FileKeys(base / settings.path), observer)
    backend: Keys
    level = level if shares(settings) else None
    cache: Cache[str] = Cache("keys", str(settings.__struct_config__.tag), settings.cache, observer, level=level)

    def forget(what: str | None) -> None:  # a fingerprint
        cache.forget(None if what is None else lambda key: key == what)

    if level is not None:
        level.listen(cache.trust, forget)
    match settings:
        case config.HttpKeysSettings():
            from relay.keys.http import HttpKeys

            backend = HttpKeys(settings, base)
        case config.RedisKeysSettings():
            from relay.backends.redis import Changes
            from relay.keys.redis import RedisKeys

            backend = RedisKeys(settings, base, Changes(cache.trust, forget))
        case config.ExecKeysSettings():
            from relay.keys.exec import ExecKeys

            backend = ExecKeys(settings, base)
    return AskedKeys(backend, observer, cache)


def open_certificates(settings: config.CertificatesSettings, base: Path, user: str, lines: Lines | None = None) -> Certificates:
    """The CAs and the revocation list; `user` is whom clients log in as, `lines` those of the keys backend.

    Raises relay.errors.ConfigError with every problem in what it reads at start.
    """
    from relay.keys.authorities import Authorities

    return Authorities(settings, base, user, lines)


def shares(settings: config.AnyKeys) -> bool:
    """Whether several relays gain by telling one another what this backend said: files and a Redis are quicker themselves."""
    return isinstance(settings, config.HttpKeysSettings | config.ExecKeysSettings)
