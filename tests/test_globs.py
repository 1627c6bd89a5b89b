"""Patterns against a slow reference matcher, and against names that would make a backtracking matcher hang."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.globs import PATTERN_CHARACTERS, compile_glob, glob_fault, ref_glob_fault


def matches(pattern: str, name: str) -> bool:
    return compile_glob(pattern).fullmatch(name) is not None


def reference(pattern: list[str], name: list[str]) -> bool:
    """`**` takes any number of segments; one or more where it is last."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        least = 1 if len(pattern) == 1 else 0
        return any(reference(pattern[1:], name[taken:]) for taken in range(least, len(name) + 1))
    return bool(name) and reference_segment(pattern[0], name[0]) and reference(pattern[1:], name[1:])


def reference_segment(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(reference_segment(pattern[1:], name[taken:]) for taken in range(len(name) + 1))
    return bool(name) and pattern[0] == name[0] and reference_segment(pattern[1:], name[1:])


names = st.lists(st.text("ab.", min_size=1, max_size=5), min_size=1, max_size=5)
patterns = st.lists(st.just("**") | st.text("ab.*", min_size=1, max_size=6).filter(lambda text: "**" not in text), min_size=1, max_size=5)


@given(patterns, names)
@example(["**", "**", "a"], ["a"])
@example(["a", "**"], ["a"])
@example(["**", "a", "**", "a"], ["a", "b", "a", "a"])
@example(["*ab*b"], ["abab"])
def test_it_means_what_the_reference_means(pattern: list[str], name: list[str]) -> None:
    assert matches("/".join(pattern), "/".join(name)) == reference(deduplicated(pattern), name)


def deduplicated(pattern: list[str]) -> list[str]:
    """A run of ** is one **."""
    return [segment for number, segment in enumerate(pattern) if segment != "**" or pattern[:number][-1:] != ["**"]]


@given(patterns.filter(lambda pattern: "**" not in pattern), names)
def test_a_star_never_crosses_a_slash(pattern: list[str], name: list[str]) -> None:
    if matches("/".join(pattern), "/".join(name)):
        assert len(pattern) == len(name)


@given(st.lists(st.text(st.characters(exclude_characters="*/", exclude_categories=["Cc", "Cs"]), min_size=1), min_size=1).map("/".join))
def test_everything_but_a_star_stands_for_itself(name: str) -> None:
    assert matches(name, name)
    assert not matches(name, name + "x")
    assert not matches(name, name.swapcase()) or name == name.swapcase()


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("*a" * 300 + "b", "a" * 1024),
        ("**/" + "*a*a*a*a*a*a/" * 20 + "b", "/".join(["aaaaaaaaaaaaaaa"] * 60)),
        ("/".join(["**", "a"] * 200) + "/b", "/".join(["a"] * 500)),
        ("**/*a*a*a*a*a*a*b/**/*a*a*a*a*a*b/**/c", "/".join(["a" * 100] * 10)),
    ],
)
def test_no_name_makes_matching_slow(pattern: str, name: str) -> None:
    """A backtracking matcher would not come back within the test's time limit."""
    assert not matches(pattern, name)


@pytest.mark.parametrize("pattern", ["**", "*", "team/*", "team/**", "**/app", "a/**/b", "a-*.b", "[x]?", "ünï/c"])
def test_good_patterns(pattern: str) -> None:
    assert glob_fault(pattern) is None


@pytest.mark.parametrize(
    ("pattern", "wrong"),
    [
        ("", "must have 1 to"),
        ("a" * (PATTERN_CHARACTERS + 1), "must have 1 to"),
        ("/team", "no slash at its ends"),
        ("team/", "no slash at its ends"),
        ("a//b", "no two in a row"),
        ("../a", "no segment . or .."),
        ("team/app.git", "leave .git away"),
        ("team**", "** alone between slashes"),
        ("***", "** alone between slashes"),
        ("a\nb", "no control characters"),
    ],
)
def test_patterns_that_can_match_nothing_are_told(pattern: str, wrong: str) -> None:
    assert wrong in (glob_fault(pattern) or "")


@pytest.mark.parametrize("pattern", ["**", "**/main", "refs/heads/main", "refs/tags/**", "refs/heads/a-*/x.git"])
def test_good_patterns_of_refs(pattern: str) -> None:
    assert ref_glob_fault(pattern) is None


@pytest.mark.parametrize("pattern", ["main", "heads/main", "*", "*/main", "refs", "HEAD", "", "refs//x", "refs/x**"])
def test_patterns_of_refs_that_can_match_nothing_are_told(pattern: str) -> None:
    assert ref_glob_fault(pattern) is not None
