"""Rules for refs in the order in which they decide, and the grant for a push; test_file.py has the whole table."""

from __future__ import annotations

from relay.access.ref_rules import CHANGES, ApplicableRule, in_order, push_grant
from relay.model import Grant, RefRule

MAIN, TOPIC, TAGS = ("refs/heads/main",), ("refs/heads/topic",), ("refs/tags/**",)


def test_denied_then_allowed_then_protected() -> None:
    said = [
        ApplicableRule(MAIN, CHANGES, allows=True, names_them=False),
        ApplicableRule(TOPIC, CHANGES, allows=True, names_them=True),
        ApplicableRule(TAGS, ("delete",), allows=False, names_them=True),
        ApplicableRule(TAGS, CHANGES, allows=False, names_them=False),  # a rule for other identities
    ]
    assert in_order(said) == (
        RefRule(refs=TAGS, write=False, changes=("delete",)),
        RefRule(refs=TOPIC, write=True),
        RefRule(refs=MAIN, write=False),
    )


def test_a_push_by_an_identity_that_may_write_only_some_refs() -> None:
    only = RefRule(refs=TOPIC, write=True)
    never = RefRule(refs=MAIN, write=False)
    assert push_grant(True, (never,)) == Grant(access="write", refs=(never,))
    assert push_grant(True, ()) == Grant(access="write")
    assert push_grant(False, (never, only)) == Grant(access="write", refs=(never, only, RefRule(refs=("**",), write=False)))
    assert push_grant(False, (never,)) is push_grant(False, ()) is None
