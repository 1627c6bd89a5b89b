"""Traces: a login and its sessions with their steps as a tree, to an OTLP server of the test's; a collector that is away costs nobody."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from relay.config import TracingSettings
from relay.errors import ConfigError
from relay.events import ConnectionRecord, Outcome, SessionRecord, traceparent
from relay.model import Command, Exit, Identity
from relay.observe import tracing
from relay.observe.tracing import Tracing
from tests.support.collector import Collector
from tests.support.machine import free_port
from tests.support.wait import wait_until_async

ALICE = Identity(name="alice", fingerprint="SHA256:secret-ish")
OK = Outcome(result="ok", reason="ok", exit=Exit(status=0), seconds=0.1)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as one:
        yield one


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "BATCH_SECONDS", 0.05)


@asynccontextmanager
async def traced(url: str, folder: Path, **settings: Any) -> AsyncIterator[tuple[Tracing, Counter[str]]]:
    told: Counter[str] = Counter()
    one = Tracing(TracingSettings(url=url, **settings), folder, lambda result, count: told.update({result: count}))
    try:
        yield one, told
    finally:
        await one.close()


def connected(one: Tracing, *, name: str = "c1") -> ConnectionRecord:
    connection = ConnectionRecord(id=name, address="192.0.2.7", port=40_000, client_version="SSH-2.0-OpenSSH_9.2")
    one.connection_opened(connection)
    return connection


def logged_in(one: Tracing, *, name: str = "c1") -> ConnectionRecord:
    connection = connected(one, name=name)
    connection.identity = ALICE
    one.auth_succeeded(connection, ALICE)
    return connection


def session(one: Tracing, connection: ConnectionRecord, outcome: Outcome = OK, number: int = 1) -> SessionRecord:
    """A whole session, in a context of its own, as a task's."""
    record = SessionRecord(id=f"{connection.id}-{number}", connection=connection, identity=ALICE)

    def run() -> None:
        one.session_started(record)
        traceparent.set(record.traceparent)
        record.command = Command(service="git-upload-pack", repository="team/app", protocol="version=2")
        one.backend_asked("access", "http", 0.001, "ok")
        one.step_took("access", 0.002)
        one.step_took("routes", 0.001)
        one.upstream_waited("main", "identity", 0.5)
        one.upstream_dialed("main", "127.0.0.1:22", "ok", 0.1)
        one.upstream_leased("main", 0.6, False)
        one.step_took("upstream", 0.7)
        record.upstream, record.address, record.served_by = "main", "127.0.0.1:22", "host"
        record.bytes_in, record.bytes_out = 400, 1_000_000
        one.packs_asked(record, "passed")
        one.session_replayed(record, "served")
        one.session_ended(record, outcome)

    copy_context().run(run)
    return record


async def test_a_session_is_a_span_with_its_steps_below_it(collector: Collector, tmp_path: Path) -> None:
    async with traced(collector.traces_url, tmp_path) as (one, told):
        connection = logged_in(one)
        record = session(one, connection)
        one.connection_closed(connection, "ok")
    await wait_until_async(lambda: told["sent"] == len(collector.spans) > 0)
    [login], [span] = collector.named("login"), collector.named("session")
    assert (login.parent, span.parent, span.trace) == ("", login.id, login.trace)
    assert login.is_named_by(connection.traceparent)
    assert span.is_named_by(record.traceparent)
    assert set(collector.below(span)) == {"access backend", "access", "routes", "wait", "dial", "lease", "upstream", "command"}
    assert span.attributes == {
        "relay.session": "c1-1",
        "relay.connection": "c1",
        "relay.identity": "alice",
        "relay.service": "git-upload-pack",
        "relay.repository": "team/app",
        "relay.upstream": "main",
        "relay.address": "127.0.0.1:22",
        "relay.served_by": "host",
        "relay.replays": 0,
        "relay.result": "ok",
        "relay.reason": "ok",
        "relay.exit_status": 0,
        "relay.bytes_in": 400,
        "relay.bytes_out": 1_000_000,
        "client.address": "192.0.2.7",
    }
    assert span.events == (("packs", {"relay.result": "passed"}), ("replayed", {"relay.result": "served"}))
    assert span.service == "git-ssh-relay"
    assert not span.failed
    [wait] = collector.named("wait")
    assert wait.attributes == {"relay.upstream": "main", "relay.waits_for": "identity"}
    assert wait.ended - wait.began == 500_000_000
    assert all(one.attributes.keys() <= tracing.ATTRIBUTES for one in collector.spans)
    assert "secret-ish" not in repr(collector.spans)


async def test_the_question_for_a_keys_owner_is_below_the_login(collector: Collector, tmp_path: Path) -> None:
    async with traced(collector.traces_url, tmp_path) as (one, _):
        connection = connected(one)
        context = copy_context()
        context.run(traceparent.set, connection.traceparent)
        context.run(one.backend_asked, "keys", "http", 0.01, "ok")
        one.auth_failed(connection, "unknown_key", "SHA256:x")
        one.auth_succeeded(connection, ALICE)
    [login] = collector.named("login")
    assert collector.below(login) == ["keys backend"]
    assert login.events == (("refused", {"relay.reason": "unknown_key"}),)


