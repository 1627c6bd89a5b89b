"""Ref rules: which ref updates of a push may be made; pure.

A grant's rules are asked in order, the first that matches ref and change decides; where none does, whoever may write the repository
may. Names are compared byte for byte, or folded where the git host ignores case; one that git would not take, but something behind it
might take for another, is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.git.globs import Globs
from relay.git.names import fold, ref_shape_fault, ref_size_fault
from relay.model import Change, RefRule, RefUpdate

NOT_ALLOWED = "not allowed by access rules"
NOT_A_NAME = "not a valid ref name"
ATOMIC = "atomic push failure"  # as git-receive-pack says it
WITH_ANOTHER = "not pushed: another ref of this push was refused"


def is_ref_name(name: str) -> bool:
    """Whether git would take `name` for that of a ref that can be pushed to, and its file system could hold it."""
    return ref_size_fault(name) is None and ref_shape_fault(name) is None


class Judge:
    """Asks the rules of a grant in order; all their patterns at once, for a push may have thousands of refs, and a grant hundreds of rules.

    With `ignore_case` an update is allowed when it is both as it is and as a git host that ignores case takes it: folded. Such a host may
    well tell some refs apart, those in packed-refs.
    """

    def __init__(self, rules: Sequence[RefRule], *, ignore_case: bool = False) -> None:
        self._rules = rules
        self._rule_of = [number for number, rule in enumerate(rules) for _ in rule.refs]
        patterns = [pattern for rule in rules for pattern in rule.refs]
        self._globs = Globs(patterns)
        self._folded = Globs([fold(pattern) for pattern in patterns]) if ignore_case else None

    def allows(self, update: RefUpdate) -> bool:
        """Whether the first rule that matches allows the update; True where none matches."""
        if self._folded is not None and not self._allows(self._folded, fold(update.ref), update.change):
            return False
        return self._allows(self._globs, update.ref, update.change)

    def _allows(self, globs: Globs, name: str, change: Change) -> bool:
        for pattern in globs.matches(name):
            rule = self._rules[self._rule_of[pattern]]
            if change in rule.changes:
                return rule.write
        return True


def refusals(
    updates: Sequence[RefUpdate], rules: Sequence[RefRule], atomic: bool, *, ignore_case: bool = False
) -> list[tuple[RefUpdate, str]]:
    """Nothing when all may be made; else each update with the reason why it is not: a push is carried whole or not at all."""
    judge = Judge(rules, ignore_case=ignore_case)
    reasons = [NOT_A_NAME if not is_ref_name(one.ref) else "" if judge.allows(one) else NOT_ALLOWED for one in updates]
    if not any(reasons):
        return []
    others = ATOMIC if atomic else WITH_ANOTHER
    return [(one, reason or others) for one, reason in zip(updates, reasons, strict=True)]
