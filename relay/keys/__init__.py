"""Keys: who does this public key belong to?"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import asyncssh

from relay import config
from relay.ask import ask
from relay.cache import Cache, Level
from relay.errors import Denied
from relay.events import AuthFailure, Observer
from relay.model import Identity
from relay.watch import Tell, Watching

IDENTITY_CHARACTERS = 255


class Keys(Protocol):
    """One question. Backends are told apart by `source` in metrics only."""

    source: str

    async def owner(self, fingerprint: str, public_key: str) -> str | None:
        """The identity's name, or None for nobody's key.

        `fingerprint` is `SHA256:...` (RFC 4716 base64 without padding); `public_key` is the line `type base64` of RFC 4253 section 6.6.
        Raises relay.errors.Undecided when the backend cannot answer.
        """
        ...

    async def close(self) -> None:
        """Gives back what the backend holds open."""
        ...


class NotAccepted(Exception):
    """A key or a certificate that lets nobody in although it may be known: `reason` is for metrics, the text is for the log."""

    def __init__(self, text: str, reason: AuthFailure = "certificate", fingerprint: str = "") -> None:
        super().__init__(text)
        self.reason: AuthFailure = reason
        self.fingerprint = fingerprint


@runtime_checkable
class Lines(Protocol):
    """What a backend may know besides: conditions on keys, and CAs that speak for one identity, as authorized_keys files have them."""

    async def check(self, fingerprint: str, address: str) -> None:
        """Raises NotAccepted when this key may not be used from there, or not any more. Nobody's key passes."""
        ...

    async def authorities(self, fingerprint: str, address: str) -> list[tuple[str, tuple[str, ...]]]:
        """Identities that certificates of this CA may be, each with the principals of which one must be listed; none: the relay's user.

        Raises NotAccepted when there are some, and none of them from there, or not any more.
        """
        ...


class Certificates(Protocol):
    """Whose is this certificate, and may this key be used?"""

    checks_keys: bool  # whether check_key can refuse any

    async def judge(self, blob: bytes, address: str) -> tuple[asyncssh.SSHKey, Identity]:
        """The key that must sign, and who that proves; `address` is the client's own. Raises NotAccepted."""
        ...

    async def check_key(self, blob: bytes, fingerprint: str, address: str) -> None:
        """Raises NotAccepted when this key (RFC 4253 section 6.6) is revoked, or may not be used by a client from `address`."""
        ...

    async def close(self) -> None: ...


class AskedKeys:
    """A backend as the relay asks it: through a cache, if it has one; each question that reaches it is told to the observer."""

    def __init__(self, backend: Keys, observer: Observer, cache: Cache[str] | None = None) -> None:
        self.source = backend.source
        self.lines = backend if isinstance(backend, Lines) else None
        self._backend = backend
        self._observer = observer
        self._cache = cache

    async def owner(self, fingerprint: str, public_key: str) -> str | None:
        async def look_up() -> str:
            return await ask(self._observer, "keys", self.source, self._known(fingerprint, public_key))

        try:
            return await (look_up() if self._cache is None else self._cache.get(fingerprint, look_up))
        except Denied:
            return None

    def watch(self, tell: Tell) -> None:
        if isinstance(self._backend, Watching):
            self._backend.watch(tell)

    async def close(self) -> None:
        if self._cache is not None:
            await self._cache.close()
        await self._backend.close()

    async def _known(self, fingerprint: str, public_key: str) -> str:
        """Nobody's key is a no, as the cache and the observer know it."""
        if (name := await self._backend.owner(fingerprint, public_key)) is None:
            raise Denied(f"{fingerprint} is nobody's key")
        return name


def hold_none(settings: config.AnyKeys, base: Path) -> str | None:
    """One line when the backend is files that nobody's key is in; others are not asked."""
    if not isinstance(settings, config.FileKeys):
        return None
    from relay.keys.file import load

    path = base / settings.path
    book, _ = load(path)
    if book.owners or book.authorities:
        return None
    return f"{path}: holds no key yet, so nobody can log in{'; only files that end in .pub are read' if path.is_dir() else ''}"


def identities(settings: config.AnyKeys, base: Path) -> frozenset[str] | None:
    """All that a key in the files is of; None for other backends, which cannot be asked for all."""
    if not isinstance(settings, config.FileKeys):
        return None
    from relay.keys.file import load

    book, _ = load(base / settings.path)
    return frozenset(book.owners.values()).union(line.identity or "" for lines in book.authorities.values() for line in lines)


def passed_over(settings: config.AnyKeys, base: Path) -> list[str]:
    """One line for each file in the folder of keys that is not read, though somebody has put it there."""
    if not isinstance(settings, config.FileKeys):
        return []
    from relay.keys.file import passed_over

    return passed_over(base / settings.path)


def open_keys(settings: config.AnyKeys, base: Path, observer: Observer | None = None, level: Level[str] | None = None) -> AskedKeys:
    """The backend that the settings ask for, behind a cache unless it is a file; files are relative to `base`. `level` has what other
    relays were told, for backends that have no such thing themselves (`shares`).

    Raises relay.errors.ConfigError with every problem in what it reads at start. Needs no running loop.
    """
    observer = observer or Observer()
    if isinstance(settings, config.FileKeys):
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
        case config.HttpKeys():
            from relay.keys.http import HttpKeys

            backend = HttpKeys(settings, base)
        case config.RedisKeys():
            from relay.clients.redis import Changes
            from relay.keys.redis import RedisKeys

            backend = RedisKeys(settings, base, Changes(cache.trust, forget))
        case config.ExecKeys():
            from relay.keys.exec import ExecKeys

            backend = ExecKeys(settings, base)
    return AskedKeys(backend, observer, cache)


def open_certificates(settings: config.Certificates, base: Path, user: str, lines: Lines | None = None) -> Certificates:
    """The CAs and the revocation list; `user` is whom clients log in as, `lines` those of the keys backend.

    Raises relay.errors.ConfigError with every problem in what it reads at start.
    """
    from relay.keys.authorities import Authorities

    return Authorities(settings, base, user, lines)


def shares(settings: config.AnyKeys) -> bool:
    """Whether several relays gain by telling one another what this backend said: files and a Redis are quicker themselves."""
    return isinstance(settings, config.HttpKeys | config.ExecKeys)


def identity_fault(name: str) -> str | None:
    """What keeps `name` from being an identity, and what is allowed; None for a good name.

    `*` and a leading @ mean everyone and a group in access rules; a slash could be taken for a path, a control character for a line's end.
    """
    if not name:
        return "is empty, must be a name"
    if len(name) > IDENTITY_CHARACTERS:
        return f"has {len(name)} characters, allowed are {IDENTITY_CHARACTERS}"
    if not name.isprintable() or "/" in name or name != name.strip():
        return "must have printable characters only, no slash, and no space at its ends"
    if name == "*" or name.startswith("@"):
        return "must not be * and must not begin with @, which have a meaning in access rules"
    return None


def who_fault(who: str) -> str | None:
    """What keeps `who` from being an identity, @ and a group, or * for everyone; None for a good one."""
    if who == "*":
        return None
    return identity_fault(who.removeprefix("@"))
