"""What the relay reports: metrics that grow while bytes flow, one audit line and one outcome for each session, /live and /ready."""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import asyncssh
import pytest

from tests.e2e.helpers import alice, audited
from tests.support.keys import make_key
from tests.support.metrics import METRICS
from tests.support.pattern import stub_bytes
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

SERVICES = {"git-upload-pack", "git-receive-pack", "git-upload-archive", "git-lfs-authenticate", "git-lfs-transfer", "none"}
SESSION_FIELDS = {
    "event", "time", "connection", "address", "port", "session", "identity", "key", "certificate", "service", "repository", "moved_from",
    "protocol", "operation", "upstream", "host", "kind", "git_version", "served_by", "replays",
    "refs", "refs_more", "refs_truncated", "bytes_in",
    "bytes_out", "seconds", "waited_seconds", "exit_status", "exit_signal", "result", "reason", "detail",
}  # fmt: skip


@pytest.fixture
def fresh(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> RelayProcess:
    return make_relay(sshd)


@pytest.fixture
def pair(make_relay: Callable[..., RelayProcess], sshd: Sshd) -> Iterator[RelayProcess]:
    """A relay with two workers."""
    yield make_relay(sshd, config={"workers": 2})


def test_every_metric_of_the_design_is_there_from_the_start(fresh: RelayProcess) -> None:
    samples = fresh.metrics()
    for name, labels in METRICS.items():
        assert samples.get(name), name
        assert all(set(sample.labels) == labels for sample in samples[name]), samples[name][0]
    assert {sample.labels["service"] for sample in samples["relay_sessions_total"]} == SERVICES
    [build] = samples["relay_build_info"]
    assert build.value == 1
    assert build.labels["asyncssh"] == asyncssh.__version__
    assert build.labels["libssh2"].startswith("1.")


async def test_bytes_move_while_the_session_runs(fresh: RelayProcess) -> None:
    def now(direction: str, service: str) -> float:
        return fresh.metric("relay_bytes_total", direction=direction, service=service)

    async with alice(fresh) as connection:
        down = await connection.create_process("git-upload-pack 'stub/half/5000000'", encoding=None)
        await down.stdout.readexactly(5_000_000)
        assert await asyncio.to_thread(now, "out", "git-upload-pack") == 5_000_000
        up = await connection.create_process("git-receive-pack 'stub/cat'", encoding=None)
        for round_ in range(1, 4):
            up.stdin.write(bytes(100_000))
            await up.stdout.readexactly(100_000)
            assert await asyncio.to_thread(now, "in", "git-receive-pack") == round_ * 100_000
            assert await asyncio.to_thread(now, "out", "git-receive-pack") == round_ * 100_000
        opened = await asyncio.to_thread(fresh.metrics)
        running = {sample.labels["service"]: sample.value for sample in opened["relay_sessions_open"] if sample.value}
        assert running == {"git-upload-pack": 1, "git-receive-pack": 1}
        assert fresh.metric("relay_connections_open") == 1
        assert fresh.audit_lines() == []  # written once, at the session's end
        for process in (down, up):
            process.stdin.write_eof()
            await process.wait_closed()
    await asyncio.to_thread(wait_until, lambda: fresh.metric("relay_connections_open") == 0)
    assert fresh.metric("relay_sessions_open") == 0
    assert await asyncio.to_thread(now, "out", "git-upload-pack") == 5_000_000  # ended sessions stay counted


async def a_day(relay: RelayProcess, sshd: Sshd) -> None:
    """Twelve sessions, which end in every way."""
    async with alice(relay) as connection:
        for command in (
            "git-upload-pack 'stub/emit/1000'",
            "git-receive-pack 'stub/exit/0'",
            "git-upload-archive 'stub/exit/0'",
            "git-lfs-authenticate 'team/app' download",
            "git-upload-pack 'stub/emit/10/37'",
            "git-upload-pack 'stub/signal/KILL'",
            "ls",
            "git-upload-pack '../x'",
            "git-upload-pack 'no/such'",
            None,
        ):
            await run(connection, command)
        gone = await connection.create_process("git-receive-pack 'stub/half/10'", encoding=None)
        await gone.stdout.readexactly(10)
        gone.channel.abort()
        await gone.channel.wait_closed()
        sshd.stop()
        await run(connection, "git-upload-pack 'stub/emit/1000'")
        sshd.start()


async def test_each_session_ends_once_in_the_metrics_and_once_in_the_audit(
    make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd]
) -> None:
    sshd = make_sshd()
    relay = make_relay(sshd)
    await a_day(relay, sshd)
    lines = await asyncio.to_thread(audited, relay, 0, 12)
    assert len({line["session"] for line in lines}) == len(lines) == 12
    assert len({line["connection"] for line in lines}) == 1
    outcomes = Counter((line["service"] or "none", line["result"]) for line in lines)
    assert outcomes == {
        ("git-upload-pack", "ok"): 1,
        ("git-receive-pack", "ok"): 1,
        ("git-upload-archive", "ok"): 1,
        ("git-lfs-authenticate", "ok"): 1,
        ("git-upload-pack", "exit"): 1,
        ("git-upload-pack", "signal"): 1,
        ("none", "client"): 2,  # ls, and an invalid repository name: not parsed as a service
        ("git-upload-pack", "policy"): 1,
        ("none", "ok"): 1,  # the greeting
        ("git-receive-pack", "client"): 1,
        ("git-upload-pack", "upstream"): 1,
    }
    samples = relay.metrics()
    counted = {(s.labels["service"], s.labels["result"]): s.value for s in samples["relay_sessions_total"] if s.value}
    assert counted == outcomes
    seconds = {s.labels["service"]: s.value for s in samples["relay_session_seconds_count"] if s.value}
    assert seconds == Counter(service for service, _ in outcomes.elements())
    carried = {(s.labels["service"], s.labels["direction"]): s.value for s in samples["relay_bytes_total"] if s.value}
    told: Counter[tuple[str, str]] = Counter()
    for line in lines:
        if line["event"] == "session":
            told[line["service"] or "none", "in"] += line["bytes_in"]
            told[line["service"] or "none", "out"] += line["bytes_out"]
    assert carried == {key: value for key, value in told.items() if value}
    rejected = {s.labels["reason"]: s.value for s in samples["relay_commands_rejected_total"] if s.value}
    assert rejected == {"not_git": 1, "malformed": 1, "denied": 1}
    assert rejected == Counter(line["reason"] for line in lines if line["event"] == "command_rejected")


