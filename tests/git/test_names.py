"""Valid names, and names that are the same to a git host that ignores case."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.git.names import COMPONENT_BYTES, REF_BYTES, BadName, check_repository, fold, ref_shape_fault, ref_size_fault

texts = st.text(st.characters(exclude_characters="\0"), max_size=20)


@given(texts)
def test_a_folded_name_is_folded(name: str) -> None:
    assert fold(fold(name)) == fold(name)


@given(texts)
def test_names_that_differ_only_by_case_or_composition_fold_to_one(name: str) -> None:
    for other in (
        name.upper(),
        name.lower(),
        name.title(),
        name.swapcase(),
        name.casefold(),
        *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")),
        unicodedata.normalize("NFD", name.upper()),
    ):
        if other.casefold() == name.casefold() or unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", name):
            assert fold(other) == fold(name)


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("team/APP", "team/app"),
        ("Team/App.GIT", "team/app.git"),
        ("TEAM/\u212aelvin", "team/kelvin"),
        ("STRASSE", "strasse"),
        ("Gro\u0308\u00dfe", "grösse"),
        ("a\u200bb/\ufeffc\u00add", "ab/cd"),
        ("team/app. .", "team/app"),
        ("team./app", "team/app"),
        ("..", ".."),
        ("a/./b", "a/./b"),
        ("refs/heads/MAIN", "refs/heads/main"),
        ("refs/heads/\udcff", "refs/heads/\udcff"),
    ],
)
def test_names_that_some_file_system_takes_for_one_fold_to_one(name: str, folded: str) -> None:
    assert fold(name) == folded


@pytest.mark.parametrize("name", ["team/app", "ünï", "a b", "x" * 1024, "[x]"])
def test_names_of_repositories(name: str) -> None:
    check_repository(name)


@pytest.mark.parametrize("name", ["", "a//b", "../a", "a/.git", "-x", "~x", "a.git", "a\nb", "a\\b", "a\udcff", "\u202ea"])
def test_invalid_names_of_repositories(name: str) -> None:
    with pytest.raises(BadName):
        check_repository(name)


def test_sizes_are_counted_in_bytes() -> None:
    with pytest.raises(BadName, match="the repository name is too long, at most 1,024 bytes are allowed"):
        check_repository("é" * 513)
    assert ref_size_fault("refs/" + "é" * 128) == f"a component of a ref has at most {COMPONENT_BYTES} bytes"
    assert ref_size_fault("refs/" + "a/" * 3000) == f"a ref has at most {REF_BYTES:,} bytes"
    assert ref_shape_fault("heads/main") == "a ref has its whole name, as in refs/heads/main"
