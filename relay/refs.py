"""Ref rules: which ref updates of a push may be made; pure.

A grant's rules are asked in order, the first that matches ref and change decides; where none does, whoever may write the repository
may. Names are compared byte for byte, so one that git would not take, but something behind it might take for another, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

from relay.globs import compile_glob
from relay.model import RefRule, RefUpdate

NOT_ALLOWED = "not allowed by access rules"
NOT_A_NAME = "not a valid ref name"
ATOMIC = "atomic push failure"  # as git-receive-pack says it
WITH_ANOTHER = "not pushed: another ref of this push was refused"

# git-check-ref-format: no component that is empty, begins with a dot or ends in .lock; nowhere two dots, @{, or one of these characters
_WRONG = re.compile(r"//|/\.|\.\.|@\{|\.lock(?:/|\Z)|[/.]\Z|[\x00-\x20\x7f~^:?*\[\\]")


def is_ref_name(name: str) -> bool:
    """Whether git would take `name` for that of a ref that can be pushed to."""
    return name.startswith("refs/") and len(name) > len("refs/") and _WRONG.search(name) is None


@lru_cache(maxsize=1024)
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """One pattern that matches where one of them does: a push may have thousands of refs."""
    return re.compile("|".join(f"(?:{compile_glob(pattern).pattern})" for pattern in patterns))


def may_change(update: RefUpdate, rules: Sequence[RefRule]) -> bool:
    """Whether the first rule that matches allows the update; True where none matches."""
    change = update.change
    for rule in rules:
        if change in rule.changes and _any_of(rule.refs).fullmatch(update.ref):
            return rule.write
    return True


def _joined(rules: Sequence[RefRule]) -> list[RefRule]:
    """The same with fewer rules: neighbours that say the same of different refs are one."""
    together = groupby(rules, lambda rule: (rule.write, rule.changes))
    return [
        RefRule(refs=tuple(pattern for rule in same for pattern in rule.refs), write=write, changes=changes)
        for (write, changes), same in together
    ]


def refusals(updates: Sequence[RefUpdate], rules: Sequence[RefRule], atomic: bool) -> list[tuple[RefUpdate, str]]:
    """Nothing when all may be made; else each update with the reason why it is not: a push is carried whole or not at all."""
    rules = _joined(rules)
    reasons = [NOT_A_NAME if not is_ref_name(one.ref) else "" if may_change(one, rules) else NOT_ALLOWED for one in updates]
    if not any(reasons):
        return []
    others = ATOMIC if atomic else WITH_ANOTHER
    return [(one, reason or others) for one, reason in zip(updates, reasons, strict=True)]
