"""[policy]: which keys may log in, from where and until when, and how a security key must have signed.

The settings for everybody and all rules that name an identity hold together, so a rule can only take away. The flags of a security key's
signature are those of OpenSSH's PROTOCOL.u2f: user presence (a touch) and user verification (a PIN or a fingerprint).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, get_args

from relay import config
from relay.address import Network, parse_network, real_address
from relay.errors import ConfigError
from relay.keys import KeyFacts, KeyOptions, Membership, Needs, NotAccepted, who_fault
from relay.keys.authorized_keys import expiry
from relay.text import quoted

SECURITY_KEY_TYPES: Final = tuple(kind for kind in get_args(config.KeyType) if kind.startswith("sk-"))


GroupsOf = Callable[[str], Awaitable[Membership]]  # may raise Undecided

NO_GROUPS: Final = Membership((), ())


_NO_TYPE: Final = "has no type that begins with sk-, so no key can pass beside security_keys_only or verify_required"
_ASKING: Final = ("key_types", "rsa_bits", "security_keys_only", "verify_required", "from_networks", "expires")


@dataclass(frozen=True)
class Rule:
    """A rule, or the settings for everybody, with its name for log and audit."""

    name: str
    settings: config.RequirementsSettings
    who: frozenset[str] = frozenset("*")
    exempt: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()
    expires: float | None = None

    def names(self, identity: str, groups: Membership) -> bool:
        return _named(self.who, identity, groups.possible) and not _named(self.exempt, identity, groups.sure)

    @cached_property
    def types(self) -> frozenset[str]:
        """The key types that it allows."""
        allowed = set(self.settings.key_types or get_args(config.KeyType))
        if self.settings.security_keys_only or self.settings.verify_required:
            allowed &= set(SECURITY_KEY_TYPES)
        return frozenset(allowed)

    def check_key(self, facts: KeyFacts) -> None:
        """Raises NotAccepted when the key's type or size is not allowed."""
        if facts.type not in self.types:
            raise NotAccepted(f"the key is of type {facts.type}, {self.name} allows {', '.join(sorted(self.types)) or 'none'}", "key_type")
        if facts.type == "ssh-rsa" and facts.bits < self.settings.rsa_bits:
            raise NotAccepted(f"the RSA key has {facts.bits} bits, {self.name} asks for {self.settings.rsa_bits}", "key_size")
        if facts.ca_type == "ssh-rsa" and facts.ca_bits < self.settings.rsa_bits:
            raise NotAccepted(f"the RSA key of the CA has {facts.ca_bits} bits, {self.name} asks for {self.settings.rsa_bits}", "key_size")

    def check_place(self, address: str, now: float) -> None:
        """Raises NotAccepted for a login from elsewhere, or too late."""
        if self.expires is not None and now > self.expires:
            raise NotAccepted(f"{self.name} let them log in until {_when(self.expires)}", "expired")
        if not self.networks:
            return
        client = real_address(address)
        if client is None or not any(client in network for network in self.networks):
            allowed = ", ".join(map(str, self.networks))
            raise NotAccepted(f"{self.name} lets them log in from {allowed}, not from {address}", "source_address")


