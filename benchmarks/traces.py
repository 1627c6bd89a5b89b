"""What the relay's traces tell of one `git ls-remote`: a collector (OTLP over HTTP) in the suite's process, and the parts of the time.

The client's own clock is the suite's, which starts it and sees it exit, and git's, whose trace2 tells when it read the host's first packet.
All are one machine's, so the parts follow one another and add up to the whole.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, NamedTuple

from benchmarks.clients import Listed
from benchmarks.processes import MeasureError

SENT_SECONDS = 30.0  # the relay sends its spans every two seconds
BODY_BYTES = 8 << 20
NEEDS = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")  # parents first

CONNECT, LOGIN, ASK, UPSTREAM, FIRST, REST, EXIT = PARTS = (
    "client: from its start until the relay accepts it",
    "login",
    "client: from the login until its command",
    "relay: until the git host has the command",
    "git host: until git has its first packet",
    "request and answer, until the relay has sent the exit status",
    "client: until git has exited",
)


class Span(NamedTuple):
    """As it was sent; times are seconds since the epoch."""

    name: str
    id: str
    parent: str
    began: float
    ended: float
    repository: str


class Collector:
    """Keeps the spans that relays send to `url`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._spans: list[Span] = []
        self._came = threading.Condition()

    def add(self, body: bytes) -> None:
        """Keeps the spans of a request; `body` is an ExportTraceServiceRequest."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        spans = [
            _span(one)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for one in scope.spans
        ]
        with self._came:
            self._spans += spans
            self._came.notify_all()

    def parts(self, repository: str, listed: Sequence[Listed]) -> list[dict[str, float]]:
        """Seconds of each part of each ls-remote, by name of PARTS. Waits for their spans; raises MeasureError when they do not come."""
        deadline = time.monotonic() + SENT_SECONDS
        with self._came:
            while True:
                found = [_parts(self._spans, repository, one) for one in listed]
                whole = [one for one in found if one is not None]
                if len(whole) == len(listed):
                    return whole
                if not self._came.wait(deadline - time.monotonic()):
                    raise MeasureError(f"the relay's traces tell of {len(whole)} of {len(listed)} ls-remotes after {SENT_SECONDS:.0f} s")


def _parts(spans: Sequence[Span], repository: str, listed: Listed) -> dict[str, float] | None:
    """None while a span of it is missing. One ls-remote of `repository` runs at a time, so its session is the one within its time."""
    for session in spans:
        if session.name == "session" and session.repository == repository and listed.began <= session.began <= listed.ended:
            login = next((one for one in spans if one.id == session.parent), None)
            steps = {one.name: one for one in spans if one.parent == session.id}
            if login is None or not {"access", "command"} <= steps.keys():
                return None
            asked, served = steps["access"].began, steps["command"].began  # the session's span begins when its channel is opened
            times = (listed.began, login.began, login.ended, asked, served, listed.heard, session.ended, listed.ended)
            return {part: end - begin for part, (begin, end) in zip(PARTS, pairwise(times), strict=True)}
    return None


def _span(one: Any) -> Span:
    repository = next((pair.value.string_value for pair in one.attributes if pair.key == "relay.repository"), "")
    return Span(
        one.name, one.span_id.hex(), one.parent_span_id.hex(), one.start_time_unix_nano / 1e9, one.end_time_unix_nano / 1e9, repository
    )


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port of loopback. Raises MeasureError where OpenTelemetry's SDK is not installed: then no relay can trace."""
    if not all(find_spec(name) for name in NEEDS):
        raise MeasureError("OpenTelemetry's SDK is not installed (git-ssh-relay[tracing]), so the relay cannot tell where the time goes")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_POST(self) -> None:
            collector.add(self.rfile.read(min(int(self.headers.get("Content-Length", 0)), BODY_BYTES)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector = Collector(f"http://127.0.0.1:{server.server_port}/v1/traces")
    thread = threading.Thread(target=server.serve_forever, name="collector", daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
