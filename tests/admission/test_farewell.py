"""The message that a refused client reads, by a real client library; and the bound of descriptors for a flood of such clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast, get_args

import asyncssh
import pytest

from relay.admission import farewell as module
from relay.admission.farewell import (
    FAREWELL_READ_BYTES,
    FAREWELL_SECONDS,
    FAREWELLS_MOST,
    FAREWELLS_OF_SOURCE,
    TEXTS,
    Farewells,
    Why,
    message,
)
from relay.admission.limits import RefusalReason
from tests.support.wait import wait_until_async

VERSION = "tested"


class Accepted(asyncio.Protocol):
    def __init__(self, farewells: Farewells, source: str, why: Why) -> None:
        self.farewells, self.source, self.why = farewells, source, why

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.farewells.say(cast(asyncio.Transport, transport), self.source, self.why)


@dataclass
class Port:
    """A port on which every connection is refused."""

    number: int
    writers: list[asyncio.StreamWriter] = field(default_factory=list)  # of its clients, which stay connected

    async def read(self) -> bytes:
        """Connects a client that sends nothing; returns all that it reads."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.number)
        self.writers.append(writer)
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


@asynccontextmanager
async def turning_away(farewells: Farewells, sources: Callable[[], str] = lambda: "a", why: Why = "penalty") -> AsyncIterator[Port]:
    """A port that refuses all clients; `sources` gives the source of the next one."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Accepted(farewells, sources(), why), "127.0.0.1", 0)
    port = Port(server.sockets[0].getsockname()[1])
    try:
        yield port
    finally:
        for writer in port.writers:
            writer.close()
        server.close()
        farewells.close()
        await wait_until_async(lambda: len(farewells) == 0)


def test_every_reason_for_which_the_limits_turn_away_has_its_text() -> None:
    assert set(TEXTS) == {*get_args(RefusalReason), "proxy"} == set(get_args(Why))
    for _, text in TEXTS.values():
        assert text.isascii() and text.isprintable() and not any(character.isdigit() for character in text)


@pytest.mark.parametrize("why", list(TEXTS))
async def test_a_client_reads_why(why: Why) -> None:
    async with turning_away(Farewells(VERSION), why=why) as port:
        with pytest.raises(asyncssh.DisconnectError) as said:
            await asyncssh.connect("127.0.0.1", port.number, known_hosts=None, config=None, client_keys=None)
    code, text = TEXTS[why]
    assert said.value.code == code and said.value.reason.startswith(text)


@pytest.mark.parametrize("why", list(TEXTS))
def test_the_packet_is_as_it_must_be(why: Why) -> None:
    """RFC 4253 section 6: a multiple of 8 bytes, at least 4 of them padding."""
    before, line, packet = message(VERSION, why).split(b"\r\n", 2)
    assert before == TEXTS[why][1].encode() and not before.startswith(b"SSH-"), "RFC 4253 section 4.2"
    assert line == b"SSH-2.0-tested"
    length, padding = int.from_bytes(packet[:4], "big"), packet[4]
    assert len(packet) == 4 + length and len(packet) % 8 == 0 and 4 <= padding < 12


async def test_a_source_reads_why_a_few_times_in_a_window() -> None:
    """So that a flood from one source costs nothing and gets no version line, which attracts scanners."""
    now = [0.0]
    farewells = Farewells(VERSION, lambda: now[0])
    async with turning_away(farewells) as port:
        for _ in range(FAREWELLS_OF_SOURCE):
            assert await port.read()
        assert not await port.read()
        now[0] += FAREWELL_SECONDS
        assert await port.read()


async def test_a_source_has_its_part_and_the_rest_is_for_others() -> None:
    farewells, sources = Farewells(VERSION), iter(["a"] * (FAREWELLS_OF_SOURCE + 1) + ["b"])
    async with turning_away(farewells, lambda: next(sources)) as port:
        for _ in range(FAREWELLS_OF_SOURCE):
            assert await port.read() == message(VERSION, "penalty")
        assert await port.read() == b""
        assert await port.read() == message(VERSION, "penalty")
        assert len(farewells) == FAREWELLS_OF_SOURCE + 1


async def test_there_are_never_more_than_the_most_and_each_that_closes_makes_room() -> None:
    farewells, numbers = Farewells(VERSION), iter(range(1_000))
    async with turning_away(farewells, lambda: str(next(numbers))) as port:
        told = [await port.read() for _ in range(FAREWELLS_MOST)]
        assert told == [message(VERSION, "penalty")] * FAREWELLS_MOST
        assert await port.read() == b"" and len(farewells) == FAREWELLS_MOST
        port.writers[0].close()
        await wait_until_async(lambda: len(farewells) == FAREWELLS_MOST - 1)
        assert await port.read() == message(VERSION, "penalty")


async def test_a_client_that_stays_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAREWELL_SECONDS", 0.05)
    farewells = Farewells(VERSION)
    async with turning_away(farewells) as port:
        assert await port.read()
        await wait_until_async(lambda: len(farewells) == 0)


async def test_a_client_that_sends_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAREWELL_SECONDS", 600.0)
    farewells = Farewells(VERSION)
    async with turning_away(farewells) as port:
        assert await port.read()
        [writer] = port.writers
        writer.write(bytes(FAREWELL_READ_BYTES))
        await writer.drain()
        assert len(farewells) == 1
        writer.write(b"x")
        await wait_until_async(lambda: len(farewells) == 0)


async def test_one_that_has_gone_already_costs_nothing() -> None:
    class Gone:
        aborted = False

        def is_closing(self) -> bool:
            return True

        def abort(self) -> None:
            self.aborted = True

    farewells, gone = Farewells(VERSION), Gone()
    farewells.say(cast(Any, gone), "a", "penalty")
    assert gone.aborted and len(farewells) == 0
