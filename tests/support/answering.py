"""An HTTP server in the test's own loop that sends the test's answers, records its requests, and may reset or hang.

async with Answering(Said(503), Said(200, b'{"identity": "alice"}')) as server:   # the last is repeated
    ... server.url, server.asked[0].headers
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Said:
    """One answer; `raw` replaces the whole response, `hangs` sends none, `breaks` sends half and resets."""

    status: int = 200
    body: bytes = b"null"
    raw: bytes | None = None
    hangs: bool = False
    breaks: bool = False
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Asked:
    """One request as the server received it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: bytes
    connection: int  # the number of its connection, from 1 on


@dataclass
class Answering:
    """Listens while it is entered; while `gate` is cleared, no answer is sent."""

    said: list[Said]
    asked: list[Asked]
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __init__(self, *said: Said, tls: ssl.SSLContext | None = None) -> None:
        self.said = list(said)
        self.asked = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._tls = tls
        self._connections = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._ended = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        number = self._connections
        self._writers.append(writer)
        try:
            while await self._answer(reader, writer, number):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client disconnected
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.asked.append(Asked(method, url.path, query, headers, body, number))
        await self.gate.wait()
        said = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        if said.hangs:
            await self._ended.wait()
            return False
        if said.raw is not None:
            writer.write(said.raw)
            await writer.drain()
            writer.close()
            return False
        more = "".join(f"{name}: {value}\r\n" for name, value in said.headers)
        length = len(said.body) + (1000 if said.breaks else 0)
        writer.write(f"HTTP/1.1 {said.status} Said\r\nContent-Length: {length}\r\n{more}\r\n".encode() + said.body)
        await writer.drain()
        return not said.breaks
