"""Which ref updates of a push a grant's rules allow; pure.

The first rule that matches ref and change decides. If none matches, the update is allowed, for the identity may write the repository.
Names are compared byte for byte, or folded if the git host ignores case. A name that git would refuse is refused here: software behind the
relay might take it for another name.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.git.globs import Globs, TooManySteps
from relay.git.names import fold, ref_shape_fault, ref_size_fault
from relay.model import Change, RefRule, RefUpdate

NOT_ALLOWED = "not allowed by access rules"
NOT_A_NAME = "not a valid ref name"
TOO_COSTLY = "too many refs for the access rules, push fewer at once"
ATOMIC = "atomic push failure"  # git-receive-pack's words
WITH_ANOTHER = "not pushed: another ref of this push was refused"


# for the refs of one push, and as many for their folded names: no other session of the worker moves meanwhile. A push of 8,000 tags to a
# repository with a hundred rules such as refs/tags/v*-rc* takes 0.8 million.
MATCH_STEPS = 2_000_000


def is_ref_name(name: str) -> bool:
    """Whether git accepts a push to a ref with this name, and a file system can store it."""
    return ref_size_fault(name) is None and ref_shape_fault(name) is None


class RefJudge:
    """Applies the rules of a grant in order; matches all patterns at once: a push may have thousands of refs, a grant hundreds of rules.

    With `ignore_case` an update must be allowed under its own name and under the folded one: a git host that ignores case still
    distinguishes refs in packed-refs.
    """

    def __init__(self, rules: Sequence[RefRule], *, ignore_case: bool = False) -> None:
        self._rules = rules
        self._rule_of = [number for number, rule in enumerate(rules) for _ in rule.refs]
        patterns = [pattern for rule in rules for pattern in rule.refs]
        self._globs = Globs(patterns, MATCH_STEPS)
        self._folded = Globs([fold(pattern) for pattern in patterns], MATCH_STEPS) if ignore_case else None

    def allows(self, update: RefUpdate) -> bool:
        """Whether the first rule that matches allows the update; True if none matches. Raises TooManySteps."""
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
    """An empty list if all updates are allowed; else each update with a reason, for a push is carried whole or not at all."""
    judge = RefJudge(rules, ignore_case=ignore_case)
    reasons = [_fault(judge, one) for one in updates]
    if not any(reasons):
        return []
    others = ATOMIC if atomic else WITH_ANOTHER
    return [(one, reason or others) for one, reason in zip(updates, reasons, strict=True)]


def _fault(judge: RefJudge, update: RefUpdate) -> str:
    """Why the update is refused; empty if it is allowed."""
    if not is_ref_name(update.ref):
        return NOT_A_NAME
    try:
        return "" if judge.allows(update) else NOT_ALLOWED
    except TooManySteps:
        return TOO_COSTLY
