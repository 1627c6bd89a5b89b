"""The table of git hosts' refusals."""

from __future__ import annotations

from relay.git.host_words import REFUSALS
from tests.pages.refusals import refusals


def test_each_refusal_has_its_row() -> None:
    assert refusals().count("\n") == len(REFUSALS) + 1
