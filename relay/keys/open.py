"""Opens the keys backend and the certificates that the settings ask for."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from relay import config
from relay.backends.asked import AskedBackend
from relay.backends.cache import Cache, Level
from relay.errors import Denied
from relay.events import Observer
from relay.keys import Certificates, HostCertificate, Imported, KeyConditions, KeyFacts, Keys
from relay.keys.policy import GroupsOf, Policy, key_refusal, member_of, policy_remarks, told
from relay.text import counted


class AskedKeys(AskedBackend[Keys, str]):
    """A keys backend as the relay asks it."""

    question = "keys"

    @property
    def conditions(self) -> KeyConditions | None:
        """The backend's conditions on keys and its CAs, if it can have any."""
        return self._backend if isinstance(self._backend, KeyConditions) else None

    @property
    def left_out(self) -> int:
        """How many lines of files faulty_lines = "skip" leaves out at the moment."""
        return int(getattr(self._backend, "left_out", 0))

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


def no_keys_warning(settings: config.AnyKeys, base: Path) -> str | None:
    """One line when the backend reads files and they hold no key; None for other backends."""
    if not isinstance(settings, config.FileKeysSettings):
        return None
    from relay.keys.file import load

    path = base / settings.path
    book, _ = load(path)
    if book.owners or book.authorities:
        return None
    return f"{path}: holds no key yet, so nobody can log in{'; only files that end in .pub are read' if path.is_dir() else ''}"


def identities(settings: config.AnyKeys, base: Path) -> frozenset[str] | None:
    """All identities that have a key in the files; None for other backends, which cannot list them."""
    if not isinstance(settings, config.FileKeysSettings):
        return None
    from relay.keys.file import load

    book, _ = load(base / settings.path)
    return frozenset(book.owners.values()).union(line.identity or "" for lines in book.authorities.values() for line in lines)


def keys_of(settings: config.AnyKeys, base: Path, identity: str) -> list[str] | None:
    """The fingerprints of an identity's keys in the files; None for other backends, which cannot list them."""
    if not isinstance(settings, config.FileKeysSettings):
        return None
    from relay.keys.file import load

    book, _ = load(base / settings.path)
    return sorted(fingerprint for fingerprint, owner in book.owners.items() if owner == identity)


def key_facts(settings: config.AnyKeys, base: Path) -> dict[str, KeyFacts]:
    """Type and size of each key in the files, by fingerprint; empty for other backends, which cannot list them."""
    if not isinstance(settings, config.FileKeysSettings):
        return {}
    from relay.keys.file import key_facts

    return {fingerprint: KeyFacts(key.type, key.bits) for fingerprint, key in key_facts(base / settings.path)}


def import_keys(paths: Sequence[Path]) -> Imported:
    """The keys in files as an sshd has them, for a folder of keys."""
    from relay.keys.imported import import_keys

    return import_keys(paths)


def left_out(settings: config.AnyKeys, base: Path) -> list[str]:
    """One line for each line of the files that is left out, because faulty_lines is "skip"."""
    if not isinstance(settings, config.FileKeysSettings) or settings.faulty_lines != "skip":
        return []
    from relay.keys.file import left_out

    return left_out(base / settings.path)


def unread_files(settings: config.AnyKeys, base: Path) -> list[str]:
    """One line for each file in the folder of keys that is not read."""
    if not isinstance(settings, config.FileKeysSettings):
        return []
    from relay.keys.file import unread_files

    return unread_files(base / settings.path)


def open_keys(settings: config.AnyKeys, base: Path, observer: Observer | None = None, level: Level[str] | None = None) -> AskedKeys:
    """The backend that the settings ask for, with a cache unless it is a file. Files are relative to `base`. `level` is the cache that
    several relays share; it is used only for backends that gain by it (`shares`).

    Raises relay.errors.ConfigError with every problem in what it reads at start. Needs no running loop.
    """
    observer = observer or Observer()
    if isinstance(settings, config.FileKeysSettings):
        from relay.keys.file import FileKeys

        return AskedKeys(FileKeys(base / settings.path, skip=settings.faulty_lines == "skip"), observer)
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


def open_certificates(
    settings: config.CertificatesSettings, base: Path, user: str, conditions: KeyConditions | None = None
) -> Certificates:
    """The CAs and the revoked keys. `user` is the user name that clients log in with, `conditions` those of the keys backend.

    Raises relay.errors.ConfigError with every problem in what it reads at start.
    """
    from relay.keys.authorities import Authorities

    return Authorities(settings, base, user, conditions)


def shares(settings: config.AnyKeys) -> bool:
    """Whether relays share this backend's answers. A file or Redis backend answers faster itself."""
    return isinstance(settings, config.HttpKeysSettings | config.ExecKeysSettings)


def open_host_certificates(
    names: Sequence[str], base: Path, host_keys: Collection[bytes]
) -> tuple[list[HostCertificate], list[str], list[str]]:
    """The certificates, a line for each problem, and the warnings about them. `host_keys` are the blobs of the keys."""
    if not names:
        return [], [], []
    from relay.keys.host_certificate import host_certificate_remarks, read_host_certificates

    found, problems = read_host_certificates([base / name for name in names], host_keys)
    return found, problems, list(host_certificate_remarks(found))


def open_policy(settings: config.PolicySettings, groups: GroupsOf | None) -> Policy:
    """What is asked of keys. `groups` tells those of an identity; None if the access backend has none.

    Raises relay.errors.ConfigError with every problem of its rules.
    """
    return Policy(settings, groups)


SHOWN_KEYS = 20  # that [policy] refuses, in the warnings of `relay check`


async def explain_policy(policy: Policy, settings: config.AnyKeys, base: Path, identity: str) -> list[str]:
    """A line for each rule that holds for the identity, and one for each of its keys in the files that they refuse; [] without rules.

    Raises Undecided when the groups of the identity cannot be found out.
    """
    rules = await policy.rules_for(identity)
    lines = [f"{rule.name}: asks for {what}" for rule in rules if (what := told(rule))]
    facts = key_facts(settings, base) if lines else {}
    keys = keys_of(settings, base, identity) or ()
    return lines + [f"{key} cannot log in: {no}" for key in keys if (no := key_refusal(rules, facts.get(key))) is not None]


def review_policy(
    policy: Policy,
    settings: config.AnyKeys,
    base: Path,
    known: Collection[str] | None,
    groups: Mapping[str, Collection[str]] | None,
) -> list[tuple[str, str]]:
    """Warnings about [policy]: (setting, text). `known` and `groups` are those of relay.keys.policy.policy_remarks."""
    found = list(policy_remarks(policy, known, groups, time.time()))
    if not isinstance(settings, config.FileKeysSettings) or not any(map(told, policy.rules)):
        return found
    from relay.keys.file import load

    facts = key_facts(settings, base)
    refused = []
    for key, owner in sorted(load(base / settings.path)[0].owners.items(), key=lambda one: (one[1], one[0])):
        no = key_refusal(policy.rules_with(owner, member_of(owner, groups or {})), facts.get(key))
        if no is not None:
            refused.append(f"{owner} cannot log in with {key}: {no}")
    if len(refused) > SHOWN_KEYS:
        refused[SHOWN_KEYS:] = [f"{counted(len(refused) - SHOWN_KEYS, 'more key')} cannot log in"]
    return found + [("policy", text) for text in refused]
