"""How an operator's command asks a running relay: over the operators' Unix socket, once or again and again."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from relay.config.load import load_config
from relay.errors import ConfigError
from relay.observe.terminal import is_dumb
from relay.process import messages
from relay.text import counted

ANSWER_SECONDS = 5.0  # after which the relay is reported as silent, and asked again
WITHOUT_RICH = (
    "relay: for a live view install rich: pip install 'git-ssh-relay[watch]'; a plain list follows every {interval:g} s, Ctrl-C ends it"
)

Question = messages.AskWorker | messages.Switch | messages.PacksRemoved
Asker = Callable[[Question, Any], Awaitable[Any]]  # question, type of the answer
T = TypeVar("T")


def missing(silent: int, what: str) -> str:
    """The line about workers that did not answer; `what` is missing."""
    return f"{counted(silent, 'worker')} did not answer, {'its' if silent == 1 else 'their'} {what} are missing here"


def socket_of(config: Path) -> Path:
    """The path of the operators' socket in this configuration; raises ConfigError."""
    loaded = load_config(config)
    return loaded.resolve(loaded.config.admin.sessions_socket)


@asynccontextmanager
async def connected(path: Path, config: Path) -> AsyncIterator[Asker]:
    """A connection to the relay at `path`; raises ConfigError when none listens, or it closes the connection; the error names `config`."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        raise ConfigError([f"{path}: no relay listens here; is one running with {config}?"]) from None
    except PermissionError:
        raise ConfigError([f"{path}: only the user that runs the relay may ask it"]) from None
    try:

        async def ask(question: Question, kind: Any) -> Any:
            try:
                messages.write(writer, question)
                await writer.drain()
                answer = await messages.read(reader)
            except ConnectionError:
                answer = None
            except UnicodeEncodeError:
                raise ConfigError(["the command line is not valid UTF-8, so no relay was asked"]) from None
            if not isinstance(answer, messages.Answer):
                raise ConfigError([f"{path}: the relay closed the connection without an answer"])
            return msgspec.msgpack.decode(answer.body, type=kind)

        yield ask
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def watched(config: Path, interval: float, what: messages.WorkerQuestion, kind: type[T]) -> AsyncGenerator[T | str, None]:
    """The looks of a command with --watch; raises ConfigError when no relay listens now."""
    path = socket_of(config)
    async with connected(path, config):
        pass
    return looks(path, config, interval, what, kind)


def has_screen(interval: float) -> bool:
    """Whether stdout is a terminal on which a command with --watch can be drawn; says on stderr that it cannot without rich."""
    if not sys.stdout.isatty() or is_dumb():
        return False
    try:
        import rich  # noqa: F401
    except ImportError:
        print(WITHOUT_RICH.format(interval=interval), file=sys.stderr)  # noqa: T201 - the command's output
        return False
    return True


async def looks(path: Path, config: Path, interval: float, what: messages.WorkerQuestion, kind: type[T]) -> AsyncGenerator[T | str, None]:
    """Yields an answer every `interval` seconds, or the reason why there is none; goes on when the relay ends or restarts."""
    while True:
        try:
            async with connected(path, config) as ask:
                while True:
                    began = time.monotonic()
                    async with asyncio.timeout(ANSWER_SECONDS):
                        answer: T = await ask(messages.AskWorker(1, what), kind)
                    yield answer
                    await asyncio.sleep(max(0.0, began + interval - time.monotonic()))
        except ConfigError as error:
            yield error.problems[0]
        except TimeoutError:
            yield f"{path}: the relay has not answered for {ANSWER_SECONDS:g} s"
        except (OSError, ValueError) as error:
            yield f"{path}: {error}"
        await asyncio.sleep(interval)
