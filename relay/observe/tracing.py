"""Traces: an Observer that makes OpenTelemetry spans of logins and sessions, and sends them by OTLP over HTTP.

A login is the root of a trace, each session of its connection a span below it, the steps of a session are children of that. Attributes are
those of ATTRIBUTES, a closed set without a secret. A thread of the SDK sends the spans; at most `queue_spans` wait for it, further ones are
dropped and counted, and no session waits for any of it. Only a worker with [tracing] imports this module.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context

from relay.config import TracingSettings
from relay.errors import ConfigError
from relay.events import (
    AuthFailure,
    BackendQuestion,
    ConnectionOutcome,
    ConnectionRecord,
    Observer,
    Outcome,
    PacksResult,
    ReplayResult,
    SessionRecord,
    Step,
    TraceResult,
    WaitsFor,
    traceparent,
)
from relay.model import Identity
from relay.text import printable

BATCH_SPANS = 512  # sent in one request
BATCH_SECONDS = 2.0  # before a smaller batch is sent
CLOSE_SECONDS = 5.0  # how long the last spans may take when a worker ends
TOKEN_BYTES = 8_192
SAID_CHARACTERS = 300  # of the exporter's own words, in the log

ATTRIBUTES = frozenset(
    {
        "client.address",
        "network.protocol.name",
        "relay.address",  # of the git host
        "relay.bytes_in",
        "relay.bytes_out",
        "relay.client_version",
        "relay.connection",
        "relay.exit_status",
        "relay.identity",
        "relay.reason",
        "relay.replays",
        "relay.repository",
        "relay.result",
        "relay.served_by",
        "relay.service",
        "relay.session",
        "relay.source",
        "relay.upstream",
        "relay.waits_for",
        "relay.warm",
    }
)

Value = str | int | bool

_log = logging.getLogger("relay.tracing")


class Tracing(Observer):
    """The spans of one worker. `told` is called in the loop with what became of spans. All other methods, too, belong to the loop's thread.

    Raises ConfigError for a token that cannot be read.
    """

    def __init__(self, settings: TracingSettings, base: Path, told: Callable[[TraceResult, int], None]) -> None:
        exporter = _exporter(settings, base)
        self._loop = asyncio.get_running_loop()
        self._sending = _Sending(exporter, settings, self._loop, told)
        resource: dict[str, str | int] = {
            "service.name": "git-ssh-relay",
            "service.version": metadata.version("git-ssh-relay"),
            "host.name": platform.node(),
            "process.pid": os.getpid(),
        }
        sampler = ParentBased(TraceIdRatioBased(1 / settings.sample_one_in))
        self._provider = TracerProvider(sampler=sampler, resource=Resource(resource), shutdown_on_exit=False)
        self._provider.add_span_processor(self._sending)
        self._tracer = self._provider.get_tracer("relay", metadata.version("git-ssh-relay"))
        self._logins: dict[str, _Live] = {}  # by traceparent, until the connection is closed; only those that are sampled
        self._sessions: dict[str, _Live] = {}  # likewise, until the session has ended

    async def close(self) -> None:
        """Sends what waits, for CLOSE_SECONDS at most."""
        done: asyncio.Future[None] = self._loop.create_future()

        def shut_down() -> None:
            self._provider.shutdown()
            try:
                self._loop.call_soon_threadsafe(_finish, done)
            except RuntimeError:  # it took longer than CLOSE_SECONDS, and the loop has been closed
                return

        threading.Thread(target=shut_down, name="tracing", daemon=True).start()
        await asyncio.wait([done], timeout=CLOSE_SECONDS)
        if not done.done():
            done.cancel()
            _log.warning("the collector did not take the last traces within %g s; they are lost", CLOSE_SECONDS)

    # -- logins ----------------------------------------------------------------------------------------------------------

    def connection_opened(self, connection: ConnectionRecord) -> None:
        span = self._tracer.start_span("login", kind=SpanKind.SERVER, start_time=int(connection.since * 1e9))
        if span.is_recording():
            connection.traceparent = _header(span)
            self._logins[connection.traceparent] = _Live(span)

    def auth_failed(self, connection: ConnectionRecord, reason: AuthFailure, fingerprint: str = "", detail: str = "") -> None:
        if (live := self._logins.get(connection.traceparent)) is not None and live.span.is_recording():
            live.span.add_event("refused", {"relay.reason": reason})

    def auth_succeeded(self, connection: ConnectionRecord, identity: Identity) -> None:
        """Ends the login's span. Those of clients that do not log in are never ended, and so never sent: a scanner fills no trace store."""
        if (live := self._logins.get(connection.traceparent)) is not None and live.span.is_recording():
            _set(
                live.span,
                {
                    "relay.connection": connection.id,
                    "relay.identity": identity.name,
                    "relay.client_version": connection.client_version,
                    "client.address": connection.address,
                    "network.protocol.name": "ssh",
                },
            )
            live.span.end()

    def connection_closed(self, connection: ConnectionRecord, outcome: ConnectionOutcome, detail: str = "") -> None:
        self._logins.pop(connection.traceparent, None)

    # -- sessions --------------------------------------------------------------------------------------------------------

    def session_started(self, session: SessionRecord) -> None:
        login = self._logins.get(session.connection.traceparent)
        if login is None:
            return  # not sampled
        began = int(session.since * 1e9)
        span = self._tracer.start_span("session", set_span_in_context(login.span), SpanKind.SERVER, start_time=began)
        session.traceparent = _header(span)
        self._sessions[session.traceparent] = _Live(span)

    def session_ended(self, session: SessionRecord, outcome: Outcome) -> None:
        live = self._sessions.pop(session.traceparent, None)
        if live is None:
            return
        command, carried = session.command, {"relay.bytes_in": session.bytes_in, "relay.bytes_out": session.bytes_out}
        if live.served is not None:
            self._child(live, "command", live.served, time.time_ns(), carried)
        told: dict[str, Value] = {
            "relay.session": session.id,
            "relay.connection": session.connection.id,
            "relay.identity": session.identity.name,
            "relay.upstream": session.upstream,
            "relay.address": session.address,
            "relay.served_by": session.served_by,
            "relay.replays": session.replays,
            "relay.result": outcome.result,
            "relay.reason": outcome.reason,
            "client.address": session.connection.address,
            **carried,
        }
        if command is not None:
            told |= {"relay.service": command.service, "relay.repository": command.repository}
        if outcome.exit.status is not None:
            told["relay.exit_status"] = outcome.exit.status
        _set(live.span, told)
        if outcome.result in ("upstream", "relay"):
            live.span.set_status(StatusCode.ERROR, outcome.reason)
        live.span.end()

    def session_replayed(self, session: SessionRecord, result: ReplayResult) -> None:
        if (live := self._sessions.get(session.traceparent)) is not None:
            live.span.add_event("replayed", {"relay.result": result})

    def packs_asked(self, session: SessionRecord, result: PacksResult) -> None:
        if (live := self._sessions.get(session.traceparent)) is not None:
            live.span.add_event("packs", {"relay.result": result})

    # -- steps: called in the context of a session's task, or of a login's question ------------------------------------------

    def step_took(self, step: Step, seconds: float) -> None:
        live = self._sessions.get(traceparent.get())
        if live is None:
            return
        now = time.time_ns()
        self._child(live, step, now - int(seconds * 1e9), now, {})
        if step == "upstream":
            live.served = now

    def upstream_waited(self, upstream: str, waits_for: WaitsFor, seconds: float) -> None:
        self._took("wait", seconds, {"relay.upstream": upstream, "relay.waits_for": waits_for})

    def upstream_leased(self, upstream: str, seconds: float, warm: bool) -> None:
        self._took("lease", seconds, {"relay.upstream": upstream, "relay.warm": warm})

    def upstream_dialed(self, upstream: str, address: str, result: str, seconds: float, detail: str = "") -> None:
        self._took("dial", seconds, {"relay.upstream": upstream, "relay.address": address, "relay.result": result})

    def backend_asked(self, question: BackendQuestion, source: str, seconds: float, result: str) -> None:
        self._took(f"{question} backend", seconds, {"relay.source": source, "relay.result": result})

    def _took(self, name: str, seconds: float, attributes: Mapping[str, Value]) -> None:
        """A child that has just ended, of the session whose context this is; or of the login, which asks for the owner of a key."""
        within = traceparent.get()
        if (live := self._sessions.get(within) or self._logins.get(within)) is not None:
            now = time.time_ns()
            self._child(live, name, now - int(seconds * 1e9), now, attributes)

    def _child(self, live: _Live, name: str, began: int, ended: int, attributes: Mapping[str, Value]) -> None:
        span = self._tracer.start_span(name, set_span_in_context(live.span), start_time=began)
        _set(span, attributes)
        span.end(ended)


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


