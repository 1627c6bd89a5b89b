"""Warnings of `relay check` about access.toml: rules and names that are valid but have no effect."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from relay.access.file import AccessFile, RuleTable
from relay.access.ref_rules import CHANGES
from relay.config.toml import Problems, below, read
from relay.errors import ConfigError
from relay.git.coverage import covers, overlap
from relay.git.namespaces import anybodys, has_placeholder, namespace, ref_namespace
from relay.text import quoted

RULES_COMPARED: Final = 1_000  # later rules are not compared with earlier ones

# looks like a branch or tag but is none, such as refs/head/main
_NEARLY: Final = re.compile(r"refs/(?:heads?|tags?|branch(?:es)?|master|main)(?:/|\Z)", re.IGNORECASE)
_NAMES_SHOWN: Final = 5


def remarks(path: Path, known: Collection[str] | None, routed: Sequence[str] | None, moved: Sequence[tuple[str, int]] = ()) -> list[str]:
    """One line each. `known` are all identities, `routed` the patterns of all routes to upstreams; None if they cannot be known. `moved`
    are the patterns of routes with moved_to, each with the number of `routed` that come before it."""
    try:
        file, problems = read(path, AccessFile)
    except ConfigError:
        return []  # already reported as a problem
    if problems.lines:
        return []
    warnings = Problems(problems.places)
    if not file.rule:
        warnings.add("rule", "there is none, so nobody may read or write anything")
    for name, members in file.groups.items():
        key = below("groups", name)
        if not any(f"@{name}" in rule.who for rule in file.rule):
            warnings.add(key, f"no rule names {quoted('@' + name)}")
        _warn_of_unknown(key, members, known, file.groups, warnings)
    for number, rule in enumerate(file.rule, 1):
        key = f"rule#{number}"
        _warn_of_unknown(f"{key}.who", [who for who in rule.who if who != "*" and not who.startswith("@")], known, file.groups, warnings)
        if not _names(rule, file.groups) and "*" not in rule.who:
            warnings.add(f"{key}.who", "names nobody: the groups have no members")
        for field, patterns in (("repositories", [rule.repositories]), ("refs", rule.refs)):
            for pattern in patterns:
                for text in suspicions(pattern):
                    warnings.add(f"{key}.{field}", f"{quoted(pattern)} {text}")
        _warn_of_namespaces(key, rule, known, file.groups, warnings)
        if routed is not None and any(_is_moved(rule.repositories, one, routed) for one in moved):
            warnings.add(f"{key}.repositories", f"all that {quoted(rule.repositories)} matches has moved, must be what it is called now")
        elif routed is not None and not any(overlap(pattern, anybodys(rule.repositories)) for pattern in routed):
            warnings.add(f"{key}.repositories", f"no route leads to a repository that {quoted(rule.repositories)} matches")
    for number, earlier, why in _without_effect(file.rule[:RULES_COMPARED], file.groups):
        warnings.add(f"rule#{number}", f"{why} {', '.join(f'rule#{one}' for one in earlier)}")
    if len(file.rule) > RULES_COMPARED:
        warnings.add("rule", f"only the first {RULES_COMPARED} rules were compared with those before them")
    return warnings.lines


def suspicions(pattern: str) -> Iterator[str]:
    """Why a pattern is probably a mistake, though it may match a name."""
    if unicodedata.normalize("NFC", pattern) != pattern:
        yield "is not composed (Unicode's NFC), and names are compared byte for byte; git's clients send them composed"
    if "," in pattern:
        yield "has a comma in it, which parts nothing: alternatives are patterns each"
    if any(segment == ".*" for segment in pattern.split("/")):
        yield "has a segment .*, which matches only what begins with a dot; * matches any"
    if _NEARLY.match(pattern) and not pattern.startswith(("refs/heads/", "refs/tags/")):
        yield "is no branch and no tag: branches are refs/heads/..., tags refs/tags/..."


def _warn_of_unknown(key: str, names: Sequence[str], known: Collection[str] | None, groups: Collection[str], warnings: Problems) -> None:
    """Warns of names that nobody can log in as."""
    if known is None:
        return
    folded = {name.casefold(): name for name in known}
    for name in dict.fromkeys(names):
        if name in known:
            continue
        hint = ""
        if name in groups:
            hint = f"; the group is {quoted('@' + name)}"
        elif (like := folded.get(name.casefold())) is not None:
            hint = f"; there is {quoted(like)}"
        warnings.add(key, f"no key is of {quoted(name)}{hint}")


def _is_moved(pattern: str, moved: tuple[str, int], routed: Sequence[str]) -> bool:
    """Whether all that `pattern` matches has moved: `moved` is the pattern of such a route, and how many of `routed` come before it."""
    return covers([moved[0]], pattern) and not any(overlap(one, anybodys(pattern)) for one in routed[: moved[1]])


def _warn_of_namespaces(key: str, rule: RuleTable, known: Collection[str] | None, groups: dict[str, list[str]], warnings: Problems) -> None:
    """Warns of identities for whom {identity} matches nothing."""
    named = set(known or ()) if "*" in rule.who else _names(rule, groups)
    fields = (("repositories", [rule.repositories], namespace), ("refs", rule.refs, ref_namespace))
    for field, patterns, as_segment in fields:
        if any(map(has_placeholder, patterns)) and (none := sorted(name for name in named if as_segment(name) is None)):
            more = f" and {len(none) - _NAMES_SHOWN} more" if len(none) > _NAMES_SHOWN else ""
            who = ", ".join(map(quoted, none[:_NAMES_SHOWN])) + more
            what = "ref" if field == "refs" else "repository"
            warnings.add(f"{key}.{field}", f"matches nothing for {who}: such a name can be no segment of a {what}'s name")


def _names(rule: RuleTable, groups: dict[str, list[str]]) -> frozenset[str]:
    return frozenset(name for who in rule.who for name in (groups.get(who[1:], []) if who.startswith("@") else [who]) if name != "*")


def _without_effect(rules: Sequence[RuleTable], groups: dict[str, list[str]]) -> Iterator[tuple[int, list[int], str]]:
    """For each rule without effect its number, the numbers of the earlier rules that cover it, and the beginning of the warning."""
    names = [_names(rule, groups) for rule in rules]

    def names_all_of(earlier: int, later: int) -> bool:
        """Whether the earlier rule names everyone whom the later one names."""
        return "*" in rules[earlier].who or ("*" not in rules[later].who and names[later] <= names[earlier])

    for later, rule in enumerate(rules):
        same = [one for one in range(later) if _leaves_nothing_to(rules[one], rule) and names_all_of(one, later)]
        if same and (found := _covering(rules, same, rule.repositories)):
            yield later + 1, [one + 1 for one in found], "has no effect beside"
            continue
        if rule.allow != "write":
            continue
        # a rule that denies counts whether it comes before or after
        others = [one for one in range(len(rules)) if rules[one].deny is not None and not rules[one].refs and names_all_of(one, later)]
        if others and (found := _covering(rules, others, rule.repositories)):
            yield later + 1, [one + 1 for one in found], "allows no writing, for that is denied by"


def _covering(rules: Sequence[RuleTable], candidates: list[int], pattern: str) -> list[int]:
    """The first rule, else the rules, whose repositories are all that `pattern` matches."""
    for one in candidates:
        if covers([rules[one].repositories], pattern):
            return [one]
    return candidates[:_NAMES_SHOWN] if len(candidates) > 1 and covers([rules[one].repositories for one in candidates], pattern) else []


def _leaves_nothing_to(earlier: RuleTable, later: RuleTable) -> bool:
    """Whether the later rule decides nothing for the identities and repositories of the earlier one."""
    if (earlier.deny is None) != (later.deny is None):
        return False
    if later.refs and not earlier.refs:
        return earlier.deny is not None  # all is denied anyway; if all is allowed, the later rule still protects its refs
    if earlier.refs and not later.refs:
        return False
    if not set(later.changes or CHANGES) <= set(earlier.changes or CHANGES):
        return False
    if earlier.allow == "read" and later.allow == "write":
        return False
    return all(covers(earlier.refs, pattern) for pattern in later.refs)
