"""{identity} in patterns: the folder of the identity that asks, never that of another one, whatever identities are called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.git.globs import compile_glob
from relay.git.names import BadName, check_repository
from relay.git.namespaces import anybodys, namespace, own, own_ref, placeholder_fault, ref_namespace

ODD = [
    "*", "**", "..", ".", ".git", "a.git", "-x", "~x", "a*", "a/b", "{identity}", "a\\b", "a:b", "a?", "",
    "a b", "alice", "Alice", "a@b.c",
]  # fmt: skip


@pytest.mark.parametrize("identity", ["alice", "alice@example.com", "Alice", "a b", "ci-7", "grösse", "a.b"])
def test_an_ordinary_name_is_a_segment(identity: str) -> None:
    assert namespace(identity) == identity
    assert own("users/{identity}/**", identity) == f"users/{identity}/**"


@pytest.mark.parametrize("identity", ODD[:-4])
def test_a_name_that_can_be_no_segment_has_no_namespace(identity: str) -> None:
    assert namespace(identity) is None
    assert own("users/{identity}/**", identity) is None
    assert own("users/**", identity) == "users/**"


def test_where_case_is_ignored_only_a_folded_name_has_a_namespace() -> None:
    assert namespace("alice", folded=True) == "alice"
    assert namespace("Alice", folded=True) is None
    assert ref_namespace("Alice", folded=True) is None


@pytest.mark.parametrize("identity", ["a..b", "x.lock", "a b", "a^", "a*", ".a", "a@{b", "a/b"])
def test_a_name_that_can_be_no_component_of_a_ref(identity: str) -> None:
    assert ref_namespace(identity) is None
    assert own_ref("refs/heads/{identity}/**", identity) is None


@given(st.sampled_from(ODD) | st.text(max_size=8), st.sampled_from(ODD) | st.text(max_size=8), st.booleans())
def test_no_repository_of_one_identity_is_matched_for_another(one: str, other: str, folded: bool) -> None:
    mine, theirs = (own("users/{identity}/**", identity, folded=folded) for identity in (one, other))
    if one == other or mine is None or theirs is None:
        return
    name = f"users/{one}/app"
    check_repository(name)
    assert compile_glob(mine).fullmatch(name)
    assert not compile_glob(theirs).fullmatch(name)


@given(st.text(max_size=20))
def test_what_a_namespace_matches_is_a_repository_name(identity: str) -> None:
    segment = namespace(identity)
    if segment is not None:
        try:
            check_repository(f"{segment}/{segment}")
        except BadName as bad:
            raise AssertionError(segment) from bad


def test_the_placeholder_stands_alone() -> None:
    assert placeholder_fault("users/{identity}/**") is None
    assert placeholder_fault("{identity}") is None
    for pattern in ("users/{identity}-x", "~{identity}/**", "a/{identity}*"):
        assert placeholder_fault(pattern) == "must have {identity} alone between slashes, as in users/{identity}/**"
    assert anybodys("users/{identity}/**") == "users/*/**"
