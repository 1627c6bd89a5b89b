"""A collector of traces (OTLP over HTTP), which keeps the spans; an HTTP authority that keeps the traceparent of each question."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Status

BODY_BYTES = 8 << 20


@dataclass(frozen=True)
class Span:
    """As it was sent; ids in hexadecimal, times in nanoseconds."""

    name: str
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    attributes: Mapping[str, str | int | bool]
    events: tuple[tuple[str, Mapping[str, str | int | bool]], ...]
    failed: bool
    service: str

    def is_named_by(self, traceparent: str) -> bool:
        """Whether this is the span that the header names as the parent (W3C Trace Context, version 00; sampled)."""
        *ids, flags = traceparent.split("-")
        return ids == ["00", self.trace, self.id] and int(flags, 16) & 1 == 1


class _Server:
    """An HTTP server of this process, on a free port of loopback."""

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def _any(self) -> None:
                body = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), BODY_BYTES))
                status, kind, answer = outer.answer(self.command, self.path, dict(self.headers), body)
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                except ConnectionError:
                    self.close_connection = True  # the other side waited no longer

            do_GET = do_POST = _any

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str, bytes]:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(60)


class Collector(_Server):
    """`status` is what it answers; while `goes_on` is not set it answers nothing."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.headers: list[Mapping[str, str]] = []
        self.status = 200
        self.goes_on = threading.Event()
        self.goes_on.set()
        super().__init__()

    @property
    def traces_url(self) -> str:
        return f"{self.url}/v1/traces"

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str, bytes]:
        self.headers.append(headers)
        self.goes_on.wait(60)
        if (method, path) != ("POST", "/v1/traces") or self.status != 200:
            return self.status if self.status != 200 else 404, "text/plain", b""
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = str(_values(resource.resource.attributes)["service.name"])
            self.spans += [_span(one, service) for scope in resource.scope_spans for one in scope.spans]
        return 200, "application/x-protobuf", ExportTraceServiceResponse().SerializeToString()

    def named(self, name: str) -> list[Span]:
        return [one for one in self.spans if one.name == name]

    def below(self, parent: Span) -> list[str]:
        """The names of its children, in the order in which they began."""
        return [one.name for one in sorted(self.spans, key=lambda one: (one.began, one.ended)) if one.parent == parent.id]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.goes_on.set()
        super().__exit__(kind, error, trace)


class HeardAuthority(_Server):
    """Says yes to everything: every key is alice's, who may write, and every repository is at `root` of upstream main."""

    def __init__(self, root: str) -> None:
        self.heard: list[tuple[str, str]] = []  # path and traceparent of each question
        self._root = root
        super().__init__()

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str, bytes]:
        where = urlsplit(path).path
        self.heard.append((where, headers.get("traceparent", "")))
        told: dict[str, Any] = {"identity": "alice"} if where == "/keys" else {"access": "write"}
        if where == "/routes":
            told = {"upstream": "main", "path": f"{self._root}/stub/emit/1000.git"}
        return 200, "application/json", json.dumps(told).encode()


def _span(one: Any, service: str) -> Span:
    return Span(
        name=one.name,
        trace=one.trace_id.hex(),
        id=one.span_id.hex(),
        parent=one.parent_span_id.hex(),
        began=one.start_time_unix_nano,
        ended=one.end_time_unix_nano,
        attributes=_values(one.attributes),
        events=tuple((event.name, _values(event.attributes)) for event in one.events),
        failed=one.status.code == Status.STATUS_CODE_ERROR,
        service=service,
    )


def _values(pairs: Any) -> dict[str, str | int | bool]:
    return {pair.key: _value(pair) for pair in pairs}


def _value(pair: KeyValue) -> str | int | bool:
    kind = pair.value.WhichOneof("value")
    assert kind in ("string_value", "int_value", "bool_value"), pair
    value = getattr(pair.value, kind)
    assert isinstance(value, str | int | bool)
    return value
