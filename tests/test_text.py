"""Foreign text escaped by one rule; times and amounts formatted for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.text import (
    CLIENT_TEXT_BYTES,
    age,
    client_text,
    client_text_fault,
    counted,
    error_text,
    escaped,
    has_control,
    is_shown,
    plain,
    printable,
    quoted,
    size,
)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0.0s"),
        (59.94, "59.9s"),
        (59.99, "59.9s"),
        (60, "1m00s"),
        (3599.9, "59m59s"),
        (3600, "1h00m"),
        (345_599, "95h59m"),
        (360_000, "4d04h"),
    ],
)
def test_ages(seconds: float, said: str) -> None:
    assert age(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (1_500_000, "1.5 MB"),
        (2e9, "2.0 GB"),
        (1e13, "10.0 TB"),
    ],
)
def test_sizes(count: float, said: str) -> None:
    assert size(count) == said


@given(st.floats(0, 1e15), st.floats(0, 99 * 86_400))
def test_both_fit_a_column(count: float, seconds: float) -> None:
    assert len(size(count)) <= 9
    assert len(age(seconds)) <= 6


def test_nouns_have_their_number() -> None:
    assert [counted(count, "problem") for count in (0, 1, 2)] == ["0 problems", "1 problem", "2 problems"]


def test_verbs_have_their_number() -> None:
    assert [counted(count, "session", "were") for count in (0, 1, 2)] == ["0 sessions were", "1 session was", "2 sessions were"]
    assert [counted(1, "line", verb) for verb in ("are", "have", "wait")] == ["1 line is", "1 line has", "1 line waits"]


class ReadTimeoutError(Exception):
    """An error without a text."""


@pytest.mark.parametrize(
    ("error", "text"),
    [(OSError("so it\n is"), "so it is"), (ReadTimeoutError(), "read timeout"), (TimeoutError(), "timeout"), (Exception(), "failed")],
)
def test_an_error_is_told_without_the_name_of_its_class(error: Exception, text: str) -> None:
    assert error_text(error) == text


@given(st.text())
def test_every_function_that_shows_text_follows_one_rule(text: str) -> None:
    expected = "".join(letter if is_shown(letter) else "?" for letter in text)
    assert plain(text) == expected
    assert printable(text, len(text) + 1) == expected
    whole = escaped(text, 20 * len(text) + 3)
    assert [letter for letter in whole if not is_shown(letter)] == []
    assert (whole == text) == is_shown(text)
    assert is_shown(quoted(text))


@pytest.mark.parametrize(
    "letter", ["\x00", "\n", "\x1b", "\x7f", "\x85", "\u2028", "\u061c", "\u200f", "\u202e", "\u2066", "\ud800", "\udcff", "\ue000", "\xa0"]
)
def test_characters_that_are_not_shown(letter: str) -> None:
    assert not is_shown(letter)
    assert printable(f"a{letter}b") == "a?b"


def test_a_text_that_is_cut_ends_in_an_ellipsis() -> None:
    assert printable("abcdef", 6) == "abcdef"
    assert printable("abcdefg", 6) == "abcde…"
    assert printable("\n" * 10_000, 6) == "?????…"


def test_control_characters_and_line_separators_are_recognised() -> None:
    assert all(map(has_control, ["a\nb", "\x00", "\x9f", "\u2028"]))
    assert not any(map(has_control, ["", "team/app", "\u202e"]))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("moving to a new disk, back at 14:00", None),
        ("Umzug auf größere Platten; 移動中", None),
        ("", "is empty, must say why"),
        (" ", "is empty, must say why"),
        ("two\nlines", "has control characters, must have none"),
        ("\x1b]0;x\x07", "has control characters, must have none"),
        ("ü" * (CLIENT_TEXT_BYTES // 2), None),
        ("ü" * (CLIENT_TEXT_BYTES // 2 + 1), f"has {CLIENT_TEXT_BYTES + 2} bytes, at most {CLIENT_TEXT_BYTES} are allowed"),
        ("\udcff" * (CLIENT_TEXT_BYTES + 1), f"has {CLIENT_TEXT_BYTES + 1} bytes, at most {CLIENT_TEXT_BYTES} are allowed"),
    ],
)
def test_what_an_operator_may_have_clients_read(text: str, fault: str | None) -> None:
    assert client_text_fault(text) == fault
    if fault is None:
        assert client_text(text) == text, "it is read as it was given"


@given(st.text() | st.text(st.characters(codec=None), max_size=2 * CLIENT_TEXT_BYTES))
def test_a_client_reads_one_line_of_limited_length(text: str) -> None:
    shown = client_text(text)
    assert is_shown(shown) and len(shown.encode()) <= CLIENT_TEXT_BYTES