def test_what_a_login_and_its_sessions_wait_for_is_measured(fresh: RelayProcess) -> None:
    for _ in range(3):
        assert fresh.ssh().run("git-upload-pack 'stub/emit/1000'").returncode == 0
    samples = fresh.metrics()
    steps = {sample.labels["step"]: sample.value for sample in samples["relay_setup_seconds_count"]}
    assert steps == {"handshake": 3, "keys": 3, "access": 3, "routes": 3, "upstream": 3}
    took = {sample.labels["step"]: sample.value for sample in samples["relay_setup_seconds_sum"]}
    assert all(0 < seconds < 60 for seconds in took.values())
    asked = {(s.labels["question"], s.labels["source"]): s.value for s in samples["relay_backend_seconds_count"]}
    assert asked == {("keys", "file"): 3, ("access", "file"): 3, ("routes", "file"): 3}
    assert fresh.metric("relay_upstream_lease_seconds_count", upstream="main") == 3
    assert fresh.metric("relay_auth_successes_total", method="publickey") == 3
    assert fresh.metric("relay_connections_total", outcome="ok") == 3
    wait_until(lambda: fresh.metric("relay_event_loop_lag_seconds_count") > samples["relay_event_loop_lag_seconds_count"][0].value)


def test_how_connections_end(fresh: RelayProcess) -> None:
    def ended(outcome: str) -> float:
        return fresh.metric("relay_connections_total", outcome=outcome)

    socket.create_connection(("127.0.0.1", fresh.port)).close()
    wait_until(lambda: ended("probe") == 1)
    with socket.create_connection(("127.0.0.1", fresh.port)) as client:
        client.sendall(b"SSH-2.0-leaves\r\n")
        client.recv(100)
    wait_until(lambda: ended("no_auth") == 1)
    with socket.create_connection(("127.0.0.1", fresh.port), timeout=20) as web:
        web.sendall(b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n")
        while web.recv(4096):
            pass
    wait_until(lambda: ended("protocol") == 1)
    fresh.ssh(key=make_key(fresh.folder / "client", "stranger")).run(None)
    wait_until(lambda: ended("auth_failed") == 1)
    fresh.ssh().run(None)
    wait_until(lambda: ended("ok") == 1)
    assert fresh.metric("relay_connections_total") == 5
    assert fresh.metric("relay_connections_open") == 0


def test_no_label_tells_who_or_what(fresh: RelayProcess) -> None:
    fresh.ssh().run("git-upload-pack 'stub/emit/1000'")
    fresh.ssh(user="mallory").run(None)
    fresh.ssh().run("git-upload-pack 'very/secret'")
    status, text = fresh.get("/metrics")
    assert status == 200
    configured = "relay_upstream_address_up{"  # the git hosts' addresses, as the configuration names them
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(configured))
    for word in ("alice", "mallory", "secret", "stub", "127.0.0.1", fresh.key.fingerprint):
        assert word not in text


