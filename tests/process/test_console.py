"""The operators' socket: which users may open it, its answers, and which relay owns it when two share a path."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import stat
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil
import pytest

from relay.process import messages
from relay.process.console import Console, Operator, Question
from tests.support.machine import python_for
from tests.support.wait import wait_until_async

T = TypeVar("T")

LINE = messages.LiveSession("c-1", "alice", "192.0.2.1:5", "git-upload-pack", "team/app", "main", "192.0.2.9:22", 1.5, 10, 20, 4711)

# run as another user: connects, sends a question, and prints the result
ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.settimeout(60)
    try:
        sock.connect(sys.argv[1])
        sock.sendall(bytes.fromhex(sys.argv[2]))
        print("closed" if sock.recv(1) == b"" else "answered")
    except PermissionError:
        print("not allowed")
    except ConnectionError:
        print("closed")
"""


async def answer(question: Question, operator: Operator) -> Any:
    """The answers of a supervisor with one session; asserts that it gets the operator's user."""
    assert operator == Operator(os.geteuid(), pwd.getpwuid(os.geteuid()).pw_name)
    match question:
        case messages.Switch(_, action, upstream, argument):
            return messages.SwitchAnswer(f"{action} {upstream} {argument} by {operator}")
        case messages.AskWorker(what="kill"):
            return question.argument == LINE.id
    return messages.Sessions([LINE], silent=1)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="console-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@asynccontextmanager
async def console(path: Path) -> AsyncIterator[Console]:
    this = Console(path, answer)
    await this.open()
    try:
        yield this
    finally:
        await this.close()


async def ask(path: Path, question: Question, kind: type[T]) -> T:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        messages.write(writer, question)
        said = await messages.read(reader)
        assert isinstance(said, messages.Answer) and said.number == question.number
        return msgspec.msgpack.decode(said.body, type=kind)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_lists_sessions_and_ends_one(folder: Path) -> None:
    path = folder / "relay.sock"
    async with console(path):
        assert await ask(path, messages.AskWorker(1, "sessions"), messages.Sessions) == messages.Sessions([LINE], 1)
        assert await ask(path, messages.AskWorker(7, "kill", "c-1"), bool) is True
        assert await ask(path, messages.AskWorker(8, "kill", "c-2"), bool) is False


async def test_an_order_is_passed_on_with_the_operator_who_gave_it(folder: Path) -> None:
    path = folder / "relay.sock"
    async with console(path):
        said = await ask(path, messages.Switch(3, "freeze", "main", "moving"), messages.SwitchAnswer)
    assert said.problem == f"freeze main moving by {pwd.getpwuid(os.geteuid()).pw_name} (uid {os.geteuid()})"


async def test_an_operator_without_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user of a container often has no entry in passwd."""
    asked: list[Operator] = []

    async def remember(question: Question, operator: Operator) -> bool:
        asked.append(operator)
        return True

    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    this = Console(folder / "relay.sock", remember)
    await this.open()
    try:
        assert await ask(this.path, messages.AskWorker(1, "kill", "c-1"), bool)
    finally:
        await this.close()
    assert [str(one) for one in asked] == [f"? (uid {os.geteuid()})"]


async def test_only_the_owner_may_connect(folder: Path) -> None:
    path = folder / "relay.sock"
    async with console(path):
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600


def asked_by_nobody(path: Path) -> str:
    command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", python_for("nobody"), "-I", "-c", ASK, str(path)]
    body = messages.encode(messages.AskWorker(1, "sessions"))
    question = (len(body).to_bytes(4, "big") + body).hex()
    return subprocess.run([*command, question], capture_output=True, text=True, check=True, timeout=30, cwd="/").stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize(("mode", "said"), [(0o600, "not allowed"), (0o666, "closed")])
async def test_another_user_is_refused_by_the_mode_and_by_its_credentials(
    folder: Path, mode: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "relay.sock"
    async with console(path):
        path.chmod(mode)
        assert await asyncio.to_thread(asked_by_nobody, path) == said
        assert ("another user" in caplog.text) == (said == "closed")
        assert await ask(path, messages.AskWorker(1, "kill", "c-1"), bool)


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", b"\0\0"])
async def test_an_invalid_message_ends_only_that_connection(folder: Path, data: bytes) -> None:
    path = folder / "relay.sock"
    async with console(path):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(data)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert await ask(path, messages.AskWorker(1, "kill", "c-1"), bool)


async def test_what_a_killed_relay_left_behind_is_replaced(folder: Path) -> None:
    path = folder / "relay.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert path.exists()
    async with console(path):
        assert await ask(path, messages.AskWorker(1, "kill", "c-1"), bool)
    assert not path.exists()


async def test_the_socket_of_a_relay_that_runs_is_left_alone(folder: Path) -> None:
    path = folder / "relay.sock"
    async with console(path):
        before = psutil.Process().num_fds()
        with pytest.raises(OSError, match="another relay listens there"):
            await Console(path, answer).open()
        assert await ask(path, messages.AskWorker(1, "kill", "c-1"), bool)
        await wait_until_async(lambda: psutil.Process().num_fds() <= before)


async def test_closing_leaves_a_successors_socket_alone(folder: Path) -> None:
    path = folder / "relay.sock"
    async with console(path) as first:
        path.unlink()
        async with console(path):
            await first.close()
            assert await ask(path, messages.AskWorker(1, "kill", "c-1"), bool)


async def test_closing_ends_open_connections(folder: Path) -> None:
    path = folder / "relay.sock"
    async with console(path):
        reader, writer = await asyncio.open_unix_connection(str(path))
        messages.write(writer, messages.AskWorker(1, "kill", "c-1"))
        assert await messages.read(reader) is not None
    async with asyncio.timeout(60):
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("make", [lambda path: path.parent.rmdir(), lambda path: path.mkdir()])
async def test_a_path_that_cannot_be_used_is_an_error(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "folder" / "relay.sock"
    path.parent.mkdir()
    make(path)
    before = psutil.Process().num_fds()
    with pytest.raises(OSError, match=r"No such file|Is a directory|in use"):
        await Console(path, answer).open()
    assert psutil.Process().num_fds() == before
