"""Metrics: every documented metric, closed labels, totals that never decrease, one answer for all workers."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from relay.config import Config, UpstreamSettings
from relay.events import ConnectionRecord, Outcome, SessionRecord
from relay.model import SERVICES, Command, Exit, Identity
from relay.observe import metrics as module
from relay.observe.metrics import LoopLag, Metrics, Retired, Snapshot, merge, render
from relay.openssh.public_key import HOST_KEY_TYPES
from tests.support.metrics import METRICS
from tests.support.wait import wait_until_async

CLOSED = {
    "outcome": set(module.OUTCOMES),
    "method": set(module.AUTH_METHODS),
    "service": {*SERVICES, "none"},
    "direction": {"in", "out"},
    "step": set(module.STEPS),
    "upstream": {"main", "mirror"},
    "address": {"127.0.0.1:22", "[::1]:22"},
    "state": {"idle", "leased", "dialing"},
    "question": {"keys", "access", "routes"},
    "source": {"file", *module.SOURCES},
    "warm": {"true", "false"},
    "reason": {*module.AUTH_FAILURES, *module.REJECTIONS, *module.IDLE_REASONS, *module.WAITS},
    "result": {
        *module.RESULTS,
        *module.DIAL_RESULTS,
        *module.ANSWERS,
        *module.CACHE_RESULTS,
        *module.EXCHANGES,
        *module.SPANS,
        *module.REPLAYS,
        *module.PACKS,
        "refused",
    },
    "what": set(module.CHANGING),
    "key_type": set(HOST_KEY_TYPES),
    "part": set(module.NATIVE_PARTS),
    "switch": {"paused", "draining", "frozen"},
}

CONFIG = Config(upstreams={name: UpstreamSettings(addresses=["127.0.0.1:22", "[0::1]:22"]) for name in ("main", "mirror")})
Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: bytes) -> Values:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def scrape(*workers: Metrics, retired: Retired | None = None) -> Values:
    """A scrape as by the supervisor, through the wire format."""
    wire = [msgspec.msgpack.encode(worker.snapshot()) for worker in workers]
    snapshots = [msgspec.msgpack.decode(one, type=Snapshot) for one in wire]
    return parsed(render(merge(snapshots, retired), workers=len(workers), restarts=0, reloads=0, switches={("main", "paused"): 0}))


def value(values: Values, name: str, **labels: str) -> float:
    return values[f"relay_{name}", frozenset(labels.items())]


def new_metrics() -> Metrics:
    return Metrics(CONFIG, "1.11.1")


def new_connection() -> ConnectionRecord:
    return ConnectionRecord(id="c1", address="192.0.2.7", port=4711)


def new_session(repository: str = "team/app", service: Any = "git-upload-pack") -> SessionRecord:
    session = SessionRecord(id="c1-1", connection=new_connection(), identity=Identity(name="alice", fingerprint="SHA256:abc"))
    session.command = Command(service=service, repository=repository)
    return session


def ended(result: Any = "ok", seconds: float = 0.5) -> Outcome:
    return Outcome(result=result, reason=result, exit=Exit(status=0), seconds=seconds)


# -- the metrics -------------------------------------------------------------------------------------------------------------


def test_every_metric_of_the_design_is_there_with_its_labels_from_the_start() -> None:
    values = scrape(new_metrics())
    for name, labels in METRICS.items():
        found = [dict(key[1]).keys() for key in values if key[0] == name]
        assert found, f"{name} has no series before its first event"
        assert all(keys == labels for keys in found), name


def test_no_metric_is_there_that_the_list_does_not_name() -> None:
    histograms = {name.removesuffix("_count") for name in METRICS if name.endswith("_count")}
    known = {*METRICS, *(f"{name}{suffix}" for name in histograms for suffix in ("_bucket", "_sum"))}
    assert {name for name, _ in scrape(new_metrics())} == known


def test_every_series_of_a_closed_set_starts_at_zero() -> None:
    values = scrape(new_metrics())
    zero = {key: count for key, count in values.items() if key[0].endswith(("_total", "_count", "_bucket", "_sum"))}
    assert set(zero.values()) == {0.0}
    assert value(values, "auth_failures_total", reason="grace") == 0
    assert value(values, "sessions_total", service="git-receive-pack", result="upstream") == 0
    assert value(values, "backend_seconds_count", question="routes", source="file") == 0
    assert len([key for key in zero if key[0] == "relay_sessions_total"]) == 6 * 7


def test_build_info_tells_the_versions_and_is_1_however_many_workers_there_are() -> None:
    values = scrape(new_metrics(), new_metrics(), new_metrics())
    [(labels, one)] = [(dict(key[1]), count) for key, count in values.items() if key[0] == "relay_build_info"]
    assert one == 1
    assert labels["libssh2"] == "1.11.1"
    assert labels["asyncssh"].startswith("2.")


def test_build_info_says_none_where_ssh2_python_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "ssh2-python":
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    assert module.build_labels("1.11.1+relay-2")["ssh2_python"] == "none"


def test_each_native_part_is_1_where_it_is_used_however_many_workers_there_are() -> None:
    values = scrape(*(Metrics(CONFIG, "1.11.1", ["gcm"]) for _ in range(3)))
    assert value(values, "native", part="gcm") == 1
    assert value(values, "native", part="libssh2") == 0


def test_the_exposition_declares_types_and_leaves_out_creation_times() -> None:
    text = render(new_metrics().snapshot(), workers=1, restarts=0, reloads=0).decode()
    assert "# TYPE relay_bytes_total counter\n" in text
    assert "# TYPE relay_setup_seconds histogram\n" in text
    assert "# TYPE relay_sessions_open gauge\n" in text
    assert "_created" not in text
    assert all(line.split()[3:] for line in text.splitlines() if line.startswith("# HELP")), "a metric without a help text"


# -- the effects of events ---------------------------------------------------------------------------------------------------


def test_connections_and_logins_are_counted() -> None:
    metrics, connection = new_metrics(), new_connection()
    metrics.connection_opened(connection)
    metrics.auth_failed(connection, "unknown_key", "SHA256:x", "nobody's")
    metrics.auth_succeeded(connection, Identity(name="alice", fingerprint="SHA256:abc"))
    assert value(scrape(metrics), "connections_open") == 1
    metrics.connection_closed(connection, "lost", "reset")
    metrics.connection_refused("192.0.2.9", "limited", "too many")
    values = scrape(metrics)
    assert value(values, "connections_open") == 0
    assert value(values, "connections_total", outcome="lost") == 1
    assert value(values, "connections_total", outcome="limited") == 1
    assert value(values, "auth_failures_total", reason="unknown_key") == 1
    assert value(values, "auth_successes_total", method="publickey") == 1


def test_bytes_move_while_a_session_runs_and_stay_when_it_ended() -> None:
    metrics, session = new_metrics(), new_session()
    metrics.session_started(session)
    session.bytes_out += 1000
    assert value(scrape(metrics), "bytes_total", service="git-upload-pack", direction="out") == 1000
    session.bytes_out += 500
    session.bytes_in += 7
    values = scrape(metrics)
    assert value(values, "bytes_total", service="git-upload-pack", direction="out") == 1500
    assert value(values, "sessions_open", service="git-upload-pack") == 1
    assert value(values, "sessions_total", service="git-upload-pack", result="ok") == 0
    metrics.session_ended(session, ended(seconds=0.3))
    values = scrape(metrics)
    assert value(values, "bytes_total", service="git-upload-pack", direction="out") == 1500
    assert value(values, "bytes_total", service="git-upload-pack", direction="in") == 7
    assert value(values, "sessions_open", service="git-upload-pack") == 0
    assert value(values, "sessions_total", service="git-upload-pack", result="ok") == 1
    assert value(values, "session_seconds_bucket", service="git-upload-pack", le="0.25") == 0
    assert value(values, "session_seconds_bucket", service="git-upload-pack", le="0.5") == 1


def test_a_rejected_command_is_a_session_of_no_service() -> None:
    metrics, session = new_metrics(), new_session()
    session.command = None
    metrics.session_started(session)
    metrics.command_rejected(session, "not_git", "ls")
    metrics.session_ended(session, ended("client"))
    values = scrape(metrics)
    assert value(values, "commands_rejected_total", reason="not_git") == 1
    assert value(values, "sessions_total", service="none", result="client") == 1


def test_the_pool_is_asked_when_a_scrape_comes() -> None:
    metrics = new_metrics()
    states = {"main": {"idle": 3, "leased": 2, "dialing": 1, "waiting": 9}, "not configured": {"idle": 5}}
    metrics.pool_states = lambda: states
    states["main"]["idle"] = 4
    values = scrape(metrics)
    assert value(values, "upstream_connections", upstream="main", state="idle") == 4
    assert value(values, "upstream_connections", upstream="main", state="leased") == 2
    assert value(values, "upstream_connections_max", upstream="main") == 2 * 64
    assert value(values, "upstream_waiting", upstream="main") == 9
    assert value(values, "upstream_connections", upstream="mirror", state="idle") == 0
    assert not [key for key in values if ("upstream", "not configured") in key[1]]


def test_an_upstream_is_up_until_every_address_is_down() -> None:
    metrics = new_metrics()

    def ups(*others: Metrics) -> tuple[float, ...]:
        values = scrape(metrics, *others)
        return (
            value(values, "upstream_up", upstream="main"),
            *(value(values, "upstream_address_up", upstream="main", address=address) for address in ("127.0.0.1:22", "[::1]:22")),
        )

    assert ups() == (1, 1, 1), "presumed up before the first evidence"
    metrics.upstream_dialed("main", "127.0.0.1:22", "host_key", 0.1, "mismatch")
    assert ups() == (1, 1, 1), "one dial is not what decides"
    metrics.upstream_health("main", "127.0.0.1:22", False, "no answer")
    assert ups() == (1, 0, 1)
    metrics.upstream_health("main", "[::1]:22", False, "no answer")
    assert ups() == (0, 0, 0)
    assert ups(new_metrics()) == (1, 1, 1), "another worker reaches it"
    metrics.upstream_health("main", "[::1]:22", True)
    assert ups() == (1, 0, 1)
    metrics.upstream_health("main", "192.0.2.1:22", True)
    metrics.upstream_health("nobody", "[::1]:22", True)
    values = scrape(metrics)
    assert value(values, "upstream_up", upstream="mirror") == 1
    assert value(values, "upstream_dials_total", upstream="main", result="host_key") == 1
    assert {labels for name, labels in values if name == "relay_upstream_address_up"} == {
        frozenset({("upstream", upstream), ("address", address)}) for upstream in CLOSED["upstream"] for address in CLOSED["address"]
    }


def test_packs_are_counted_by_result_and_bytes_by_direction() -> None:
    one, other = new_metrics(), new_metrics()
    one.packs_asked(new_session(), "hit")
    one.packs_asked(new_session(), "hit")
    one.packs_asked(new_session(), "filled")
    one.packs_asked(new_session(), "../../etc/passwd")  # type: ignore[arg-type]
    one.packs_bytes("in", 1000)
    one.packs_bytes("out", 1000)
    other.packs_bytes("out", 2000)
    values = scrape(one, other)
    assert value(values, "packs_total", result="hit") == 2
    assert value(values, "packs_total", result="filled") == 1
    assert value(values, "packs_total", result="joined") == 0
    assert value(values, "packs_total", result="other") == 1
    assert value(values, "packs_bytes_total", direction="in") == 1000
    assert value(values, "packs_bytes_total", direction="out") == 3000


def test_what_is_kept_on_the_disk_is_not_the_sum_of_what_the_workers_see() -> None:
    one, other = new_metrics(), new_metrics()
    assert value(scrape(one, other), "packs_disk_bytes") == value(scrape(one, other), "packs_unusable") == 0
    one.packs_state = lambda: (5000, False)
    other.packs_state = lambda: (4000, True)
    values = scrape(one, other)
    assert value(values, "packs_disk_bytes") == 5000
    assert value(values, "packs_unusable") == 1


def test_sessions_by_an_old_name_are_counted() -> None:
    metrics = new_metrics()
    for moved_from in ("", "team/old", "team/old"):
        session = new_session()
        session.moved_from = moved_from
        metrics.session_started(session)
        metrics.session_ended(session, ended())
    assert value(scrape(metrics), "sessions_moved_total") == 2


def test_replays_are_counted_by_upstream() -> None:
    metrics, session = new_metrics(), new_session()
    session.upstream = "mirror"
    metrics.session_replayed(session, "served")
    values = scrape(metrics)
    assert value(values, "replays_total", upstream="mirror", result="served") == 1
    assert value(values, "replays_total", upstream="main", result="served") == 0


def test_leases_steps_backends_and_caches_are_counted() -> None:
    metrics = new_metrics()
    metrics.upstream_leased("main", 0.02, warm=True)
    metrics.upstream_waited("main", "away", 7.0)
    metrics.step_took("handshake", 0.0004)
    metrics.backend_asked("access", "file", 0.003, "error")
    metrics.cache_asked("keys", "stale")
    values = scrape(metrics)
    assert value(values, "upstream_leases_total", upstream="main", warm="true") == 1
    assert value(values, "upstream_lease_seconds_sum", upstream="main") == pytest.approx(0.02)
    assert value(values, "upstream_wait_seconds_sum", upstream="main", reason="away") == 7
    assert value(values, "upstream_wait_seconds_count", upstream="main", reason="paused") == 0
    assert value(values, "setup_seconds_bucket", step="handshake", le="0.0005") == 1
    assert value(values, "backend_seconds_count", question="access", source="file") == 1
    assert value(values, "backend_answers_total", question="access", source="file", result="error") == 1
    assert value(values, "cache_total", question="keys", result="stale") == 1


def test_what_is_in_no_closed_set_counts_as_other_and_never_makes_a_series() -> None:
    metrics, hostile = new_metrics(), 'x"} 1\nrelay_fake 1'
    anything: Any = hostile
    session = new_session(repository=hostile)
    for _ in range(3):
        metrics.connection_closed(new_connection(), anything)
        metrics.connection_refused(hostile, anything, hostile)
        metrics.auth_failed(new_connection(), anything, hostile, hostile)
        metrics.auth_succeeded(new_connection(), Identity(name=hostile, fingerprint=hostile, method=hostile))
        metrics.session_started(session)
        metrics.session_replayed(session, anything)
        metrics.command_rejected(session, hostile, hostile)
        metrics.session_ended(session, Outcome(result=anything, reason=hostile, exit=Exit(signal=hostile), seconds=1))
        metrics.step_took(anything, 1)
        metrics.upstream_dialed(hostile, hostile, hostile, 1, hostile)
        metrics.upstream_leased(hostile, 1, False)
        metrics.upstream_waited(hostile, anything, 1)
        metrics.upstream_health(hostile, hostile, True)
        metrics.backend_asked(anything, hostile, 1, hostile)
        metrics.backend_asked("keys", "mine", 1, "ok")
        metrics.cache_asked(anything, hostile)
    values = scrape(metrics)
    assert value(values, "connections_total", outcome="other") == 6
    assert value(values, "upstream_dials_total", upstream="other", result="other") == 3
    assert value(values, "backend_answers_total", question="keys", source="other", result="ok") == 3
    for name, labels in values:
        for label, text in labels:
            if label in CLOSED:
                assert text in CLOSED[label] | {"other"}, (name, label, text)
            else:
                assert label in {"le", "version", "python", "asyncssh", "uvloop", "ssh2_python", "libssh2"}


# -- totals never decrease ---------------------------------------------------------------------------------------------------


@dataclass
class Fleet:
    """Workers as a supervisor sees them: it keeps their last snapshots, retires ended ones, and answers scrapes."""

    retired: Retired = field(default_factory=Retired)
    workers: list[Metrics] = field(default_factory=lambda: [new_metrics(), new_metrics()])
    last: list[Snapshot] = field(default_factory=lambda: [Snapshot([]), Snapshot([])])
    live: list[list[SessionRecord]] = field(default_factory=lambda: [[], []])

    def scrape(self, mute: int | None) -> Values:
        """The answer to a scrape; `mute`: a worker that does not answer in time."""
        for number, worker in enumerate(self.workers):
            if number != mute:
                self.last[number] = worker.snapshot()
        return parsed(render(merge(self.last, self.retired), workers=2, restarts=0, reloads=0))

    def kill(self, number: int) -> None:
        self.retired.add(self.last[number])
        self.workers[number], self.last[number], self.live[number] = new_metrics(), Snapshot([]), []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "move", "move", "end", "reject", "auth", "dial", "kill", "scrape", "scrape", "mute"]),
        st.integers(0, 1),
        st.integers(0, 1 << 40),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_no_counter_of_a_fleet_ever_goes_backwards(steps: list[tuple[str, int, int]]) -> None:
    fleet, before = Fleet(), Values()
    for step, number, amount in steps:
        metrics, live = fleet.workers[number], fleet.live[number]
        if step == "start":
            session = new_session(service=SERVICES[amount % len(SERVICES)])
            metrics.session_started(session)
            live.append(session)
        elif step == "move" and live:
            session = live[amount % len(live)]
            session.bytes_in += amount
            session.bytes_out += amount // 3
        elif step in ("end", "reject") and live:
            session = live.pop(amount % len(live))
            if step == "reject":
                metrics.command_rejected(session, "denied", "")
            metrics.session_ended(session, ended("policy" if step == "reject" else "ok", amount / 1e6))
        elif step == "auth":
            metrics.auth_failed(new_connection(), "grace")
        elif step == "dial":
            metrics.upstream_dialed("main", "a:22", "ok" if amount % 2 else "dial", 0.1)
        elif step == "kill":
            fleet.kill(number)
        elif step in ("scrape", "mute"):
            after = fleet.scrape(number if step == "mute" else None)
            for key, count in before.items():
                if key[0].endswith(("_total", "_count", "_bucket", "_sum")):
                    assert after[key] >= count, key
            before = after


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["ok", "client", "upstream"]), max_size=6), min_size=1, max_size=5), st.integers(0, 4))
def test_a_merge_is_the_sum_of_its_workers_whether_they_live_or_ended(workers: list[list[str]], ended_ones: int) -> None:
    retired, living, everything = Retired(), [], [one for each in workers for one in each]
    for number, results in enumerate(workers):
        metrics = new_metrics()
        metrics.connection_opened(new_connection())
        for result in results:
            session = new_session()
            metrics.session_started(session)
            session.bytes_in = 10
            metrics.session_ended(session, ended(result))
        if number < ended_ones:
            retired.add(metrics.snapshot())
        else:
            living.append(metrics)
    values = scrape(*living, retired=retired)
    for result in set(everything):
        assert value(values, "sessions_total", service="git-upload-pack", result=result) == everything.count(result)
    if everything:
        assert value(values, "bytes_total", service="git-upload-pack", direction="in") == 10 * len(everything)
        assert value(values, "session_seconds_count", service="git-upload-pack") == len(everything)
        assert value(values, "session_seconds_bucket", service="git-upload-pack", le="+Inf") == len(everything)
    if living:
        assert value(values, "connections_open") == len(living), "a gauge ends with its worker"
    else:
        assert ("relay_connections_open", frozenset()) not in values


def test_the_supervisors_metrics_are_exposed_with_those_of_its_workers() -> None:
    on = {("main", "draining"): 2}
    values = parsed(render(merge([new_metrics().snapshot()]), workers=4, restarts=2, reloads=1, refused=3, refused_since=7.0, switches=on))
    assert value(values, "upstream_switches", upstream="main", switch="draining") == 2
    assert value(values, "workers") == 4
    assert value(values, "worker_restarts_total") == 2
    assert value(values, "reloads_total", result="ok") == 1
    assert value(values, "reloads_total", result="refused") == 3
    assert value(values, "change_not_taken_since_seconds", what="configuration") == 7
    assert value(values, "change_not_taken_since_seconds", what="keys") == 0


def test_the_time_of_a_change_not_in_force_is_that_of_its_first_report_and_0_when_in_force() -> None:
    metrics, other = new_metrics(), new_metrics()
    before = time.time()
    metrics.change_reported("access", ["access.toml:3: bad"])
    first = value(scrape(metrics, other), "change_not_taken_since_seconds", what="access")
    assert before <= first <= time.time()
    metrics.change_reported("access", ["access.toml:4: bad, too"])
    assert metrics.untaken == {"access": (first, "access.toml:4: bad, too")}
    metrics.change_reported("access", [])
    assert value(scrape(metrics, other), "change_not_taken_since_seconds", what="access") == 0


def test_a_scrape_of_a_thousand_sessions_costs_as_many_samples_as_one_of_none() -> None:
    idle, busy = new_metrics(), new_metrics()
    for _ in range(1000):
        busy.session_started(new_session())
    count = [sum(len(family.samples) for family in metrics.snapshot().families) for metrics in (idle, busy)]
    assert count[0] == count[1]
    assert value(scrape(busy), "sessions_open", service="git-upload-pack") == 1000


# -- the loop ----------------------------------------------------------------------------------------------------------------


async def test_a_blocked_event_loop_is_counted_as_lag() -> None:
    metrics = new_metrics()
    lag = LoopLag(metrics, interval=0.01)
    lag.start()
    try:
        await wait_until_async(lambda: value(scrape(metrics), "event_loop_lag_seconds_count") >= 2)
        held, until = 0.2, time.monotonic() + 0.2
        while time.monotonic() < until:
            pass
        await wait_until_async(lambda: value(scrape(metrics), "event_loop_lag_seconds_sum") >= held - 0.02)
    finally:
        await lag.stop()
    assert "loop lag" not in {task.get_name() for task in asyncio.all_tasks()}


def test_when_a_host_certificate_runs_out_is_the_same_for_all_workers() -> None:
    one, other = new_metrics(), new_metrics()
    assert value(scrape(one, other), "host_certificate_valid_before_seconds", key_type="ssh-ed25519") == 0
    one.host_certificates_end = other.host_certificates_end = lambda: {"ssh-ed25519": 1_900_000_000.0}
    values = scrape(one, other)
    assert value(values, "host_certificate_valid_before_seconds", key_type="ssh-ed25519") == 1_900_000_000
    assert value(values, "host_certificate_valid_before_seconds", key_type="ssh-rsa") == 0
