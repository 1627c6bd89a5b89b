"""What `relay check` warns of in access.toml: rules and names that are well formed and yet decide nothing."""

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
from relay.text import quoted

COMPARED: Final = 1_000  # rules; those behind are not compared with those before

# what is taken for a branch or tag and is none, as in refs/head/main
_NEARLY: Final = re.compile(r"refs/(?:heads?|tags?|branch(?:es)?|master|main)(?:/|\Z)", re.IGNORECASE)
_NAMES_SHOWN: Final = 5


def remarks(path: Path, known: Collection[str] | None, routed: Sequence[str] | None) -> list[str]:
    """One line each. `known` are all identities there are, `routed` the patterns of all routes; None where they cannot be known."""
    try:
        file, problems = read(path, AccessFile)
    except ConfigError:
        return []  # told as a problem already
    if problems.lines:
        return []
    told = Problems(problems.places)
    if not file.rule:
        told.add("rule", "there is none, so nobody may read or write anything")
    for name, members in file.groups.items():
        key = below("groups", name)
        if not any(f"@{name}" in rule.who for rule in file.rule):
            told.add(key, f"no rule names {quoted('@' + name)}")
        _unknown(key, members, known, file.groups, told)
    for number, rule in enumerate(file.rule, 1):
        key = f"rule#{number}"
        _unknown(f"{key}.who", [who for who in rule.who if who != "*" and not who.startswith("@")], known, file.groups, told)
        if not _names(rule, file.groups) and "*" not in rule.who:
            told.add(f"{key}.who", "names nobody: the groups have no members")
        for field, patterns in (("repositories", [rule.repositories]), ("refs", rule.refs)):
            for pattern in patterns:
                for text in odd(pattern):
                    told.add(f"{key}.{field}", f"{quoted(pattern)} {text}")
        if routed is not None and not any(overlap(pattern, rule.repositories) for pattern in routed):
            told.add(f"{key}.repositories", f"no route leads to a repository that {quoted(rule.repositories)} matches")
    for number, earlier, why in _without_effect(file.rule[:COMPARED], file.groups):
        told.add(f"rule#{number}", f"{why} {', '.join(f'rule#{one}' for one in earlier)}")
    if len(file.rule) > COMPARED:
        told.add("rule", f"only the first {COMPARED} rules were compared with those before them")
    return told.lines


def odd(pattern: str) -> Iterator[str]:
    """What a pattern hardly means, though there may be a name that it matches."""
    if unicodedata.normalize("NFC", pattern) != pattern:
        yield "is not composed (Unicode's NFC), and names are compared byte for byte; git's clients send them composed"
    if "," in pattern:
        yield "has a comma in it, which parts nothing: alternatives are patterns each"
    if any(segment == ".*" for segment in pattern.split("/")):
        yield "has a segment .*, which matches only what begins with a dot; * matches any"
    if _NEARLY.match(pattern) and not pattern.startswith(("refs/heads/", "refs/tags/")):
        yield "is no branch and no tag: branches are refs/heads/..., tags refs/tags/..."


def _unknown(key: str, names: Sequence[str], known: Collection[str] | None, groups: Collection[str], told: Problems) -> None:
    """Names that nobody can log in under."""
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
        told.add(key, f"no key is of {quoted(name)}{hint}")


def _names(rule: RuleTable, groups: dict[str, list[str]]) -> frozenset[str]:
    return frozenset(name for who in rule.who for name in (groups.get(who[1:], []) if who.startswith("@") else [who]) if name != "*")


def _without_effect(rules: Sequence[RuleTable], groups: dict[str, list[str]]) -> Iterator[tuple[int, list[int], str]]:
    """Number, the earlier rules that say the same or more, and in words what that means."""
    names = [_names(rule, groups) for rule in rules]

    def of_all(earlier: int, later: int) -> bool:
        """Whether the earlier rule is about everyone whom the later names."""
        return "*" in rules[earlier].who or ("*" not in rules[later].who and names[later] <= names[earlier])

    for later, rule in enumerate(rules):
        same = [one for one in range(later) if _says_as_much(rules[one], rule) and of_all(one, later)]
        if same and (found := _covering(rules, same, rule.repositories)):
            yield later + 1, [one + 1 for one in found], "has no effect beside"
            continue
        if rule.allow != "write":
            continue
        # a rule that denies counts wherever it stands
        others = [one for one in range(len(rules)) if rules[one].deny is not None and not rules[one].refs and of_all(one, later)]
        if others and (found := _covering(rules, others, rule.repositories)):
            yield later + 1, [one + 1 for one in found], "allows no writing, for that is denied by"


def _covering(rules: Sequence[RuleTable], candidates: list[int], pattern: str) -> list[int]:
    """The first rule, else the rules, whose repositories are all that `pattern` matches."""
    for one in candidates:
        if covers([rules[one].repositories], pattern):
            return [one]
    return candidates[:_NAMES_SHOWN] if len(candidates) > 1 and covers([rules[one].repositories for one in candidates], pattern) else []


def _says_as_much(earlier: RuleTable, later: RuleTable) -> bool:
    """Whether the later rule decides nothing for those, and in those repositories, that the earlier is about."""
    if (earlier.deny is None) != (later.deny is None):
        return False
    if later.refs and not earlier.refs:
        return earlier.deny is not None  # denied altogether; what is allowed altogether is still protected by the later rule
    if earlier.refs and not later.refs:
        return False
    if not set(later.changes or CHANGES) <= set(earlier.changes or CHANGES):
        return False
    if earlier.allow == "read" and later.allow == "write":
        return False
    return all(covers(earlier.refs, pattern) for pattern in later.refs)
