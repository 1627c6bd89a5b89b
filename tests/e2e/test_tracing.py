"""A relay with [tracing]: a real session is a tree of spans at the collector, and the HTTP authority is told which one asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.helpers import alice, audited
from tests.support.collector import Collector, HeardAuthority
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

OFF = {"ttl_seconds": 0, "negative_seconds": 0, "stale_seconds": 0}
EMIT = "git-upload-pack 'stub/emit/1000'"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as one:
        yield one


def settings(collector: Collector, authority: HeardAuthority | None = None, **tracing: Any) -> dict[str, Any]:
    asked = {} if authority is None else {"source": "http", "path": None, "url": authority.url, "cache": OFF}
    about = {} if authority is None else {"keys": asked, "access": asked, "routes": asked}
    return {"tracing": {"url": collector.traces_url, **tracing}, **about}


async def test_a_session_and_its_questions_are_one_trace(sshd: Sshd, collector: Collector) -> None:
    with HeardAuthority(str(sshd.root)) as authority, RelayProcess(sshd, config=settings(collector, authority)) as relay:
        async with alice(relay, relay.key) as connection:
            done = await run(connection, EMIT)
            assert (done.exit_status, len(done.stdout)) == (0, 1000), done
        wait_until(lambda: collector.named("session"), message="the session's span has come")
        wait_until(lambda: relay.metric("relay_trace_spans_total", result="sent") >= len(collector.spans))
        [login], [session] = collector.named("login"), collector.named("session")
        assert (session.parent, session.trace) == (login.id, login.trace)
        [line] = audited(relay, 0, event="session")
        assert session.attributes["relay.session"] == line["session"]
        assert (session.attributes["relay.repository"], session.attributes["relay.bytes_out"]) == ("stub/emit/1000", 1000)
        steps = collector.below(session)
        assert {"access", "access backend", "routes", "routes backend", "upstream", "lease", "command"} <= set(steps)
        assert "keys backend" in collector.below(login)
        heard = dict(authority.heard)
        assert heard.keys() == {"/keys", "/access", "/routes"}
        assert login.is_named_by(heard["/keys"])
        assert session.is_named_by(heard["/access"])
        assert session.is_named_by(heard["/routes"])


async def test_sessions_of_one_connection_at_once_have_a_span_each(sshd: Sshd, collector: Collector) -> None:
    with RelayProcess(sshd, config=settings(collector)) as relay:
        async with alice(relay, relay.key) as first, alice(relay, relay.key) as second:
            for connection in (first, second, first, second):
                assert (await run(connection, EMIT)).exit_status == 0
    sessions, logins = collector.named("session"), collector.named("login")  # the relay has sent the last ones before it ended
    assert len(sessions) == 4
    assert sorted(one.parent for one in sessions) == sorted(2 * [one.id for one in logins])
    assert all(collector.below(one).count("access") == 1 for one in sessions)


async def test_without_a_collector_sessions_go_on_and_the_loss_is_told(sshd: Sshd, collector: Collector) -> None:
    collector.status = 503
    with RelayProcess(sshd, config=settings(collector, timeout_seconds=0.5)) as relay:
        async with alice(relay, relay.key) as connection:
            for _ in range(3):
                assert (await run(connection, EMIT)).exit_status == 0
        wait_until(lambda: relay.metric("relay_trace_spans_total", result="failed") > 0)
        assert relay.log_text().count("traces cannot be sent to") == 1
