"""A worker in a process of its own, with a store on a folder: for what only two processes show.

Reads a command a line, `ask NAME`, `write NAME COUNT`, and answers each with a line of JSON; `Peer` sends them. Bytes of an entry are those
of `body(NAME)`, so that only their number is sent.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from relay.packs.store import EntryFailed, Reader, Store, Writer
from tests.packs.helpers import ABOUT, failure, key_of, make_store, read_all, read_some


def body(name: str, start: int, count: int) -> bytes:
    """Bytes of the body of this entry, which differ from those at other places and of other entries."""
    unit = key_of(name) + b"0123456789" * 5 + b"\n"
    at = start % len(unit)
    return (unit * (count // len(unit) + 2))[at : at + count]


class Worker:
    """What the process does."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.readers: dict[str, Reader] = {}
        self.writers: dict[str, Writer] = {}

    async def do(self, command: str, name: str, count: int) -> Any:
        match command:
            case "ask":
                found = self.store.ask(key_of(name), ABOUT)
                if found.reader is not None:
                    self.readers[name] = found.reader
                if found.writer is not None:
                    self.writers[name] = found.writer
                return found.kind
            case "write":
                writer = self.writers[name]
                writer.write(body(name, writer.length, count))
                return True
            case "publish":
                self.writers[name].publish()
                return True
            case "fail":
                self.writers[name].fail("it was told to")
                return True
            case "failed":
                return self.writers[name].failed
            case "full":
                return self.writers[name].full
            case "wanted":
                return self.writers[name].wanted
            case "read":
                reader = self.readers[name]
                start = reader.position
                data = await read_some(reader, count)
                return data == body(name, start, len(data))
            case "all":
                reader = self.readers[name]
                start = reader.position
                data = await read_all(reader)
                return data == body(name, start, len(data)) and reader.position
            case "result":  # how far it came if all was right, or why it failed
                reader = self.readers[name]
                try:
                    data = await read_all(reader)
                except EntryFailed as error:
                    return str(error)
                return data == body(name, 0, len(data)) and len(data)
            case "failure":
                return await failure(self.readers[name])
            case "close":
                self.readers.pop(name).close()
                return True
            case _:
                raise ValueError(command)


async def serve(folder: Path, settings: dict[str, Any]) -> None:
    worker = Worker(make_store(folder, **settings))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command, name, count = line.decode().split()
        print(json.dumps(await worker.do(command, name, int(count))), flush=True)
    worker.store.close()


class Peer:
    """Another worker, as the tests see it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self._arguments = [sys.executable, "-m", "tests.packs.peer", str(folder), json.dumps(settings)]

    async def __aenter__(self) -> Peer:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._arguments, stdin=pipe, stdout=pipe)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process.returncode is None:
            self._send_signal(signal.SIGCONT)
            assert self._process.stdin is not None
            self._process.stdin.close()
            if await asyncio.wait_for(self._process.wait(), 60) and error is None:
                raise AssertionError(f"the other worker ended with status {self._process.returncode}")

    def _send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def stop(self) -> None:
        """The process gets no processor any more."""
        self._send_signal(signal.SIGSTOP)

    async def go_on(self) -> None:
        self._send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()

    async def do(self, command: str, name: str, count: int = 0) -> Any:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{command} {name} {count}\n".encode())
        return json.loads(await asyncio.wait_for(process.stdout.readline(), 60))


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), json.loads(sys.argv[2])))