def test_the_audit_line_of_a_session(fresh: RelayProcess, sshd: Sshd) -> None:
    done = fresh.ssh("SetEnv=GIT_PROTOCOL=version=2").run("git-upload-pack '/stub/emit/1000/3.git'", b"some input")
    assert done.stdout == stub_bytes(1000)
    [line] = audited(fresh, 0)
    assert set(line) == SESSION_FIELDS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert line["session"].startswith(line["connection"])
    assert 0 < line["port"] < 65536 and 0 < line["seconds"] < 60
    expected: dict[str, Any] = {
        "event": "session",
        "address": "127.0.0.1",
        "identity": "alice",
        "key": fresh.key.fingerprint,
        "service": "git-upload-pack",
        "repository": "stub/emit/1000/3",
        "protocol": "version=2",
        "operation": "",
        "upstream": "main",
        "host": f"127.0.0.1:{sshd.port}",
        "bytes_out": 1000,
        "exit_status": 3,
        "exit_signal": None,
        "result": "exit",
        "reason": "exit",
        "detail": "",
    }
    assert {name: line[name] for name in expected} == expected


def test_live_and_ready(make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd]) -> None:
    sshd = make_sshd()
    relay = make_relay(sshd)
    assert relay.get("/live") == (200, "live\n")
    wait_until(lambda: relay.get("/ready") == (200, "ready\n"))
    sshd.stop()
    wait_until(lambda: relay.get("/ready") == (503, "no_upstream\n"), message="no git host answers")
    assert relay.metric("relay_upstream_up", upstream="main") == 0
    assert relay.get("/live") == (200, "live\n")
    sshd.start()
    wait_until(lambda: relay.get("/ready") == (200, "ready\n"), 30, "the git host is found again by itself")
    assert relay.metric("relay_upstream_up", upstream="main") == 1
    assert relay.get("/")[0] == relay.get("/metrics/x")[0] == 404


def test_one_scrape_answers_for_all_workers(pair: RelayProcess) -> None:
    for _ in range(12):
        assert pair.ssh().run("git-upload-pack 'stub/emit/1000'").returncode == 0
    assert pair.metric("relay_workers") == 2
    assert pair.metric("relay_sessions_total", result="ok") == 12
    assert pair.metric("relay_bytes_total", direction="out") == 12_000
    assert pair.metric("relay_upstream_up", upstream="main") == 1
    assert pair.metric("relay_build_info") == 1
    lines = audited(pair, 0, 12, event="session")
    assert len({line["session"] for line in lines}) == 12
