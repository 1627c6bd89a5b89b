"""A command that gets no answer from the relay. tests/commands/test_sessions.py and test_upstreams.py use real relays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from relay.commands import asking
from relay.commands.asking import connected, looks, missing
from relay.errors import ConfigError
from relay.process import messages
from relay.process.console import Console, Operator, Question

CONFIG = Path("relay.toml")
NOBODY = "no relay listens here; is one running with relay.toml?"


@asynccontextmanager
async def answering(path: Path, *answers: Any) -> AsyncIterator[None]:
    """A stand-in that sends these answers, one for each question, then the last one again and again; for None it sends nothing."""
    left = list(answers)

    async def answer(question: Question, operator: Operator) -> Any:
        said = left.pop(0) if len(left) > 1 else left[0]
        if said is None:
            await asyncio.Event().wait()
        return said

    console = Console(path, answer)
    await console.open()
    try:
        yield
    finally:
        await console.close()


@pytest.mark.parametrize(("silent", "said"), [(1, "1 worker did not answer, its"), (2, "2 workers did not answer, their")])
def test_who_did_not_answer(silent: int, said: str) -> None:
    assert missing(silent, "sessions") == f"{said} sessions are missing here"


async def test_an_answer_has_its_type(tmp_path: Path) -> None:
    sessions = messages.Sessions([], 3)
    async with answering(tmp_path / "x", sessions), connected(tmp_path / "x", CONFIG) as ask:
        assert await ask(messages.AskWorker(1, "sessions"), messages.Sessions) == sessions
        assert await ask(messages.AskWorker(1, "sessions"), messages.Sessions) == sessions


async def test_no_relay(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=NOBODY):
        async with connected(tmp_path / "x", CONFIG):
            pass


async def test_a_relay_that_ends_before_it_answers(tmp_path: Path) -> None:
    async with answering(tmp_path / "x", None):
        pass
    server = await asyncio.start_unix_server(lambda _, writer: writer.close(), tmp_path / "x")
    async with server:
        with pytest.raises(ConfigError, match="closed the connection without an answer"):
            async with connected(tmp_path / "x", CONFIG) as ask:
                await ask(messages.AskWorker(1, "sessions"), messages.Sessions)


async def test_an_argument_that_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    async with answering(tmp_path / "x", True), connected(tmp_path / "x", CONFIG) as ask:
        with pytest.raises(ConfigError, match="not valid UTF-8"):
            await ask(messages.AskWorker(1, "kill", "\udcff"), bool)
        assert await ask(messages.AskWorker(1, "kill", "c-1"), bool)


async def test_looks_go_on_whatever_becomes_of_the_relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ANSWER_SECONDS", 0.05)
    all_looks = looks(tmp_path / "x", CONFIG, 0.01, "sessions", messages.Sessions)
    try:
        assert await anext(all_looks) == f"{tmp_path / 'x'}: {NOBODY}"
        async with answering(tmp_path / "x", messages.Sessions([], 0), None):
            assert await anext(all_looks) == messages.Sessions([], 0)
            assert await anext(all_looks) == f"{tmp_path / 'x'}: the relay has not answered for 0.05 s"
        assert await anext(all_looks) == f"{tmp_path / 'x'}: {NOBODY}"
        async with answering(tmp_path / "x", "no table"):
            assert isinstance(await anext(all_looks), str), "an answer of another kind"
    finally:
        await all_looks.aclose()