class _Live:
    """The span of a login or session, and since when (nanoseconds) a git host serves the session."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.served: int | None = None


class _Sending(SpanProcessor):
    """Counts the spans that wait: the SDK's queue would drop the oldest ones when it is full, and only log that."""

    def __init__(
        self, exporter: SpanExporter, settings: TracingSettings, loop: asyncio.AbstractEventLoop, told: Callable[[TraceResult, int], None]
    ) -> None:
        self._loop, self._told, self._url = loop, told, settings.url
        self._most, self._waiting = settings.queue_spans, 0
        self._failing = False
        self._words = _Words()
        self._batches = BatchSpanProcessor(
            _Reporting(exporter, self._sent_in_thread),
            max_queue_size=settings.queue_spans,
            schedule_delay_millis=BATCH_SECONDS * 1e3,
            max_export_batch_size=min(BATCH_SPANS, settings.queue_spans),
        )

    def on_end(self, span: ReadableSpan) -> None:
        if self._waiting >= self._most:
            self._told("dropped", 1)
            return
        self._waiting += 1
        self._batches.on_end(span)

    def shutdown(self) -> None:
        self._batches.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._batches.force_flush(timeout_millis)

    def _sent_in_thread(self, count: int, good: bool) -> None:
        try:
            self._loop.call_soon_threadsafe(self._sent, count, good, self._words.last)
        except RuntimeError:  # the loop has been closed: nobody is left to be told
            return

    def _sent(self, count: int, good: bool, said: str) -> None:
        self._waiting -= count
        self._told("sent" if good else "failed", count)
        if good and self._failing:
            _log.warning("traces are sent to %s again", self._url)
        elif not good and not self._failing:
            _log.warning("traces cannot be sent to %s and are lost until they can be: %s", self._url, said or "no reason was given")
        self._failing = not good


