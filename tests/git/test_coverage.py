"""Comparison of patterns: never wrong for any short name, and exact for small patterns."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.git.coverage import covers, overlap
from relay.git.globs import compile_glob

# all names of up to seven characters over two letters and the slash, without empty segments
NAMES = [
    name
    for length in range(1, 8)
    for name in map("".join, product("ab/", repeat=length))
    if not name.startswith("/") and not name.endswith("/") and "//" not in name
]

patterns = st.lists(st.sampled_from(["**", "*", "a", "b", "a*", "*b", "a*b", "*a*"]), min_size=1, max_size=4).map("/".join)


def matched(pattern: str) -> set[str]:
    compiled = compile_glob(pattern)
    return {name for name in NAMES if compiled.fullmatch(name)}


@given(st.lists(patterns, min_size=1, max_size=3), patterns)
@example(["*", "*/**"], "**")
@example(["**/a", "**/b"], "*")
@example(["a/**"], "a/**/b")
@example(["**"], "**/**/a")
def test_covers_is_never_wrong(wider: list[str], narrow: str) -> None:
    missed = matched(narrow) - set().union(*map(matched, wider))
    if covers(wider, narrow):
        assert not missed
    elif sum(map(len, [*wider, narrow])) <= 8:  # then NAMES contains a missed name, if there is one
        assert missed


@given(patterns, patterns)
@example("**/a", "b/**")
def test_overlap_is_never_wrong(one: str, other: str) -> None:
    both = matched(one) & matched(other)
    if not overlap(one, other):
        assert not both
    elif len(one + other) <= 8:
        assert both
    assert overlap(one, other) == overlap(other, one)


@pytest.mark.parametrize(
    ("wider", "narrow", "expected"),
    [
        (["team/*"], "team/app", True),
        (["team/*"], "team/**", False),
        (["team/*", "team/*/**"], "team/**", True),
        (["**"], "team/*", True),
        (["team/**"], "team/*", True),
        (["**/app"], "team/app", True),
        (["team/a*", "team/*b"], "team/a*b", True),
        (["team/a*"], "team/*", False),
        (["*"], "**", False),
        (["Team/*"], "team/app", False),
        ([], "a", False),
    ],
)
def test_examples(wider: list[str], narrow: str, expected: bool) -> None:
    assert covers(wider, narrow) is expected


def test_patterns_that_take_too_many_steps_cause_no_warning() -> None:
    assert covers(["**/*a*b*/**"], "**/*a*b*/**")
    assert not covers(["**/*a*b*/**"], "**/*a*b*/**", budget=5)
    assert not overlap("*/b", "*/c")
    assert overlap("*/b", "*/c", budget=1)