class Policy:
    """Judges the keys of identities."""

    def __init__(
        self, settings: config.PolicySettings | None = None, groups: GroupsOf | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Raises ConfigError with every problem of the rules."""
        self._settings = settings = settings or config.PolicySettings()
        self._clock = clock
        self._groups = groups
        problems: list[str] = []
        self.rules = [Rule("policy", settings), *_read(settings.rule, groups is not None, problems)]
        if not self.rules[0].types:
            problems.append(f"policy.key_types: {_NO_TYPE}")
        if problems:
            raise ConfigError(problems)
        self._asks_groups = any(who.startswith("@") for rule in self.rules for who in (*rule.who, *rule.exempt))
        self._everybodys = all("*" in rule.who and not rule.exempt for rule in self.rules)  # each rule holds for every identity

    async def rules_for(self, identity: str) -> list[Rule]:
        """The rules that hold for it. Raises Undecided when its groups cannot be found out."""
        if self._everybodys:
            return self.rules
        groups = await self._groups(identity) if self._asks_groups and self._groups is not None else NO_GROUPS
        return self.rules_with(identity, groups)

    def rules_with(self, identity: str, groups: Membership) -> list[Rule]:
        return [rule for rule in self.rules if rule.names(identity, groups)]

    async def check(self, identity: str, facts: KeyFacts, options: KeyOptions, address: str) -> Needs:
        """What the signature must say. Raises NotAccepted, and Undecided when the groups of the identity cannot be found out."""
        types = self._settings.ca_key_types
        if facts.ca_type and types and facts.ca_type not in types:
            allowed = ", ".join(sorted(types))
            raise NotAccepted(f"the key of the CA is of type {facts.ca_type}, policy.ca_key_types allows {allowed}", "key_type")
        now, verified = self._clock(), "verify-required of the key" if options.verify_required else ""
        for rule in await self.rules_for(identity):
            rule.check_key(facts)
            rule.check_place(address, now)
            if rule.settings.verify_required:
                verified = f"{rule.name}.verify_required"
        if verified and facts.type not in SECURITY_KEY_TYPES:
            raise NotAccepted(f"the key is of type {facts.type}, which asks for no PIN, and {verified} asks for it", "key_type")
        return Needs(self._settings.touch_required or not options.no_touch_required, verified)


def key_refusal(rules: Iterable[Rule], facts: KeyFacts | None) -> NotAccepted | None:
    """Why a key cannot log in, from wherever and whenever; None when it can, or nothing is known of it."""
    try:
        for rule in rules if facts is not None else ():
            assert facts is not None
            rule.check_key(facts)
    except NotAccepted as no:
        return no
    return None


def told(rule: Rule) -> str:
    """What a rule asks for, in one line for people."""
    settings, parts = rule.settings, []
    if settings.key_types:
        parts.append(f"keys of type {', '.join(settings.key_types)}")
    if settings.security_keys_only:
        parts.append("security keys")
    if settings.verify_required:
        parts.append("security keys with PIN or fingerprint")
    if settings.rsa_bits > config.RequirementsSettings().rsa_bits:
        parts.append(f"RSA keys of {settings.rsa_bits} bits")
    if rule.networks:
        parts.append(f"logins from {', '.join(map(str, rule.networks))}")
    if rule.expires is not None:
        parts.append(f"logins until {_when(rule.expires)}")
    return "; ".join(parts)


def policy_remarks(
    policy: Policy, known: Collection[str] | None, groups: Mapping[str, Collection[str]] | None, now: float
) -> Iterator[tuple[str, str]]:
    """(setting, text): rules that hold for nobody, and those that have run out. `known` are all identities, `groups` all groups with their
    members; None if they cannot be known."""
    for rule in policy.rules[1:]:
        if rule.expires is not None and rule.expires < now:
            yield f"{rule.name}.expires", f"{_when(rule.expires)} has passed: whom the rule names cannot log in"
        for field, names in (("who", rule.who), ("exempt", rule.exempt)):
            for who in sorted(names):
                if known is not None and who != "*" and not who.startswith("@") and who not in known:
                    yield f"{rule.name}.{field}", f"no key is of {quoted(who)}"
        if known is not None and groups is not None and not any(rule.names(name, member_of(name, groups)) for name in known):
            yield rule.name, "holds for nobody: all whom it names have no key, or are exempt"


def member_of(identity: str, groups: Mapping[str, Collection[str]]) -> Membership:
    found = [name for name, members in groups.items() if identity in members]
    return Membership(found, found)


def _read(rules: Sequence[config.PolicyRuleSettings], has_groups: bool, problems: list[str]) -> Iterator[Rule]:
    for number, settings in enumerate(rules, 1):
        key = f"policy.rule#{number}"
        for field, names in (("who", settings.who), ("exempt", settings.exempt)):
            for who in names:
                if (fault := who_fault(who)) is not None:
                    problems.append(f"{key}.{field}: {quoted(who)} {fault}")
                elif who.startswith("@") and not has_groups:
                    problems.append(f"{key}.{field}: {quoted(who)} is a group, and access by http has none, must be an identity")
        if "*" in settings.exempt:
            problems.append(f"{key}.exempt: is everybody, so the rule holds for nobody")
        networks: list[Network] = []
        for text in settings.from_networks:
            try:
                networks.append(parse_network(text))
            except ValueError as error:
                problems.append(f"{key}.from_networks: {quoted(text)} {error}")
        expires = None
        if settings.expires is not None:
            try:
                expires = expiry(settings.expires)
            except ValueError as error:
                problems.append(f"{key}.expires: {error}")
        rule = Rule(key, settings, frozenset(settings.who), frozenset(settings.exempt), tuple(networks), expires)
        if not rule.types:
            problems.append(f"{key}.key_types: {_NO_TYPE}")
        if not told(rule) and not settings.from_networks and settings.expires is None:
            problems.append(f"{key}: asks for nothing, must have one of {', '.join(_ASKING)}")
        yield rule


def _named(names: Collection[str], identity: str, groups: Collection[str]) -> bool:
    return "*" in names or identity in names or any(f"@{group}" in names for group in groups)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
