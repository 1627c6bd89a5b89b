"""Access rules in a TOML file: groups of identities, and rules that allow; what no rule allows is denied. Read again when changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, field

from relay.config import Table
from relay.errors import ConfigError, Denied
from relay.globs import compile_glob, glob_fault
from relay.keys import identity_fault
from relay.model import Access, Command, Grant, Identity
from relay.tables import Problems, below, quoted, read
from relay.watch import LOOK_SECONDS, Watched, stamp_file


class RuleTable(Table, frozen=True, forbid_unknown_fields=True):
    """Who may read or write which repositories."""

    repositories: Annotated[str, Meta(description="* within one path segment, ** across")]
    who: Annotated[list[str], Meta(min_length=1, description="identities, @groups, or * for everyone who authenticated")]
    allow: Literal["read", "write"]  # write includes read


class AccessFile(Table, frozen=True, forbid_unknown_fields=True):
    """access.toml"""

    groups: dict[str, list[str]] = field(default_factory=dict)
    rule: list[RuleTable] = field(default_factory=list)


class Rule(NamedTuple):
    """One rule, ready to be asked."""

    repositories: re.Pattern[str]
    everyone: bool
    names: frozenset[str]
    allow: Access


class FileAccess:
    """The rules are asked in order; the first that covers what the command needs is the grant."""

    source = "file"

    def __init__(self, path: Path, *, look_seconds: float = LOOK_SECONDS) -> None:
        self._rules = Watched(f"access in {path}", lambda: stamp_file(path), lambda _: load(path), look_seconds=look_seconds)
        if self._rules.problems:
            raise ConfigError(self._rules.problems)

    async def check(self, identity: Identity, command: Command, client_address: str, session_id: str) -> Grant:
        for rule in await self._rules.current():
            if (
                (rule.everyone or identity.name in rule.names)
                and (rule.allow == "write" or command.needs == "read")
                and rule.repositories.fullmatch(command.repository)
            ):
                return Grant(access=rule.allow)
        raise Denied(f"no rule allows {identity.name} to {command.needs} {command.repository}")

    async def close(self) -> None:
        await self._rules.close()


def load(path: Path) -> tuple[Sequence[Rule], list[str]]:
    """The rules, and one line for each problem."""
    try:
        file, problems = read(path, AccessFile)
    except ConfigError as error:
        return (), error.problems
    groups: dict[str, frozenset[str]] = {}
    for name, members in file.groups.items():
        groups[name] = frozenset(members)
        if (fault := identity_fault(name)) is not None:
            problems.add(below("groups", name), f"the group's name {fault}")
        for member in members:
            if (fault := identity_fault(member)) is not None:
                problems.add(below("groups", name), f"{quoted(member)} {fault}")
    rules = [_rule(f"rule#{number}", table, groups, problems) for number, table in enumerate(file.rule, 1)]
    return ((), problems.lines) if problems.lines else (tuple(rules), [])


def _rule(key: str, table: RuleTable, groups: dict[str, frozenset[str]], problems: Problems) -> Rule:
    if (fault := glob_fault(table.repositories)) is not None:
        problems.add(f"{key}.repositories", f"{quoted(table.repositories)} {fault}")
    members: list[Iterable[str]] = []
    for who in table.who:
        if who == "*":
            continue
        if not who.startswith("@"):
            members.append((who,))
            if (fault := identity_fault(who)) is not None:
                problems.add(f"{key}.who", f"{quoted(who)} {fault}")
        elif who[1:] in groups:
            members.append(groups[who[1:]])
        elif not problems.about(below("groups", who[1:])):
            known = "the groups are " + ", ".join(quoted(f"@{name}") for name in groups) if groups else "there is no [groups] table"
            problems.add(f"{key}.who", f"{quoted(who)} is no group, {known}")
    return Rule(compile_glob(table.repositories), "*" in table.who, frozenset().union(*members), table.allow)
