"""Access rules in a TOML file: groups of identities, and rules that allow or deny; what no rule allows is denied. Read again when changed.

A rule with refs is about pushes to these refs. For each ref the first of these that applies decides, whatever the order of the rules:
1. a rule that denies it to the identity that pushes
2. a rule that allows it to this identity
3. a rule that allows it to others only: the ref is protected, and the push denied
4. the rules without refs

{identity} in `repositories` and `refs` is the name of the identity that asks: such a rule applies to what is theirs alone. A rule with refs
protects them from everybody whom it does not name, and so the folders and refs of others, too.

While a changed file has a fault, nothing is allowed that was not allowed before, and what the file no longer allows is denied at once
(`narrowed`). If the file cannot be read at all, or is not TOML, the rules stay as they were.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, field

from relay.access.ref_rules import CHANGES, applicable, in_order, push_grant
from relay.backends.watched import LOOK_SECONDS, Tell, Watched, stamp_file
from relay.config import Table
from relay.config.toml import Problems, below, read
from relay.errors import ConfigError, Denied
from relay.git.globs import compile_glob, glob_fault, ref_glob_fault
from relay.git.names import fold
from relay.git.namespaces import anybodys, has_placeholder, own
from relay.keys import Membership, identity_fault
from relay.model import AccessLevel, Change, Command, Grant, Identity
from relay.text import quoted

OWN_PATTERNS = 4_096  # of rules with {identity}, compiled for one identity each, that are kept


class RuleTable(Table, frozen=True, forbid_unknown_fields=True):
    """Who may read or write which repositories."""

    repositories: Annotated[str, Meta(description="* within one path segment, ** across, {identity} for the name of who asks")]
    who: Annotated[list[str], Meta(min_length=1, description="identities, @groups, or * for everyone who authenticated")]
    allow: Literal["read", "write"] | None = None  # write includes read
    deny: Literal["write"] | None = None  # in place of allow; goes before everything that allows
    refs: Annotated[list[str], Meta(min_length=1, description="full names, as refs/heads/main; *, ** and {identity} as above")] = field(
        default_factory=list
    )
    changes: Annotated[list[Change], Meta(min_length=1, description="all of them unless some are named")] = field(default_factory=list)


class AccessFile(Table, frozen=True, forbid_unknown_fields=True):
    """access.toml"""

    groups: dict[str, list[str]] = field(default_factory=dict)
    rule: list[RuleTable] = field(default_factory=list)


class AccessRule(NamedTuple):
    """One rule, compiled. A rule that allows nothing denies writing."""

    repositories: re.Pattern[str]  # with any segment for {identity}
    everyone: bool
    names: frozenset[str]
    allow: AccessLevel | None
    refs: tuple[str, ...] = ()
    changes: tuple[Change, ...] = CHANGES
    who: frozenset[str] = frozenset()  # as written in the file: names, @groups and *
    folded: re.Pattern[str] | None = None  # `repositories` for folded names; None: the same pattern
    personal: str = ""  # the pattern as written, if it has {identity} in it

    def names_them(self, who: str) -> bool:
        return self.everyone or who in self.names

    def is_theirs(self, who: str, command: Command) -> bool:
        """Whether a rule about this repository is about it for `who`: always, unless it has {identity} in it."""
        if not self.personal:
            return True
        pattern = fold(self.personal) if command.folded else self.personal
        mine = own(pattern, who, folded=command.folded)
        return mine is not None and _compiled(mine).fullmatch(command.repository) is not None

    def applies_to(self, who: str, command: Command) -> bool:
        """For a rule that is about the repository of `command`."""
        return self.names_them(who) and self.is_theirs(who, command)

    def about(self, command: Command) -> bool:
        pattern = self.folded if command.folded and self.folded is not None else self.repositories
        return pattern.fullmatch(command.repository) is not None


class ReadableRules(NamedTuple):
    """What could be read of a file."""

    rules: tuple[AccessRule, ...]
    faulty: tuple[tuple[AccessRule, frozenset[str]], ...]  # rules with a fault, each with the names of its faulty fields
    groups: dict[str, frozenset[str]]
    whole: bool  # False: the content of the file is unknown


class FileAccess:
    """Answers from the rules in memory."""

    source = "file"

    def __init__(self, path: Path, *, folded: bool = False, look_seconds: float = LOOK_SECONDS) -> None:
        """With `folded` the names of all repositories that are asked about are folded."""
        self._path = path
        self._folded = folded
        self._last: tuple[AccessRule, ...] = ()
        self._groups: tuple[dict[str, frozenset[str]], dict[str, frozenset[str]]] = ({}, {})  # before and in a file with a fault
        self._rules = Watched(
            f"access in {path}", lambda: stamp_file(path), lambda _: self._read(), look_seconds=look_seconds, in_parts=True
        )
        if self._rules.problems:
            raise ConfigError(self._rules.problems)

    def watch(self, tell: Tell) -> None:
        self._rules.watch("access", tell)

    def _read(self) -> tuple[Sequence[AccessRule], list[str]]:
        """Runs in a thread."""
        now, problems = read_rules(self._path, folded=self._folded)
        if not problems:
            self._last, self._groups = now.rules, (now.groups, now.groups)
            return self._last, problems
        self._groups = (self._groups[0], now.groups if now.whole else self._groups[0])
        if now.whole:
            self._last = narrowed(self._last, now)
        return self._last, problems

    async def check(self, identity: Identity, command: Command, client_address: str, session_id: str) -> Grant:
        rules, name = await self._rules.current(), identity.name
        if command.needs == "write":
            return _may_write([rule for rule in rules if rule.about(command)], name, command)
        for rule in rules:
            if rule.allow and not rule.refs and rule.names_them(name) and rule.about(command) and rule.is_theirs(name, command):
                return Grant(access=rule.allow)
        raise _denied(name, command)

    async def groups_of(self, identity: str) -> Membership:
        """While the file has a fault: those of before and those that can be read now, and those that are in both."""
        await self._rules.current()
        before, now = ({name for name, members in groups.items() if identity in members} for groups in self._groups)
        return Membership(before | now, before & now)

    async def close(self) -> None:
        await self._rules.close()


def _may_write(rules: Sequence[AccessRule], who: str, command: Command) -> Grant:
    """The grant for a push by the rules for the repository. Raises Denied when the identity may write nothing at all."""
    if any(rule.allow is None and not rule.refs and rule.applies_to(who, command) for rule in rules):
        raise Denied(f"a rule denies {who} to {command.needs} {command.repository}")
    write = any(rule.allow == "write" and not rule.refs and rule.applies_to(who, command) for rule in rules)
    push = command.service == "git-receive-pack"
    said = (
        one
        for rule in rules
        if rule.refs and push
        for one in applicable(rule.refs, rule.changes, rule.allow is not None, rule.applies_to(who, command), who, folded=command.folded)
    )
    if (grant := push_grant(write, in_order(said))) is None:
        raise _denied(who, command)
    return grant


@lru_cache(maxsize=OWN_PATTERNS)
def _compiled(pattern: str) -> re.Pattern[str]:
    return compile_glob(pattern)


def _denied(who: str, command: Command) -> Denied:
    return Denied(f"no rule allows {who} to {command.needs} {command.repository}")


def load(path: Path) -> tuple[Sequence[AccessRule], list[str]]:
    """The rules, and one line for each problem."""
    now, problems = read_rules(path)
    return () if problems else now.rules, problems


def read_rules(path: Path, *, folded: bool = False) -> tuple[ReadableRules, list[str]]:
    """The rules that can be read, and one line for each problem."""
    try:
        file, problems = read(path, AccessFile)
    except ConfigError as error:
        return ReadableRules((), (), {}, whole=False), error.problems
    groups: dict[str, frozenset[str]] = {}
    for name, members in file.groups.items():
        groups[name] = frozenset(members)
        if (fault := identity_fault(name)) is not None:
            problems.add(below("groups", name), f"the group's name {fault}")
        for member in members:
            if (fault := identity_fault(member)) is not None:
                problems.add(below("groups", name), f"{quoted(member)} {fault}")
    rules: list[AccessRule] = []
    faulty: list[tuple[AccessRule, frozenset[str]]] = []
    for number, table in enumerate(file.rule, 1):
        key = f"rule#{number}"
        rule = _rule(key, table, groups, problems, folded)
        if wrong := fields_at(key, problems.keys):
            faulty.append((rule._replace(allow=None) if table.deny is not None else rule, wrong))
        else:
            rules.append(rule)
    # if no rule was read, a fault outside of [groups] may have hidden all of them: [[rules]] or [rule]
    whole = bool(file.rule) or all(key.startswith("groups.") for key in problems.keys)
    return ReadableRules(tuple(rules), tuple(faulty), groups, whole), problems.lines


def fields_at(key: str, faulty: Iterable[str]) -> frozenset[str]:
    """The names of the faulty fields of the table at `key`; "" for the table itself."""
    return frozenset(re.split(r"[.#]", one[len(key) + 1 :], maxsplit=1)[0] for one in faulty if one == key or one.startswith(f"{key}."))


def narrowed(before: Sequence[AccessRule], now: ReadableRules) -> tuple[AccessRule, ...]:
    """The rules while the changed file has a fault. They allow what both the rules before and the readable part of the file allow; what
    either of them denies or protects stays denied or protected.

    A rule with a fault is compared with the one old rule that it may have come from, which equals it in all fields that can be read.
    """
    found: list[AccessRule] = [rule for rule in before if rule.allow is None]
    found += (rule for rule in (*now.rules, *(rule for rule, _ in now.faulty)) if rule.allow is None)
    # a rule with refs protects them from everyone whom it does not name
    found += (rule._replace(everyone=False, names=frozenset()) for rule in (*before, *now.rules) if rule.allow is not None and rule.refs)
    olds: dict[tuple[object, ...], list[AccessRule]] = {}
    for old in before:
        if old.allow is not None and (old.everyone or old.names):
            olds.setdefault(_subject(old), []).append(old)
    unchanged = set()
    for rule in now.rules:
        if rule.allow is not None:
            found += (_intersection(old, rule) for old in olds.get(_subject(rule), ()))
            unchanged.add((_subject(rule), rule.who))
    changed = [rule for same in olds.values() for rule in same if (_subject(rule), rule.who) not in unchanged]
    for rule, wrong in now.faulty:
        if rule.allow is None and "allow" not in wrong:
            continue
        made_of = [old for old in changed if _may_come_from(old, rule, wrong)]
        if len(made_of) == 1:
            found.append(_intersection(made_of[0], rule._replace(names=_names_in_both(made_of[0], rule, now.groups, "who" in wrong))))
    return tuple(dict.fromkeys(rule for rule in found if rule.allow is None or rule.refs or rule.everyone or rule.names))


def _subject(rule: AccessRule) -> tuple[object, ...]:
    """Repositories, refs and changes of a rule."""
    return (rule.repositories.pattern, rule.personal), rule.refs, rule.changes


def _may_come_from(old: AccessRule, faulty: AccessRule, wrong: frozenset[str]) -> bool:
    """Whether `faulty` equals `old` in all fields that can be read. An unknown key may be a misspelt optional field: refs or changes."""
    if wrong - set(RuleTable.__struct_fields__):
        wrong |= {"refs", "changes"}
    fields = zip(("who", "repositories", "refs", "changes"), (old.who, *_subject(old)), (faulty.who, *_subject(faulty)), strict=True)
    return all(name in wrong or one == other for name, one, other in fields)


def _intersection(old: AccessRule, new: AccessRule) -> AccessRule:
    """The rule that allows what both allow; both are about the same repositories, refs and changes."""
    allow: AccessLevel | None = "read" if "read" in (old.allow, new.allow) else old.allow
    if old.everyone:
        return old._replace(everyone=new.everyone, names=new.names, allow=allow)
    return old._replace(names=old.names if new.everyone else old.names & new.names, allow=allow)


def _names_in_both(old: AccessRule, faulty: AccessRule, groups: dict[str, frozenset[str]], unread: bool) -> frozenset[str]:
    """The identities that a rule with a fault may name. With `unread`, a group in it may be any group of the old rule that still exists."""
    return faulty.names.union(*(groups.get(name[1:], frozenset()) for name in old.who if name.startswith("@"))) if unread else faulty.names


def _rule(key: str, table: RuleTable, groups: dict[str, frozenset[str]], problems: Problems, folded: bool) -> AccessRule:
    if (fault := glob_fault(table.repositories, folded=folded, placeholder=True)) is not None:
        problems.add(f"{key}.repositories", f"{quoted(table.repositories)} {fault}")
    repositories = anybodys(table.repositories)
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
    _check_effect(key, table, problems, folded)
    return AccessRule(
        compile_glob(repositories),
        "*" in table.who,
        frozenset().union(*members),
        table.allow,
        tuple(table.refs),
        tuple(table.changes) or CHANGES,
        frozenset(table.who),
        compile_glob(fold(repositories)) if fold(repositories) != repositories else None,
        table.repositories if has_placeholder(table.repositories) else "",
    )


def _check_effect(key: str, table: RuleTable, problems: Problems, folded: bool) -> None:
    """Checks the fields that say what a rule allows or denies, and for which refs."""
    if table.allow is None and table.deny is None and not problems.about(f"{key}.deny"):
        problems.add(f"{key}.allow", 'is missing, must be one of "read", "write"; or deny must be "write"')
    if table.allow is not None and table.deny is not None:
        problems.add(f"{key}.deny", "is set beside allow, must be one of the two")
    for pattern in table.refs:
        if (fault := ref_glob_fault(pattern, folded=folded, placeholder=True)) is not None:
            problems.add(f"{key}.refs", f"{quoted(pattern)} {fault}")
    if table.refs and table.allow == "read":
        problems.add(f"{key}.allow", 'is "read" beside refs, must be "write": refs are about pushes, and reading is for whole repositories')
    if table.changes and not table.refs:
        problems.add(f"{key}.changes", "is set without refs, must be left out or have refs beside it")