class _Reporting(SpanExporter):
    """Tells `sent` how many spans each export had, and whether it succeeded. Called in the SDK's thread."""

    def __init__(self, exporter: SpanExporter, sent: Callable[[int, bool], None]) -> None:
        self._exporter, self._sent = exporter, sent

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._sent(len(spans), result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _Words(logging.Handler):
    """Keeps what the SDK logs out of the log, where it would come with every batch, and the last of it for our one line."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""
        sdk = logging.getLogger("opentelemetry")
        sdk.propagate = False
        sdk.handlers[:] = [self]

    def emit(self, record: logging.LogRecord) -> None:
        self.last = printable(record.getMessage(), SAID_CHARACTERS)


def _exporter(settings: TracingSettings, base: Path) -> OTLPSpanExporter:
    session = requests.Session()
    session.trust_env = False  # neither a proxy nor a .netrc of the environment
    session.max_redirects = 0  # the token is for this collector only
    headers = {}
    if settings.token_file is not None:
        headers["authorization"] = f"Bearer {_token(base / settings.token_file)}"
    return OTLPSpanExporter(
        endpoint=settings.url,
        certificate_file=str(base / settings.ca_file) if settings.ca_file is not None else None,
        headers=headers,
        timeout=settings.timeout_seconds,
        session=session,
    )


def _token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(TOKEN_BYTES + 2).decode().removesuffix("\n")  # with a line end, and one byte more than is allowed
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"tracing.token_file: {path} cannot be read ({error}), must be one line of text"]) from None
    if not text or not text.isascii() or not text.isprintable() or " " in text or len(text) > TOKEN_BYTES:
        raise ConfigError([f"tracing.token_file: {path} must be one line of visible ASCII characters, at most {TOKEN_BYTES}"])
    return text


def _header(span: Span) -> str:
    """The traceparent of W3C Trace Context, version 00."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _set(span: Span, attributes: Mapping[str, Value]) -> None:
    for name, value in attributes.items():
        assert name in ATTRIBUTES, name
        if value != "":
            span.set_attribute(name, value)
