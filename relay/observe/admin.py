"""The admin address: /metrics for Prometheus, /live for a process manager, /ready for load balancers; nothing else.

Meant for a trusted network. Its answers name upstreams, but no people and no repositories. No request changes anything, but anyone who
reaches it can keep it busy.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Handler

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # of the Prometheus text exposition
ANSWER_SECONDS = 8.0  # below Prometheus's default scrape_timeout of 10 s
LINE_BYTES = 4096  # request line, and each header
HEADERS = 64
IDLE_SECONDS = 120.0  # keepalive of a connection between requests; Prometheus asks at least every minute
CLOSE_SECONDS = 2.0  # for answers under way when the relay stops

_log = logging.getLogger("relay.admin")


class Admin:
    """Serves `render`, the metrics, and `ready`: whether the relay takes sessions, with the line that /ready answers.

    The line is the reason when it does not (starting, draining, no_upstream, unaudited), else `ready`, followed by the upstreams that are
    paused.

    Each has ANSWER_SECONDS to answer.
    """

    def __init__(self, render: Callable[[], Awaitable[bytes]], ready: Callable[[], Awaitable[tuple[bool, str]]]) -> None:
        self._render = render
        self._ready = ready
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the first listening socket, once started."""
        assert self._runner is not None
        host, port = self._runner.addresses[0][:2]
        return host, port

    async def start(self, host: str, port: int) -> None:
        """Starts to listen; port 0 lets the system choose. Raises OSError."""
        runner = await self._run()
        await self._listen(web.TCPSite(runner, host, port))

    async def start_on(self, listener: socket.socket) -> None:
        """Serves a socket that is bound already; `close` closes it."""
        runner = await self._run()
        await self._listen(web.SockSite(runner, listener))

    async def close(self) -> None:
        """Stops listening, finishes answers under way and closes every connection."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _run(self) -> web.AppRunner:
        app = web.Application(client_max_size=LINE_BYTES, middlewares=[_bounded])
        app.on_response_prepare.append(_headers)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/live", self._live)
        app.router.add_get("/ready", self._readiness)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=IDLE_SECONDS,
            shutdown_timeout=CLOSE_SECONDS,
            max_line_size=LINE_BYTES,
            max_field_size=LINE_BYTES,
            max_headers=HEADERS,
            lingering_time=0,  # do not wait for an unread body: close the connection
        )
        await self._runner.setup()
        return self._runner

    async def _listen(self, site: web.BaseSite) -> None:
        try:
            await site.start()
        except OSError:
            await self.close()
            raise

    async def _metrics(self, request: web.Request) -> web.Response:
        response = web.Response(body=await self._render(), headers={"Content-Type": METRICS_TYPE})
        response.enable_compression()  # only if the client accepts it
        return response

    async def _live(self, request: web.Request) -> web.Response:
        return web.Response(text="live\n")

    async def _readiness(self, request: web.Request) -> web.Response:
        ready, why = await self._ready()
        return web.Response(status=200 if ready else 503, text=f"{why}\n")


@web.middleware
async def _bounded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses requests with a body, and answers 503 after ANSWER_SECONDS."""
    if request.body_exists:
        return web.Response(status=413, text="no body is taken here\n")
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await handler(request)
    except TimeoutError:
        _log.error("%s was not answered within %g s", request.path, ANSWER_SECONDS)
        return web.Response(status=503, text="timeout\n")


async def _headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Cache-Control"] = "no-store"
    response.headers["Server"] = "git-ssh-relay"
