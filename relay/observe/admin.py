"""The admin address: /metrics for Prometheus, /live and /ready for whoever starts and balances the relay; nothing else.

Meant for a trusted network: it tells no names and changes nothing, but whoever may ask may keep it busy.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Handler

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # of the Prometheus text exposition
ANSWER_SECONDS = 8.0  # below Prometheus's own default patience of 10 s
LINE_BYTES = 4096  # request line, and each header
HEADERS = 64
IDLE_SECONDS = 120.0  # a connection that asks nothing; Prometheus asks at least every minute
CLOSE_SECONDS = 2.0  # for an answer that is on its way when the relay ends

_log = logging.getLogger("relay.admin")


class Admin:
    """Answers from two callables: `render` gives the metrics, `ready` whether sessions are welcome and, if not, one word why:
    starting, draining, no_upstream. Either is given ANSWER_SECONDS."""

    def __init__(self, render: Callable[[], Awaitable[bytes]], ready: Callable[[], Awaitable[tuple[bool, str]]]) -> None:
        self._render = render
        self._ready = ready
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are listened on, once started; of several the first."""
        assert self._runner is not None
        host, port = self._runner.addresses[0][:2]
        return host, port

    async def start(self, host: str, port: int) -> None:
        """Listens; port 0 lets the system choose. Raises OSError."""
        runner = await self._run()
        await self._listen(web.TCPSite(runner, host, port))

    async def start_on(self, listener: socket.socket) -> None:
        """Serves a socket that is bound already; it is closed with the rest."""
        runner = await self._run()
        await self._listen(web.SockSite(runner, listener))

    async def close(self) -> None:
        """Stops listening, finishes what is being answered and closes every connection."""
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
            lingering_time=0,  # a body that nobody read is not waited for: the connection ends
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
        response.enable_compression()  # only if the client asked for it
        return response

    async def _live(self, request: web.Request) -> web.Response:
        return web.Response(text="live\n")

    async def _readiness(self, request: web.Request) -> web.Response:
        ready, why = await self._ready()
        return web.Response(text="ready\n") if ready else web.Response(status=503, text=f"{why}\n")


@web.middleware
async def _bounded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Nothing here takes a body, so none is read and the connection that brought one ends; and nothing takes for ever."""
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
