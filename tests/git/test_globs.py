"""Patterns against a slow reference matcher, and against names that would make a backtracking matcher hang."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.git.globs import PATTERN_CHARACTERS, Globs, compile_glob, glob_fault, ref_glob_fault
from relay.git.names import BadName, check_repository_shape
from relay.git.refs import is_ref_name


def matches(pattern: str, name: str) -> bool:
    return compile_glob(pattern).fullmatch(name) is not None


def reference(pattern: list[str], name: list[str]) -> bool:
    """`**` matches any number of segments, at the end one or more."""
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
def test_a_pattern_matches_like_the_reference(pattern: list[str], name: list[str]) -> None:
    assert matches("/".join(pattern), "/".join(name)) == reference(deduplicated(pattern), name)


@given(st.lists(patterns, max_size=5), st.lists(names, max_size=5))
@example([["**"], ["a", "**"], ["**", "a"]], [["a"], ["a", "a"]])
def test_patterns_matched_together_match_like_each_alone(several: list[list[str]], them: list[list[str]]) -> None:
    globs = Globs(["/".join(pattern) for pattern in several])
    for name in them:
        alone = [number for number, pattern in enumerate(several) if matches("/".join(pattern), "/".join(name))]
        assert globs.matches("/".join(name)) == alone


def deduplicated(pattern: list[str]) -> list[str]:
    """Replaces a run of ** by one **."""
    return [segment for number, segment in enumerate(pattern) if segment != "**" or pattern[:number][-1:] != ["**"]]


@given(patterns.filter(lambda pattern: "**" not in pattern), names)
def test_a_star_never_crosses_a_slash(pattern: list[str], name: list[str]) -> None:
    if matches("/".join(pattern), "/".join(name)):
        assert len(pattern) == len(name)


@given(st.lists(st.text(st.characters(exclude_characters="*/", exclude_categories=["Cc", "Cs"]), min_size=1), min_size=1).map("/".join))
def test_every_character_but_a_star_matches_itself(name: str) -> None:
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
    """A backtracking matcher would exceed the test's time limit."""
    assert not matches(pattern, name)


@pytest.mark.parametrize(
    "pattern",
    ["**", "*", "team/*", "team/**", "**/app", "a/**/b", "a-*.b", "ünï/c", ".github/x", "c++", "app (old)", "a b", "**/x.git/y"],
)
def test_valid_patterns(pattern: str) -> None:
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
        ("a\u200bb", "printable characters only"),
        (" team/app", "no space at its ends"),
        ("team/app\u00a0", "printable characters only"),
        ("!team/app", "must not begin with !"),
        ("team/[ab", "must not have ["),
        ("team/a?p[12]", "must not have ?"),
        ("users/{identity}/**", "must not have {"),
        ("users/$USER/*", "must not have $"),
        ("^team/app", "must not have ^"),
        ("team/a|b", "must not have |"),
        ("team\\app", "must not have \\"),
        ("<group>/app", "must not have <"),
        ("~alice/app", "can match no repository: no segment of a repository name may begin with '-' or '~'"),
        ("team/-*", "can match no repository: no segment"),
        ("**/.git/x", "can match no repository: empty, '.', '..' and '.git' segments"),
        ("team/*.git", "leave .git away"),
        ("é" * 513, "can match no repository: the repository name is too long, at most 1,024 bytes"),
    ],
)
def test_patterns_that_can_match_nothing_are_refused(pattern: str, wrong: str) -> None:
    assert wrong in (glob_fault(pattern) or "")


@pytest.mark.parametrize(
    "pattern",
    [
        "**",
        "**/main",
        "refs/heads/main",
        "refs/tags/**",
        "refs/heads/a-*/x.git",
        "refs/heads/a.lock*",
        "refs/heads/*.*",
        "refs/heads/@",
        "refs/heads/-x",
        "refs/*/main",
        "refs/heads/" + "a" * 255,
        "refs/heads/" + "a" * 255 + "*",
    ],
)
def test_valid_patterns_of_refs(pattern: str) -> None:
    assert ref_glob_fault(pattern) is None


