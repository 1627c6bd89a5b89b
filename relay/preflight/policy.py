"""[policy]: rules that name groups of the file of access, and keys that they refuse."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from relay.access.open import access_groups
from relay.config import FileAccessSettings, HttpAccessSettings
from relay.config.load import Loaded
from relay.errors import ConfigError
from relay.keys import Membership
from relay.keys.open import open_policy, review_policy
from relay.text import quoted


def check_policy(loaded: Loaded) -> None:
    """Raises ConfigError with the problems of [policy], and with those groups that its rules name and the file of access does not have."""
    config, base = loaded.config, loaded.base
    groups = access_groups(config.access, base)
    open_policy(config.policy, None if isinstance(config.access, HttpAccessSettings) else _no_groups)
    faults = [
        f"policy.rule#{number}.{field}: {quoted(who)} is no group of {base / config.access.path}"
        for number, rule in enumerate(config.policy.rule, 1)
        for field, names in (("who", rule.who), ("exempt", rule.exempt))
        for who in names
        if isinstance(config.access, FileAccessSettings) and groups is not None and who.startswith("@") and who[1:] not in groups
    ]
    if faults:
        raise ConfigError(faults)


def policy_remarks(loaded: Loaded, known: Collection[str] | None) -> Iterator[str]:
    config, base = loaded.config, loaded.base
    policy = open_policy(config.policy, _no_groups)
    found = review_policy(policy, config.keys, base, known, access_groups(config.access, base))
    return (f"{loaded.where(key)}: {text}" for key, text in found)


async def _no_groups(identity: str) -> Membership:
    return Membership((), ())
