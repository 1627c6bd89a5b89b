"""The log: its two formats, its rate limit, strangers' text escaped and secrets left out."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import sys
import unicodedata
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncssh.logging
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config import LogSettings
from relay.observe import log as module
from relay.observe.log import AUDITED, CalmHandler, Flood, TextFormatter, configure
from relay.text import escaped, redacted, rfc3339
from tests.support.wait import wait_until_async

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def root() -> Iterator[logging.Logger]:
    """The root logger, restored after the test."""
    root, ssh = logging.getLogger(), logging.getLogger("asyncssh")
    handlers, level, ssh_level = list(root.handlers), root.level, ssh.level
    yield root
    for one in root.handlers:
        if isinstance(one, CalmHandler):
            one.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    ssh.setLevel(ssh_level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# -- formats -----------------------------------------------------------------------------------------------------------------


def test_a_file_gets_json_with_the_fields() -> None:
    stream = io.StringIO()
    configure(LogSettings(), stream)
    logging.getLogger("relay.x").info("it took %d ms", 3, extra={"fields": {"worker": 7, "path": "a b", "time": "forged", "none": None}})
    [line] = lines(stream)
    assert (line["level"], line["logger"], line["message"]) == ("info", "relay.x", "it took 3 ms")
    assert (line["worker"], line["path"], line["none"]) == (7, "a b", None)
    assert datetime.fromisoformat(line["time"]).tzinfo is not None


def test_a_terminal_gets_text() -> None:
    stream = Terminal()
    configure(LogSettings(), stream)
    logging.getLogger("relay.x").warning("careful", extra={"fields": {"worker": 7}})
    assert stream.getvalue().rstrip().endswith("Z WARNING relay.x: careful worker=7")


def test_levels_stand_under_each_other_and_are_coloured_on_a_terminal() -> None:
    record = logging.LogRecord("relay.x", logging.INFO, __file__, 1, "hello", (), None)
    plain, coloured = TextFormatter().format(record), TextFormatter(coloured=True).format(record)
    assert plain.endswith("Z INFO    relay.x: hello")
    assert coloured.endswith("Z \x1b[36mINFO   \x1b[0m relay.x: hello")


def test_the_journal_gets_the_priority_of_each_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        there = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{there.st_dev}:{there.st_ino}")
        configure(LogSettings(format="text"), stream)
        logging.getLogger("relay.x").warning("careful")
        try:
            raise ValueError("no")
        except ValueError:
            logging.getLogger("relay.x").exception("it failed")
        configure(LogSettings(), io.StringIO())
        stream.seek(0)
        said = stream.read().splitlines()
    assert said[0].startswith("<4>") and said[0].endswith("careful")
    assert len(said) > 4 and all(line.startswith("<3>") for line in said[1:])


@pytest.mark.parametrize(("format", "stream"), [("json", Terminal()), ("auto", io.StringIO())])
def test_json_when_configured_or_without_a_terminal(format: Any, stream: io.StringIO) -> None:
    configure(LogSettings(format=format), stream)
    logging.getLogger("relay.x").info("hello")
    assert lines(stream)[0]["message"] == "hello"


def test_the_level_is_obeyed_and_asyncssh_stays_at_warning_but_at_debug(root: logging.Logger) -> None:
    stream = io.StringIO()
    configure(LogSettings(level="debug"), stream)
    logging.getLogger("relay.x").debug("seen")
    asyncssh.logging.logger.debug("a packet came")
    configure(LogSettings(level="info"), stream)
    asyncssh.logging.logger.info("a channel opened")
    asyncssh.logging.logger.warning("a real warning")
    assert [line["message"] for line in lines(stream)] == ["seen", "a packet came", "a real warning"]
    configure(LogSettings(level="error"), stream)
    asyncssh.logging.logger.warning("not any more")
    assert len(lines(stream)) == 3
    assert len([one for one in root.handlers if isinstance(one, CalmHandler)]) == 1, "configured twice, writes twice"


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_a_traceback_is_kept_but_only_its_end_when_it_is_long(stream: io.StringIO) -> None:
    configure(LogSettings(), stream)
    try:
        raise ValueError("x" * 30_000 + " the end\x1b[2J")
    except ValueError:
        logging.getLogger("relay.x").exception("failed")
    text = stream.getvalue()
    assert len(text) < 2 * module.TRACEBACK_BYTES
    assert "\x1b" not in text
    if not stream.isatty():
        assert "failed" in lines(stream)[0]["message"]
        assert "exception" in lines(stream)[0]


# -- strangers and secrets ---------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=[]), max_size=300), st.integers(20, 400))
def test_escaped_text_is_printable_and_within_its_limit(text: str, limit: int) -> None:
    out = escaped(text, limit)
    assert out.isprintable()
    assert not [one for one in out if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert len(json.dumps(out, ensure_ascii=False).encode()) - 2 <= limit
    if text.isprintable() and len(text.encode()) + text.count("\\") + text.count('"') <= limit - 3:
        assert out == text


def test_escapes_say_what_was_there() -> None:
    assert escaped("a\x1b[31m\nb\u202ec\udc80", 100) == r"a\x1b[31m\x0ab\u202ec\udc80"
    assert escaped("é" * 100, 23) == "é" * 10 + "…"


@given(st.text(st.characters(exclude_categories=[]), max_size=200))
def test_no_message_makes_a_second_line_or_a_control_character(text: str) -> None:
    for stream in (Terminal(), io.StringIO()):
        handler = configure(LogSettings(), stream)
        # to this handler alone: pytest would keep the text for its report, and a lone surrogate in that ends an xdist worker
        extra = {"fields": {"said": text, text: 1}}
        handler.handle(logging.getLogger("relay.x").makeRecord("relay.x", logging.INFO, __file__, 1, "user %s", (text,), None, extra=extra))
        [line] = stream.getvalue().removesuffix("\n").split("\n")
        assert line.isprintable()
        logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_secrets_in_a_line_are_removed(stream: io.StringIO) -> None:
    configure(LogSettings(), stream)
    log = logging.getLogger("relay.x")
    log.info("bad key %s", KEY, extra={"fields": {"url": "redis://relay:hunter2@10.0.0.1/0", "header": "Bearer abc.def"}})
    try:
        raise OSError(f"cannot parse {KEY}")
    except OSError:
        log.exception("worse")
    for secret in ("b3Blbn", "hunter2", "abc.def"):
        assert secret not in stream.getvalue()
    assert "10.0.0.1" in stream.getvalue()


def test_half_a_private_key_is_removed_too() -> None:
    assert redacted(f"x {KEY[:60]}") == "x [redacted]"


def test_times_are_rfc_3339_in_utc() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1_785_585_600.1239) == "2026-08-01T12:00:00.123Z"


# -- floods ------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 30)), max_size=200), st.integers(1, 5))
def test_every_line_is_written_or_counted_in_a_summary(events: list[tuple[str, float]], burst: int) -> None:
    flood, now, written, summed = Flood(burst), 0.0, 0, 0
    for template, pause in events:
        now += pause
        summed += sum(count for _, count, _ in flood.ended(now))
        written += flood.admits(("relay", template), now)
    summed += sum(count for _, count, _ in flood.ended(now, all=True))
    assert written + summed == len(events)


def test_summaries_of_a_flood_become_rarer_and_end_with_it() -> None:
    flood, key, written, sums = Flood(burst=5), ("relay", "login failed"), 0, []
    for tick in range(600_000):  # ten minutes, a thousand lines a second
        now = tick / 1000
        sums += flood.ended(now)
        written += flood.admits(key, now)
    assert [round(seconds) for _, _, seconds in sums] == [1, 2, 4, 8, 16, 32] + [60] * 8
    assert written == 5 * (len(sums) + 1)
    quiet = now + 60
    assert len(flood.ended(quiet)) == 1
    assert flood.ended(quiet + 60) == []
    assert flood.next_end() is None
    assert all(flood.admits(key, quiet + 61) for _ in range(5))


def test_the_number_of_templates_is_bounded() -> None:
    flood = Flood(burst=1)
    for number in range(module.TEMPLATES * 3):
        flood.admits(("relay", f"template {chr(0x4E00 + number)}"), 0.0)
    assert len(flood._windows) == module.TEMPLATES + 1
    assert [(key, count) for key, count, _ in flood.ended(2.0)] == [(("relay", "..."), module.TEMPLATES * 2 - 1)]


def test_a_flood_of_failed_logins_is_summed_up_and_other_lines_are_written() -> None:
    stream = io.StringIO()
    handler = configure(LogSettings(), stream)
    for number in range(5000):
        logging.getLogger("relay.connection").warning("login from %s failed", f"192.0.2.{number % 250}")
        logging.getLogger("asyncssh").warning(f"[conn={number}] host key not trusted")  # noqa: G004 - as asyncssh does
    logging.getLogger("relay.connection").warning("something else")
    handler.close()
    messages = [line["message"] for line in lines(stream)]
    assert len(messages) < 500
    assert "something else" in messages
    told = [message for message in messages if "more lines like this" in message and "login from 192.0.2." in message]
    written = [message for message in messages if message.startswith("login from 192")]
    assert sum(int(message.split()[0]) for message in told) + len(written) == 5000


async def test_with_an_event_loop_the_summary_does_not_wait_for_the_next_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW_FIRST_SECONDS", 0.05)
    stream = io.StringIO()
    handler = CalmHandler(stream, Flood(burst=1))
    handler.setFormatter(TextFormatter())
    log = logging.Logger("relay.x")
    log.addHandler(handler)
    for _ in range(4):
        log.warning("again")
    assert "more lines" not in stream.getvalue()
    await wait_until_async(lambda: "3 more lines like this" in stream.getvalue())
    handler.close()


def test_a_summary_shows_the_last_line_held_back() -> None:
    stream = io.StringIO()
    handler = CalmHandler(stream, Flood(burst=1))
    handler.setFormatter(TextFormatter())
    for number in range(5):
        handler.emit(logging.LogRecord("relay", logging.WARNING, __file__, 0, "refused: %s", (f"client {number}",), None))
    handler.close()
    first, total = stream.getvalue().splitlines()
    assert first.endswith("refused: client 0")
    assert "4 more lines like this in" in total and total.endswith(": refused: client 4")


@pytest.mark.parametrize(("audit", "twice"), [("-", False), ("audit.json", True)])
def test_a_log_line_that_repeats_an_audit_line_on_the_same_terminal_is_omitted(
    monkeypatch: pytest.MonkeyPatch, audit: str, twice: bool
) -> None:
    primary, secondary = pty.openpty()
    with os.fdopen(secondary, "w", buffering=1) as stream, os.fdopen(primary, "rb") as screen:
        monkeypatch.setattr(sys, "stdout", stream)
        handler = configure(LogSettings(audit=audit), stream)
        for text, extra in (("denied", AUDITED), ("told here only", None)):
            logging.getLogger("relay.session").info(text, extra=extra)
        logging.getLogger("relay.session").warning("lost", extra=AUDITED)
        handler.flush()
        handler.close()
        logging.getLogger().removeHandler(handler)
        seen = ""
        while "lost" not in seen:  # the last line written
            seen += os.read(screen.fileno(), 65_536).decode()
    assert "told here only" in seen and "lost" in seen
    assert ("denied" in seen) is twice
