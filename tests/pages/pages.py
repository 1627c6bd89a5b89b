"""The generated parts of the pages: the part's function writes the text between `<!-- make docs: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from relay import __version__
from relay.cli import tree
from relay.commands.manual import manual
from tests.pages.algorithms import algorithms
from tests.pages.audit import audit
from tests.pages.configuration import configuration
from tests.pages.metrics import metrics
from tests.pages.refusals import refusals

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PARTS: dict[str, Callable[[], str]] = {
    "configuration": configuration,
    "metrics": metrics,
    "audit": audit,
    "algorithms": algorithms,
    "refusals": refusals,
}

MANUAL = DOCS / "relay.1"

_PART = re.compile(r"(<!-- make docs: (\w+) -->\n).*?(^<!-- end -->$)", re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def manual_page() -> str:
    """What MANUAL should be."""
    return manual(tree(), __version__)


def rendered(text: str) -> str:
    """The page with its generated parts up to date; raises KeyError for an unknown part."""
    return _PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[3]}", text)


def parts(text: str) -> list[str]:
    return [found[1] for found in _PART.findall(text)]
