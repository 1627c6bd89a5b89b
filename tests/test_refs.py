"""Which ref updates a grant's rules let pass: the first that matches decides, and a push is carried whole or not at all."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model import Change, RefRule, RefUpdate
from relay.refs import ATOMIC, NOT_A_NAME, NOT_ALLOWED, WITH_ANOTHER, is_ref_name, may_change, refusals

ZERO, A, B = "0" * 40, "a" * 40, "b" * 40
IDS: dict[Change, tuple[str, str]] = {"create": (ZERO, A), "update": (A, B), "delete": (A, ZERO)}


def update(ref: str, change: Change = "update") -> RefUpdate:
    old, new = IDS[change]
    return RefUpdate(ref=ref, old=old, new=new)


def rule(*refs: str, write: bool = False, changes: tuple[Change, ...] = ("create", "update", "delete")) -> RefRule:
    return RefRule(refs=refs, write=write, changes=changes)


def test_the_first_that_matches_decides() -> None:
    rules = [rule("refs/heads/a", write=True), rule("refs/heads/*"), rule("refs/heads/deep/**", write=True)]
    decided = {ref: may_change(update(ref), rules) for ref in ("refs/heads/a", "refs/heads/b", "refs/heads/deep/x", "refs/tags/a")}
    assert decided == {"refs/heads/a": True, "refs/heads/b": False, "refs/heads/deep/x": True, "refs/tags/a": True}


def test_a_rule_for_some_changes_is_silent_about_the_others() -> None:
    rules = [rule("refs/tags/**", changes=("update", "delete"))]
    assert [may_change(update("refs/tags/v1", change), rules) for change in IDS] == [True, False, False]


def test_names_are_compared_byte_for_byte() -> None:
    rules = [rule("refs/heads/main", "refs/heads/größe")]
    assert not may_change(update("refs/heads/main"), rules) and not may_change(update("refs/heads/größe"), rules)
    assert may_change(update("refs/heads/Main"), rules) and may_change(update("refs/heads/main2"), rules)
    assert may_change(update("refs/heads/gr\udcffe"), rules)


def test_one_refused_is_all_refused() -> None:
    rules = [rule("refs/heads/main")]
    pushed = [update("refs/heads/topic"), update("refs/heads/main"), update("refs/heads//main"), update("HEAD")]
    assert refusals(pushed[:1], rules, atomic=False) == refusals([], rules, atomic=True) == []
    assert [reason for _, reason in refusals(pushed, rules, atomic=False)] == [WITH_ANOTHER, NOT_ALLOWED, NOT_A_NAME, NOT_A_NAME]
    assert [reason for _, reason in refusals(pushed[:2], rules, atomic=True)] == [ATOMIC, NOT_ALLOWED]


NAMES = ["main", "x.y", "@", "-x", "heads/@{", "/x", "x/", ".x", "x.lock", "x.", "a..b", "a b", "a~", "a^", "a:b", "a?", "a*", "a[", "a\\b"]
NAMES += ["x.lock/y", "x/.y"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_for_us_when_it_is_one_for_git(name: str) -> None:
    name = f"refs/{name}"
    git = shutil.which("git")
    assert git is not None
    assert is_ref_name(name) == (subprocess.run([git, "check-ref-format", name], check=False).returncode == 0)


@pytest.mark.parametrize("name", ["", "refs", "refs/", "HEAD", "heads/main", "refs/a\n", "refs/a\0b", "refs/a\x7f", "/refs/a"])
def test_a_name_that_nobody_may_push_to(name: str) -> None:
    assert not is_ref_name(name)


@given(st.lists(st.sampled_from(["a", "main", ".", "..", "x.lock", "@{", "~", "-", ""]), min_size=1, max_size=4))
def test_no_name_passes_that_a_file_system_could_read_otherwise(parts: list[str]) -> None:
    name = "refs/" + "/".join(parts)
    if is_ref_name(name):
        assert not {"", ".", ".."} & set(name.split("/"))