@pytest.mark.parametrize("pattern", ["main", "heads/main", "*", "*/main", "refs", "HEAD", "", "refs//x", "refs/x**", "Refs/heads/main"])
def test_patterns_of_refs_that_can_match_nothing_are_refused(pattern: str) -> None:
    assert ref_glob_fault(pattern) is not None


@pytest.mark.parametrize(
    ("pattern", "wrong"),
    [
        ("refs/heads/{main,release}", "must not have { in it: only * (within a segment) and ** (across segments) are special"),
        ("refs/heads/rel?ase", "must not have ?"),
        ("refs/heads/[mr]*", "must not have ["),
        ("refs/heads/^main", "must not have ^"),
        ("refs/heads/release-\\d+", "must not have \\"),
        ("refs/heads/(main|release)", "must not have |"),
        ("refs/heads/main$", "must not have $"),
        ("refs/heads/ma in", "can match no ref: git allows no space in a ref"),
        ("refs/heads/main ", "can match no ref: git allows no space in a ref"),
        ("refs/heads/a:b", "can match no ref: git allows none of ~ ^ : ? * [ \\ in a ref"),
        ("refs/heads/~a", "can match no ref: git allows none of"),
        ("refs/heads/a..b", "can match no ref: git allows no two dots in a row in a ref"),
        ("refs/heads/.*", "can match no ref: git allows no component of a ref that begins with a dot"),
        ("**/.x/**", "can match no ref: git allows no component of a ref that begins with a dot"),
        ("refs/heads/*.lock", "can match no ref: git allows no component of a ref that ends in .lock"),
        ("refs/heads/x.lock/**", "can match no ref: git allows no component of a ref that ends in .lock"),
        ("refs/heads/*.", "can match no ref: git allows no ref that ends in a dot"),
        ("refs/heads/" + "a" * 256 + "*", "can match no ref: a component of a ref has at most 255 bytes"),
    ],
)
def test_a_pattern_of_refs_that_git_never_sees_is_refused_with_what_is_allowed(pattern: str, wrong: str) -> None:
    assert (ref_glob_fault(pattern) or "").startswith(wrong)


def examples(pattern: list[str]) -> list[str]:
    """Names that the pattern matches."""
    return ["/".join(part.replace("**", filler or "b").replace("*", filler) for part in pattern) for filler in ("", "a", "ab")]


ref_texts = st.lists(st.text("ab.@~ *{lock-", min_size=1, max_size=6) | st.sampled_from(["**", "*", "x.lock", "heads"]), max_size=4)


@given(ref_texts, st.lists(st.text("ab.lock", min_size=1, max_size=6), min_size=1, max_size=4))
@example(["heads", "*.lock"], ["heads", "x.lock"])
def test_a_refused_pattern_matches_no_ref_and_an_accepted_one_matches_some(pattern: list[str], parts: list[str]) -> None:
    """Both random names and names made from the pattern."""
    text = "/".join(["refs", *pattern])
    if any("**" in segment and segment != "**" for segment in pattern):
        return
    made = ["/".join(["refs", *parts]), *examples(["refs", *pattern])]
    matched = [name for name in made if is_ref_name(name) and matches(text, name)]
    if "{" in text:
        return  # always refused: special in other pattern languages
    if ref_glob_fault(text) is not None:
        assert not matched
    else:
        assert matched


def is_repository(name: str) -> bool:
    try:
        check_repository_shape(name)
    except BadName:
        return False
    return True


repository_texts = st.lists(st.text("a.git-~ *b", min_size=1, max_size=6) | st.sampled_from(["**", "*", ".git"]), min_size=1, max_size=4)


@given(repository_texts, st.lists(st.text("ab.git", min_size=1, max_size=6), min_size=1, max_size=4))
def test_a_refused_pattern_matches_no_repository_and_an_accepted_one_matches_some(pattern: list[str], parts: list[str]) -> None:
    text = "/".join(pattern)
    if any("**" in segment and segment != "**" for segment in pattern) or text != text.strip():
        return
    made = ["/".join(parts), *examples(pattern)]
    matched = [name for name in made if is_repository(name) and matches(text, name)]
    assert bool(matched) is (glob_fault(text) is None)
