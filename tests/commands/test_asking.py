"""A command that gets no answer from the relay. tests/commands/test_sessions.py and test_upstreams.py use real relays."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from relay.cli import main
from relay.commands import asking
from relay.commands.asking import WITHOUT_RICH, connected, looks, missing
from relay.errors import ConfigError
from relay.process import messages
from relay.process.console import Console, Operator, Question
from tests.commands.watching import ROOT, next_that, watching
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.terminal import Terminal
from tests.support.wait import wait_until

CONFIG = Path("relay.toml")
WATCHED = {"sessions": "ID +WHO +FROM +SERVICE", "upstreams": "UPSTREAM +STATE"}  # and the first line of what they print
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


# -- a command with --watch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", WATCHED)
def test_it_goes_on_when_the_relay_restarts(sshd: Sshd, make_relay: Callable[..., RelayProcess], command: str) -> None:
    relay = make_relay(sshd)
    with watching(relay, command, "--json") as (process, lines):
        assert command in json.loads(next(lines))
        relay.stop()
        assert process.stderr is not None
        next_that(process.stderr, lambda line: "no relay listens here" in line)
        relay.start()
        wait_until(lambda: json.loads(next(lines)) is not None)
        assert process.poll() is None


@pytest.mark.parametrize("command", WATCHED)
def test_without_a_relay_it_does_not_begin(relay: RelayProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    config = tmp_path / "relay.toml"
    config.write_text(relay.config_file.read_text())
    assert main([command, "-c", str(config), "--watch"]) == 1
    assert "no relay listens here" in capsys.readouterr().err


@pytest.mark.parametrize("command", WATCHED)
def test_without_rich_plain_text_follows_and_one_line_says_why(relay: RelayProcess, command: str) -> None:
    without = "import sys; sys.modules.update({'rich': None, 'rich.console': None})"
    program = f"{without}; from relay.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = [sys.executable, "-c", program, command, "-c", str(relay.config_file), "--watch", "--interval", "0.5"]
    with Terminal(arguments, columns=160, env={"PYTHONPATH": str(ROOT)}) as terminal:
        terminal.wait_for(WATCHED[command])
        assert terminal.text().count(WITHOUT_RICH.format(interval=0.5)) == 1
        assert "1049h" not in terminal.raw.decode(), "the alternate screen"
        terminal.send("\x03")
        assert terminal.wait() == 130
