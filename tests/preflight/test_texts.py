"""Texts for people."""

from __future__ import annotations

from typing import Any

import pytest

from tests.preflight.helpers import Setup


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"greeting": "Hi {name}"}, "relay.toml: greeting: has braces besides {identity}, which is the only placeholder that is allowed"),
        ({"greeting": "{"}, "relay.toml: greeting: has braces besides {identity}, which is the only placeholder that is allowed"),
    ],
)  # fmt: skip
def test_one_thing_wrong_is_one_line(setup: Setup, changes: dict[str, Any], expected: str) -> None:
    assert setup.problems(**changes) == [expected]


def test_texts_for_people(setup: Setup) -> None:
    assert setup.problems(banner="Only for\tstaff.\n見るな\n", notice="moved") == []
    assert setup.problems(banner="bell \x07", notice="two\nlines") == [
        "relay.toml: banner: has control characters besides tabs and line ends, must have none",
        "relay.toml: notice: has control characters, must have none",
    ]
