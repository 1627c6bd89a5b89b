"""The admin address: its three pages, requested by a real HTTP client, and by one that sends invalid requests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import aiohttp
import prometheus_client.exposition
import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.observe import admin as module
from relay.observe.admin import Admin

TEXT = b"# HELP relay_workers Worker processes that live.\n# TYPE relay_workers gauge\nrelay_workers 2.0\n" + b"# padding\n" * 200


class Relay:
    """The relay's state for the admin address, set by the test."""

    def __init__(self) -> None:
        self.state = (True, "ready")
        self.hang: asyncio.Event | None = None
        self.fail = False
        self.asked = asyncio.Event()

    async def render(self) -> bytes:
        self.asked.set()
        if self.hang is not None:
            await self.hang.wait()
        if self.fail:
            raise RuntimeError("a fault of ours")
        return TEXT

    async def ready(self) -> tuple[bool, str]:
        return self.state


@pytest.fixture
def relay() -> Relay:
    return Relay()


@pytest.fixture
async def admin(relay: Relay) -> AsyncIterator[Admin]:
    admin = Admin(relay.render, relay.ready)
    await admin.start("127.0.0.1", 0)
    yield admin
    await admin.close()


@pytest.fixture
async def client(admin: Admin) -> AsyncIterator[aiohttp.ClientSession]:
    host, port = admin.address
    async with aiohttp.ClientSession(f"http://{host}:{port}", auto_decompress=False, headers={"Accept-Encoding": "identity"}) as session:
        yield session


async def raw(admin: Admin, request: bytes) -> bytes:
    """The response, up to the close."""
    reader, writer = await asyncio.open_connection(*admin.address)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()


async def test_metrics_are_served_in_the_text_exposition(client: aiohttp.ClientSession) -> None:
    async with client.get("/metrics") as response:
        body = await response.read()
        assert response.status == 200
        assert response.headers["Content-Type"] == prometheus_client.exposition.CONTENT_TYPE_PLAIN_0_0_4
        assert response.headers["Cache-Control"] == "no-store"
        assert "Content-Encoding" not in response.headers
        assert "aiohttp" not in response.headers["Server"]
    [family] = text_string_to_metric_families(body.decode())
    assert family.samples[0].value == 2


async def test_metrics_are_compressed_for_who_asks(admin: Admin) -> None:
    host, port = admin.address
    asking = {"Accept-Encoding": "gzip"}
    async with aiohttp.ClientSession(headers=asking) as session, session.get(f"http://{host}:{port}/metrics") as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert response.content_length is not None
        assert response.content_length < len(TEXT)
        assert await response.read() == TEXT


async def test_live_is_always_200_and_ready_follows_the_relay(client: aiohttp.ClientSession, relay: Relay) -> None:
    for ready, word, status in ((False, "starting", 503), (True, "ready", 200), (False, "no_upstream", 503), (False, "draining", 503)):
        relay.state = (ready, word)
        async with client.get("/ready") as response:
            assert (response.status, await response.text()) == (status, f"{word}\n")
        async with client.get("/live") as response:
            assert (response.status, await response.text()) == (200, "live\n")


@pytest.mark.parametrize("path", ["/metrics", "/live", "/ready"])
async def test_head_has_the_headers_and_no_body(client: aiohttp.ClientSession, path: str) -> None:
    async with client.head(path) as head, client.get(path) as get:
        assert head.status == get.status == 200
        assert head.headers["Content-Type"] == get.headers["Content-Type"]
        assert head.headers["Content-Length"] == get.headers["Content-Length"]
        assert await head.read() == b""


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metricsx", "/../etc/passwd", "/ready/x", "/%00", "/sessions"])
async def test_everything_else_is_404(client: aiohttp.ClientSession, path: str) -> None:
    async with client.get(path) as response:
        assert response.status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_requests_other_than_get_and_head_are_refused(client: aiohttp.ClientSession, method: str) -> None:
    async with client.request(method, "/metrics") as response:
        assert response.status == 405


async def test_a_body_is_refused_and_not_read(admin: Admin) -> None:
    head = b"POST /metrics HTTP/1.1\r\nHost: x\r\n"
    for request in (head + b"Content-Length: 1000000000\r\n\r\n" + b"x" * 5000, head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"):
        assert (await raw(admin, request)).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /live HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /live HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: a\r\n" % number for number in range(5000)) + b"\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        bytes(range(256)),
    ],
    ids=["line", "header", "headers", "ssh", "noise"],
)
async def test_what_is_too_big_or_no_http_is_refused_and_the_connection_closed(admin: Admin, request_bytes: bytes) -> None:
    try:
        assert b" 400 " in (await raw(admin, request_bytes)).partition(b"\r\n")[0]
    except ConnectionResetError:
        pass  # closed before the client had sent everything
    assert (await raw(admin, b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_a_fault_of_ours_is_500_and_the_next_scrape_works(
    client: aiohttp.ClientSession, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    relay.fail = True
    async with client.get("/metrics") as response:
        assert response.status == 500
        assert "a fault of ours" not in await response.text()
    assert "a fault of ours" in caplog.text
    relay.fail = False
    async with client.get("/metrics") as response:
        assert response.status == 200


async def test_a_scrape_that_takes_too_long_is_given_up_while_live_answers(
    client: aiohttp.ClientSession, relay: Relay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.1)
    relay.hang = asyncio.Event()
    async with client.get("/live") as live:
        assert live.status == 200
    async with client.get("/metrics") as response:
        assert response.status == 503
    assert "/metrics was not answered" in caplog.text


async def test_it_serves_a_socket_that_somebody_else_bound(relay: Relay) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    admin = Admin(relay.render, relay.ready)
    await admin.start_on(listener)
    assert admin.address == ("127.0.0.1", port)
    assert (await raw(admin, b"GET /live HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.0 200 ")
    await admin.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_port_that_is_taken_raises_and_leaves_nothing(admin: Admin, relay: Relay) -> None:
    second = Admin(relay.render, relay.ready)
    with pytest.raises(OSError, match="address"):
        await second.start(*admin.address)
    await second.close()


async def test_closing_ends_idle_connections_at_once(relay: Relay) -> None:
    admin = Admin(relay.render, relay.ready)
    await admin.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*admin.address)
    writer.write(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    await asyncio.wait_for(admin.close(), 60)
    await asyncio.wait_for(reader.read(), 60)
    writer.close()


async def test_closing_does_not_wait_for_a_scrape_that_hangs(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)
    relay.hang = asyncio.Event()
    admin = Admin(relay.render, relay.ready)
    await admin.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*admin.address)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    await relay.asked.wait()
    await asyncio.wait_for(admin.close(), module.ANSWER_SECONDS / 2)
    assert await asyncio.wait_for(reader.read(), 60) == b""
    writer.close()
