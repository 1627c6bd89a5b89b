"""The header reader in front of a connection: it reads the header and no byte more, in any division; which peers each mode refuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import config
from relay.admission.farewell import Why
from relay.admission.proxy_header import ProxyHeaderReader
from relay.admission.proxy_protocol import Trusted
from relay.events import ConnectionOutcome, Observer

V1 = b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 22\r\n"
V1_UNKNOWN = b"PROXY UNKNOWN\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13" + bytes([192, 0, 2, 7, 127, 0, 0, 1]) + b"\x12\x67\0\x16" + b"\x04\0\x04abcd"
V2_LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
CLIENT = ("192.0.2.7", 4711)
SSH = b"SSH-2.0-OpenSSH_9.2\r\n" + bytes(range(256))


class Transport:
    def __init__(self, peer: tuple[str, int] | None) -> None:
        self.peer = peer
        self.protocol: Any = None
        self.aborted = False

    def get_extra_info(self, name: str) -> object:
        return {"peername": self.peer}[name]

    def set_protocol(self, protocol: object) -> None:
        self.protocol = protocol

    def abort(self) -> None:
        self.aborted = True


class Farewells:
    def __init__(self) -> None:
        self.said: list[tuple[str, Why]] = []

    def say(self, transport: Transport, source: str, why: Why) -> None:
        self.said.append((source, why))


class Connection:
    def __init__(self, client: tuple[str, int] | None, waited: float) -> None:
        self.client, self.waited = client, waited
        self.received = b""
        self.made = False

    def connection_made(self, transport: object) -> None:
        self.made = True

    def data_received(self, data: bytes) -> None:
        assert self.made and data
        self.received += data


class Heard(Observer):
    def __init__(self) -> None:
        self.refused: list[tuple[str, ConnectionOutcome]] = []

    def connection_refused(self, address: str, reason: ConnectionOutcome, detail: str) -> None:
        self.refused.append((address, reason))


class Door:
    """One connection to a worker: the bytes that it sends, and its result."""

    def __init__(
        self,
        mode: Literal["allow", "require"],
        peer: str = "127.0.0.1",
        trusted: str = "127.0.0.1",
        doors: set[ProxyHeaderReader] | None = None,
        **limits: Any,
    ) -> None:
        settings = config.Config(
            upstreams={}, proxy_protocol=config.ProxyProtocolSettings(mode=mode, trusted=[trusted]), limits=config.LimitsSettings(**limits)
        )
        self.connections: list[Connection] = []
        self.transport = Transport((peer, 1234) if peer else None)
        self.heard = Heard()
        self.doors: set[ProxyHeaderReader] = set() if doors is None else doors
        self.farewells: Any = Farewells()
        self.door = ProxyHeaderReader(settings, Trusted([trusted]), self._make, self.heard, self.doors, self.farewells)  # type: ignore[arg-type]
        self.door.connection_made(self.transport)  # type: ignore[arg-type]

    def _make(self, client: tuple[str, int] | None, waited: float) -> Connection:
        self.connections.append(Connection(client, waited))
        return self.connections[-1]

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            (self.transport.protocol or self.door).data_received(piece)

    @property
    def handed_over(self) -> Connection | None:
        assert len(self.connections) <= 1
        return self.connections[0] if self.connections else None

    @property
    def refused(self) -> bool:
        assert bool(self.farewells.said) == bool(self.heard.refused)
        return bool(self.farewells.said)


def in_a_loop(test: Callable[[], None]) -> None:
    async def inside() -> None:
        test()

    asyncio.run(inside())


@given(
    header=st.sampled_from([(V1, CLIENT), (V1_UNKNOWN, None), (V2, CLIENT), (V2_LOCAL, None)]),
    mode=st.sampled_from(["allow", "require"]),
    cuts=st.lists(st.integers(0, 400), max_size=30),
)
def test_however_the_bytes_come_the_connection_gets_those_after_the_header(
    header: tuple[bytes, tuple[str, int] | None], mode: Literal["allow", "require"], cuts: list[int]
) -> None:
    data, client = header

    def test() -> None:
        door = Door(mode)
        whole = data + SSH
        at = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
        door.send(*(whole[a:b] for a, b in pairwise(at) if a < b))
        assert door.handed_over is not None and not door.refused
        assert (door.handed_over.client, door.handed_over.received) == (client, SSH)
        assert not door.doors

    in_a_loop(test)


async def test_byte_by_byte() -> None:
    door = Door("require")
    door.send(*(bytes([byte]) for byte in V2 + SSH))
    assert door.handed_over is not None
    assert (door.handed_over.client, door.handed_over.received) == (CLIENT, SSH)


async def test_without_a_header() -> None:
    allowed, required = Door("allow"), Door("require")
    for door in (allowed, required):
        door.send(SSH[:1], SSH[1:])
    assert allowed.handed_over is not None
    assert (allowed.handed_over.client, allowed.handed_over.received) == (None, SSH)
    assert required.refused and required.handed_over is None
    assert required.heard.refused == [("127.0.0.1", "proxy")]


@pytest.mark.parametrize("garbage", [b"PROXY TCP4 300.0.0.1 127.0.0.1 1 2\r\n", b"PROXY \xff", V2[:12] + b"\x31\x11\0\x0c"])
@pytest.mark.parametrize("mode", ["allow", "require"])
async def test_a_broken_header_is_refused(garbage: bytes, mode: Literal["allow", "require"]) -> None:
    door = Door(mode)
    door.send(garbage)
    door.door.data_received(SSH)  # received before the abort took effect
    assert door.refused and door.handed_over is None
    assert door.heard.refused == [("127.0.0.1", "proxy")]


async def test_almost_a_header_is_none() -> None:
    almost = V2[:11] + b"\r"
    allowed, required = Door("allow"), Door("require")
    for door in (allowed, required):
        door.send(almost[:6], almost[6:])
    assert allowed.handed_over is not None and (allowed.handed_over.client, allowed.handed_over.received) == (None, almost)
    assert required.refused


async def test_a_header_from_a_peer_that_is_not_trusted_is_not_believed() -> None:
    allowed, required = Door("allow", peer="192.0.2.9"), Door("require", peer="192.0.2.9")
    assert required.refused and required.heard.refused == [("192.0.2.9", "proxy")]
    assert allowed.handed_over is not None and allowed.handed_over.client is None
    allowed.send(V1, SSH)
    assert allowed.handed_over.received == V1 + SSH, "which no SSH client says, and ends it"


async def test_the_time_of_the_header_is_passed_on_and_bounded() -> None:
    began = time.monotonic()
    door = Door("require", login_grace_seconds=60)
    await asyncio.sleep(0.1)
    door.send(V1)
    assert door.handed_over is not None and 0.1 <= door.handed_over.waited <= time.monotonic() - began
    quick = Door("require", login_grace_seconds=0.1)
    quick.send(V1)  # at once, before any timer runs
    late = Door("require", login_grace_seconds=0.05)
    for byte in V1[:10]:
        late.send(bytes([byte]))
        await asyncio.sleep(0.02)
    assert late.heard.refused == [("127.0.0.1", "grace")]
    late.send(V1[10:], SSH)
    assert late.handed_over is None
    await asyncio.sleep(0.3)
    assert quick.handed_over is not None and not quick.refused, "its timer went with it"


async def test_unfinished_headers_are_bounded_by_unauthenticated_connections() -> None:
    doors: set[ProxyHeaderReader] = set()
    waiting = [Door("require", doors=doors, unauthenticated_connections=3) for _ in range(5)]
    assert [door.refused for door in waiting] == [False, False, False, True, True]
    assert waiting[3].heard.refused == [("127.0.0.1", "limited")]
    waiting[0].send(V1)
    assert not Door("require", doors=doors, unauthenticated_connections=3).refused


@pytest.mark.parametrize("mode", ["allow", "require"])
async def test_a_peer_that_had_gone_when_it_was_accepted_is_no_error(
    mode: Literal["allow", "require"], caplog: pytest.LogCaptureFixture
) -> None:
    door = Door(mode, peer="")
    assert door.heard.refused == [("unknown", "no_auth")] and not door.doors
    assert not caplog.records


async def test_a_peer_that_disconnects_and_a_worker_that_stops() -> None:
    doors: set[ProxyHeaderReader] = set()
    leaves, stops = Door("require", doors=doors), Door("require", doors=doors)
    assert len(doors) == 2
    leaves.send(V1[:5])
    leaves.door.connection_lost(None)
    assert not leaves.transport.aborted
    stops.door.abort()
    assert stops.transport.aborted and not doors
    stops.door.abort()
