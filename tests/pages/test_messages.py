"""docs/troubleshooting.md: it has every text that a client may read, and every warning of the log, with its cause; and no others."""

from __future__ import annotations

import re

import pytest

from relay.errors import Denied
from tests.pages.messages import LEVELS, WARNINGS, client_messages, log_lines
from tests.pages.pages import DOCS

PAGE = (DOCS / "troubleshooting.md").read_text()
ADVICE = "docs/troubleshooting.md, a row a text: what it says, because of what, what to do"


def rows(heading: str) -> list[str]:
    """The code in the first column of the table below a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = [re.match(r"\| (`+)(.*?)\1 \|", line) for line in section.splitlines() if line.startswith("| ") and "`" in line]
    assert found and all(found), f"a row below {heading} does not begin with a text in backquotes"
    return [one[2].replace("\\|", "|") for one in found if one]


def complain(what: str, texts: set[str]) -> None:
    if texts:
        pytest.fail("\n".join([f"{what} ({ADVICE}):", *sorted(texts)]), pytrace=False)


def test_every_text_that_a_client_may_read_is_explained() -> None:
    complain("not on the page", client_messages() - set(rows("What a client reads")))


def test_every_explained_text_exists() -> None:
    complain("no client reads this any more", set(rows("What a client reads")) - client_messages())


def test_every_warning_of_the_log_is_explained() -> None:
    complain("not on the page", log_lines(WARNINGS) - set(rows("What the log warns of")))


def test_every_explained_line_of_the_log_exists() -> None:
    complain("the log does not say this any more", set(rows("What the log warns of")) - log_lines(LEVELS))


@pytest.mark.parametrize("heading", ["What a client reads", "What ssh says by itself", "What the log warns of"])
def test_a_text_is_explained_once(heading: str) -> None:
    found = rows(heading)
    assert len(found) == len(set(found))


def test_every_text_has_a_cause_and_a_cure() -> None:
    bare = {line for line in PAGE.splitlines() if line.startswith("| ") and re.search(r"(?<!\\)\| *\|", line)}
    complain("an empty cell", bare)


def test_the_collector_sees_each_door() -> None:
    """One text from each door to a client."""
    assert {
        Denied.message,  # a class of errors
        "relay: the session was ended by an operator",  # an error's argument
        "relay: only git commands are served here (got '…')",  # contains another text
        "relay: a single quote is not closed",  # from a helper
        "Too many authentication failures",  # a disconnect
        "too many concurrent sessions",  # a refused channel
        "Malformed packet: …",  # from the transport
        "The service is restarting, connect again",  # from the server
        "Hi …! You are authenticated. This host serves git only.",
    } <= client_messages()
    assert "worker … died by … after … s" in log_lines(WARNINGS) and "reloaded …" in log_lines()
