"""The generated parts of the pages are up to date."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.pages.pages import MANUAL, PARTS, ROOT, manual_page, pages, parts, rendered


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_the_page_is_up_to_date(page: Path) -> None:
    text = page.read_text()
    if rendered(text) != text:
        pytest.fail(f"{page.relative_to(ROOT)} is not what the code says any more: run `make docs` and commit the page", pytrace=False)


def test_the_manual_page_is_up_to_date() -> None:
    if MANUAL.read_text() != manual_page():
        pytest.fail("docs/relay.1 is not what the command line says any more: run `make docs` and commit the page", pytrace=False)


def test_every_part_is_on_one_page() -> None:
    assert Counter(name for page in pages() for name in parts(page.read_text())) == Counter(list(PARTS))


def test_a_part_is_replaced_and_nothing_else() -> None:
    before = "Intro.\n\n<!-- make docs: audit -->\nwhat it said\n<!-- end -->\n\nOutro.\n"
    after = rendered(before)
    assert after.startswith("Intro.\n\n<!-- make docs: audit -->\n\n### `session`") and after.endswith("\n\n<!-- end -->\n\nOutro.\n")
    assert "what it said" not in after and rendered(after) == after
