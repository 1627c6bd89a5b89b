"""The standard library reads the written TOML back unchanged."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.toml import merge, toml_text

text = st.text(st.characters(exclude_categories=["Cs"]))
scalars = text | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
tables = st.recursive(
    st.dictionaries(keys, scalars | st.lists(scalars)),
    lambda inner: st.dictionaries(keys, scalars | inner | st.lists(inner, min_size=1)),
    max_leaves=10,
)


@given(tables)
def test_round_trip(table: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(table)) == table


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(TypeError, match="TOML has no NoneType"):
        toml_text({"a": None})


def test_merge_replaces_values_merges_tables_and_takes_away() -> None:
    base = {"a": 1, "t": {"x": 1, "y": [1]}, "gone": 3}
    assert merge(base, {"a": 2, "t": {"y": [2]}, "gone": None}) == {"a": 2, "t": {"x": 1, "y": [2]}}
    assert base["t"] == {"x": 1, "y": [1]}
