"""Which rules of an access file decide about one identity and repository, for `relay check --explain`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from relay.access.file import AccessFile, AccessRule, RuleTable, read_rules
from relay.config.toml import read
from relay.errors import ConfigError
from relay.git.namespaces import namespace
from relay.model import Command
from relay.text import quoted


def explain(path: Path, who: str, command: Command, *, folded: bool = False) -> list[str]:
    """A line for each rule about the repository: its place, what it says, and whether it is about `who`. Raises ConfigError as `read`."""
    file, problems = read(path, AccessFile)
    rules, faults = read_rules(path, folded=folded)
    if faults:
        raise ConfigError(faults)
    found = [
        f"{problems.where(f'rule#{number}')}: {_said(table)}: {_effect(rule, table, who, command)}"
        for number, (table, rule) in enumerate(zip(file.rule, rules.rules, strict=True), 1)
        if rule.about(command)
    ]
    groups = ", ".join(sorted(quoted(f"@{name}") for name, members in file.groups.items() if who in members))
    return [f"{path}: {quoted(who)} is in {groups or 'no group'}", *found] if found else [f"{path}: no rule is about this repository"]


def _said(table: RuleTable) -> str:
    refs = f" the refs {', '.join(table.refs)}" if table.refs else ""
    changes = f" ({', '.join(table.changes)})" if table.changes else ""
    does = f"allows {table.allow}" if table.allow is not None else "denies write"
    return f"{does}{' of' if refs else ''}{refs}{changes} for {', '.join(table.who)}"


def _effect(rule: AccessRule, table: RuleTable, who: str, command: Command) -> str:
    return "; ".join(_effects(rule, table, who, command))


def _effects(rule: AccessRule, table: RuleTable, who: str, command: Command) -> Iterator[str]:
    named, applies = rule.names_them(who), rule.applies_to(who, command)
    if rule.refs and command.service != "git-receive-pack":
        yield "is about pushes only"
    elif named and not applies:
        why = "whose name can be no folder's" if namespace(who, folded=command.folded) is None else "whose folder it is not"
        yield f"is about {{identity}}'s own repositories, and so not for {quoted(who)}, {why}"
        if rule.refs and rule.allow is not None:
            yield "protects these refs from them"
    elif rule.refs and rule.allow is not None and not applies:
        yield f"does not name {quoted(who)}, so protects these refs from them"
    elif not applies:
        yield f"does not name {quoted(who)}"
    elif rule.allow is None and command.needs == "read":
        yield "is about writing only"
    elif rule.allow == "read" and command.needs == "write":
        yield "names them, for reading only"
    else:
        yield f"applies{' to a push of these refs' if rule.refs else ''}"