@pytest.mark.parametrize(("result", "failed"), [("upstream", True), ("relay", True), ("client", False), ("policy", False)])
async def test_a_session_that_failed_for_the_relay_or_its_git_host_is_marked(
    collector: Collector, tmp_path: Path, result: Any, failed: bool
) -> None:
    async with traced(collector.traces_url, tmp_path) as (one, _):
        session(one, logged_in(one), Outcome(result=result, reason="lost", exit=Exit(), seconds=1.0, detail="exact, and not for a span"))
    [span] = collector.named("session")
    assert span.failed is failed
    assert span.attributes["relay.reason"] == "lost"
    assert "relay.exit_status" not in span.attributes
    assert "exact" not in repr(collector.spans)


async def test_who_does_not_log_in_leaves_no_span(collector: Collector, tmp_path: Path) -> None:
    async with traced(collector.traces_url, tmp_path) as (one, told):
        for number in range(100):
            scanner = connected(one, name=f"s{number}")
            one.auth_failed(scanner, "unknown_key")
            one.connection_closed(scanner, "auth_failed")
        assert not one._logins
    assert (collector.spans, told) == ([], Counter())


async def test_a_login_that_is_not_sampled_has_no_trace_and_neither_have_its_sessions(collector: Collector, tmp_path: Path) -> None:
    async with traced(collector.traces_url, tmp_path, sample_one_in=1_000_000) as (one, _):
        connection = logged_in(one)
        record = session(one, connection)
        assert (connection.traceparent, record.traceparent) == ("", "")
        assert not one._sessions
    assert collector.spans == []


async def test_steps_outside_of_a_session_or_after_its_end_are_nobodys(collector: Collector, tmp_path: Path) -> None:
    async with traced(collector.traces_url, tmp_path) as (one, _):
        record = session(one, logged_in(one))
        one.step_took("access", 1.0)
        context = copy_context()
        context.run(traceparent.set, record.traceparent)
        context.run(one.upstream_dialed, "main", "127.0.0.1:22", "timeout", 5.0)
    assert len(collector.named("access")) == len(collector.named("dial")) == 1


async def test_what_waits_is_bounded_and_the_rest_dropped_and_counted(collector: Collector, tmp_path: Path) -> None:
    collector.goes_on.clear()
    async with traced(collector.traces_url, tmp_path, queue_spans=20, timeout_seconds=60) as (one, told):
        connection = logged_in(one)
        for number in range(50):
            session(one, connection, number=number)
        assert told["dropped"] == 50 * 9 + 1 - 20
        collector.goes_on.set()
        await wait_until_async(lambda: told["sent"] == 20)
        session(one, connection)
        await wait_until_async(lambda: told["sent"] == 29)
    assert len(collector.spans) == 29


async def test_a_collector_that_is_away_is_told_once_and_once_when_it_is_back(
    collector: Collector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    collector.status = 400
    async with traced(collector.traces_url, tmp_path, timeout_seconds=0.2) as (one, told):
        connection = logged_in(one)
        await wait_until_async(lambda: told["failed"] == 1)
        for number in range(2, 5):
            session(one, connection)
            expected = 1 + 9 * (number - 1)
            await wait_until_async(lambda: told["failed"] == expected)  # noqa: B023
        collector.status = 200
        session(one, connection)
        await wait_until_async(lambda: told["sent"] == 9)
    said = [record.getMessage() for record in caplog.records if record.name == "relay.tracing"]
    assert len(said) == 2
    assert said[0].startswith(f"traces cannot be sent to {collector.traces_url} and are lost until they can be: ")
    assert said[1] == f"traces are sent to {collector.traces_url} again"
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


async def test_a_port_where_nobody_listens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with traced(f"http://127.0.0.1:{free_port()}/v1/traces", tmp_path, timeout_seconds=0.2) as (one, told):
        session(one, logged_in(one))
        await wait_until_async(lambda: told["failed"] == 10)
    assert [record.getMessage()[:21] for record in caplog.records if record.name == "relay.tracing"] == ["traces cannot be sent"]


async def test_a_worker_that_ends_waits_for_the_collector_only_so_long(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "CLOSE_SECONDS", 0.1)
    collector.goes_on.clear()
    began = time.monotonic()
    async with traced(collector.traces_url, tmp_path, timeout_seconds=60) as (one, _):
        session(one, logged_in(one))
    assert time.monotonic() - began < 30
    assert "the collector did not take the last traces within 0.1 s; they are lost" in caplog.text
    collector.goes_on.set()
    await wait_until_async(lambda: len(collector.spans) == 10)  # the thread goes on meanwhile, and harms nobody
    await asyncio.sleep(0)


async def test_the_token_goes_to_the_collector_and_nowhere_else(
    collector: Collector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    async with traced(collector.traces_url, tmp_path, token_file="token") as (one, _):
        session(one, logged_in(one))
    assert {headers["authorization"] for headers in collector.headers} == {"Bearer s3cret"}
    assert "s3cret" not in caplog.text + repr(collector.spans)


@pytest.mark.parametrize("text", ["", "two words", "two\nlines", "\x07", "é", "x" * 8_193])
async def test_a_token_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(ConfigError, match=r"tracing.token_file: .* must be one line of visible ASCII") as error:
        Tracing(TracingSettings(url="https://collector.test/v1/traces", token_file="token"), tmp_path, lambda *_: None)
    assert len(text) < 5 or text not in str(error.value)


async def test_the_environment_gives_the_spans_no_other_way(collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    async with traced(collector.traces_url, tmp_path) as (one, told):
        session(one, logged_in(one))
    await wait_until_async(lambda: told["sent"] == 10)


def test_no_worker_without_tracing_imports_it() -> None:
    code = "import sys, relay.process.worker, relay.preflight; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout == "[]\n"
