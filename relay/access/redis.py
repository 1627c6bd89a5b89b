"""Access in Redis: a hash for each repository or folder, and a set with the groups of each identity.

    {prefix}access:team/app    hash: who -> read | write | no TEXT; {prefix}access:team/** for a folder, {prefix}access:** for all
    {prefix}groups:alice       set: the groups of alice
    {prefix}refs:team/app      string: rules for refs, as JSON; team/** and ** as above

In a key {identity} may stand for a segment that is the name of the identity that asks: {prefix}access:users/{identity}/**.

`who` is an identity, @ and a group, or * for everyone who authenticated. What no field allows is denied, with the TEXT for the client if
there is one. A change is published as `access IDENTITY` on {prefix}changes, or as `access` when it concerns several identities.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from relay import config
from relay.access.ref_rules import CHANGES, ApplicableRule, applicable, in_order, push_grant
from relay.backends.redis import VALUE_BYTES, Changes, RedisClient, patterns_for
from relay.errors import Denied, Undecided
from relay.git.globs import ref_glob_fault
from relay.keys import Membership, who_fault
from relay.model import Change, Command, Grant, Identity
from relay.text import client_text, quoted

GROUPS = 1_000  # of one identity


class StoredRefRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule for refs, as JSON; the fields are those of access.toml."""

    refs: list[str]
    who: list[str]
    allow: Literal["write"] | None = None
    deny: Literal["write"] | None = None
    changes: list[Change] = msgspec.field(default_factory=list)


class RedisAccess:
    """Two round trips a question: the groups, then what the identity and its groups may do."""

    source = "redis"

    def __init__(self, settings: config.RedisAccessSettings, base: Path, changes: Changes) -> None:
        self._client = RedisClient("access", settings, base, changes)

    async def check(self, identity: Identity, command: Command, client_address: str, session_id: str) -> Grant:
        client, prefix = self._client, self._client.prefix
        who = [identity.name, "*", *sorted(f"@{group}" for group in await self._read_groups(identity.name))]
        about = patterns_for(command.repository, identity.name, folded=command.folded)
        questions = [("HMGET", f"{prefix}access:{pattern}", *who) for pattern in about]
        if command.service == "git-receive-pack":
            questions += [("GETRANGE", f"{prefix}refs:{pattern}", "0", str(VALUE_BYTES)) for pattern in about]
        answers = await client.ask(*questions)
        said, rules = answers[: len(about)], answers[len(about) :]
        fields = [client.text(value) or "" for values in said for value in values if value is not None]
        refused = [field for field in fields if field == "no" or field.startswith("no ")]  # of the most specific pattern first
        allowed = set(fields).difference(refused)
        if not allowed <= {"read", "write"}:
            raise Undecided(f"{client.name}: what is allowed in {command.repository} is neither read nor write nor no TEXT", "invalid")
        refs = in_order(one for value in rules if value for rule in self._rules(value) for one in self._applicable(rule, who, command))
        if (grant := push_grant("write" in allowed, refs)) is not None:
            return grant
        if "read" in allowed and command.needs == "read":
            return Grant(access="read")
        detail = f"{client.name}: nothing allows {identity.name} to {command.needs} {command.repository}"
        if refused and (text := client_text(refused[0].removeprefix("no"))):
            raise Denied(detail, message=f"relay: access was refused: {text}")
        raise Denied(detail)

    async def groups_of(self, identity: str) -> Membership:
        groups = await self._read_groups(identity)
        return Membership(groups, groups)

    async def _read_groups(self, identity: str) -> list[str]:
        client = self._client
        # the whole set, but at most GROUPS + 1 members: no other command limits what it reads
        (groups,) = await client.ask(("SRANDMEMBER", f"{client.prefix}groups:{identity}", str(GROUPS + 1)))
        if len(groups) > GROUPS:
            raise Undecided(f"{client.name}: {identity} is in more than {GROUPS} groups", "invalid")
        return [client.text(group) or "" for group in groups]

    def _rules(self, value: object) -> list[StoredRefRule]:
        """The rules in one value. Raises Undecided for an invalid one: without it the other rules might allow what all together deny."""
        try:
            rules = msgspec.json.decode(self._client.text(value) or "[]", type=list[StoredRefRule])
        except msgspec.ValidationError as error:
            raise Undecided(f"{self._client.name}: rules for refs: {error}", "invalid") from None
        except msgspec.DecodeError:
            raise Undecided(f"{self._client.name}: rules for refs are no JSON", "invalid") from None
        for number, rule in enumerate(rules, 1):
            patterns_of = ((pattern, ref_glob_fault(pattern, placeholder=True)) for pattern in rule.refs)
            names = ((who, who_fault(who)) for who in rule.who)
            faults = [f"{quoted(text)} {fault}" for text, fault in (*patterns_of, *names) if fault is not None]
            if not rule.refs or not rule.who or (rule.allow is None) == (rule.deny is None):
                faults.append("must have refs and who, and either allow or deny")
            if faults:
                raise Undecided(f"{self._client.name}: rule {number} for refs: {faults[0]}", "invalid")
        return rules

    @staticmethod
    def _applicable(rule: StoredRefRule, who: list[str], command: Command) -> Iterator[ApplicableRule]:
        """`who`: the identity, then * and its groups."""
        named = not set(rule.who).isdisjoint(who)
        return applicable(rule.refs, tuple(rule.changes) or CHANGES, rule.allow is not None, named, who[0], folded=command.folded)

    async def close(self) -> None:
        await self._client.close()
