"""Metrics: an Observer that counts events for Prometheus; label values come from closed sets, never from a client.

Connections, logins and sessions are counted as they end. What changes during a session (bytes, open sessions, states of upstream
connections) is read from the live records at each scrape, so that the hot path increments two integers and no more.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import metadata
from itertools import product
from typing import get_args

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from relay.address import format_address, parse_address
from relay.config import Config, connections_most
from relay.errors import Why
from relay.events import (
    AuthFailure,
    BackendQuestion,
    Changing,
    ConnectionOutcome,
    ConnectionRecord,
    Observer,
    Outcome,
    PacksDirection,
    PacksResult,
    ReplayResult,
    SessionRecord,
    SourceKind,
    Step,
    TraceResult,
    WaitsFor,
)
from relay.model import SERVICES, Identity
from relay.observe.snapshot import Family, MergeRule, MetricKind, Retired, Snapshot, Untaken, merge, supervision
from relay.observe.tallies import OTHER, Counts, Timings
from relay.openssh.public_key import HOST_KEY_TYPES
from relay.tasks import Tasks

__all__ = ["LoopLag", "Metrics", "Retired", "Snapshot", "build_labels", "merge", "render"]

NO_SERVICE = "none"  # a shell session, which gets the greeting, or a session refused before its command was parsed

SERVICE_LABELS = (*SERVICES, NO_SERVICE)
OUTCOMES: tuple[str, ...] = get_args(ConnectionOutcome)
SOURCES: tuple[str, ...] = get_args(SourceKind)
AUTH_FAILURES: tuple[str, ...] = get_args(AuthFailure)
AUTH_METHODS = ("publickey", "certificate")
STEPS: tuple[str, ...] = get_args(Step)
QUESTIONS: tuple[BackendQuestion, ...] = get_args(BackendQuestion)
RESULTS = ("ok", "exit", "signal", "client", "policy", "upstream", "relay")
REJECTIONS = (
    *("not_git", "malformed", "denied", "undecided", "too_many", "identity", "repository", "upstream"),
    *("ref", "read_only", "frozen", "audit"),
)
REPLAYS: tuple[str, ...] = get_args(ReplayResult)
PACKS: tuple[str, ...] = get_args(PacksResult)
IDLE_REASONS = ("client_idle", "client_idle_busy")
DIRECTIONS = ("in", "out")  # in: client to git host
DIAL_RESULTS = ("ok", "dial", "timeout", "host_key", "handshake", "auth", "channel")
WAITS: tuple[str, ...] = get_args(WaitsFor)
POOL_STATES = ("idle", "leased", "dialing")
ANSWERS = ("ok", "no", *get_args(Why), "error")
CACHE_RESULTS = ("hit", "negative", "miss", "joined", "stale", "shared")
EXCHANGES = ("ok", *get_args(Why))
SPANS: tuple[str, ...] = get_args(TraceResult)
CHANGING: tuple[str, ...] = get_args(Changing)
NATIVE_PARTS = ("libssh2", "gcm")

SETUP_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SESSION_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
BACKEND_BUCKETS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LAG_INTERVAL_SECONDS = 0.25
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

# Metrics whose greatest value of all workers is exposed, not the sum. An upstream is up when any worker reaches it.
_GREATEST = frozenset(
    {
        "relay_build_info",
        "relay_native",
        "relay_keys_left_out",  # all workers read the same files
        "relay_upstream_up",
        "relay_upstream_address_up",
        "relay_change_not_taken_since_seconds",
        "relay_packs_disk_bytes",  # all workers share the folder
        "relay_packs_unusable",
        "relay_host_certificate_valid_before_seconds",
    }
)
_KINDS: Mapping[str, MetricKind] = {"counter": "counter", "gauge": "gauge", "histogram": "histogram"}


class Metrics(Observer):
    """The metrics of one worker. Not thread-safe: all methods are called in the event loop's thread.

    `config` gives the names of upstreams and the kinds of backends; `libssh2` is its version, for build_info; `native` has those of
    NATIVE_PARTS that are used. A process without a supervisor may expose `registry` itself. `pool_states` is called at each scrape: it
    returns for each upstream the number of connections that are idle, leased and dialing, and of sessions that are waiting for one.
    `packs_state`, too: the bytes of all answers that are kept, and whether nothing can be kept.
    """

    def __init__(self, config: Config, libssh2: str, native: Collection[str] = ()) -> None:
        self.registry = CollectorRegistry()
        self.pool_states: Callable[[], Mapping[str, Mapping[str, int]]] = dict
        self.keys_left_out: Callable[[], int] = lambda: 0  # called at each scrape
        self.packs_state: Callable[[], tuple[int, bool]] = lambda: (0, False)
        self.host_certificates_end: Callable[[], Mapping[str, float]] = dict  # by type of key, when its certificate runs out
        self.untaken: dict[str, tuple[float, str]] = {}  # what is not in force, since when (seconds since the epoch), and the first reason
        self._upstreams = tuple(config.upstreams)
        self._connections_max = {name: connections_most(one) for name, one in config.upstreams.items()}
        self._sources = {question: str(getattr(config, question).__struct_config__.tag) for question in QUESTIONS}
        self._counts: list[Counts] = []
        self._timings: list[Timings] = []
        self._live: dict[int, SessionRecord] = {}  # by id(), as records are not hashable
        self._ended_bytes = dict.fromkeys(product(SERVICE_LABELS, DIRECTIONS), 0)  # of sessions that ended
        self._packs_bytes = dict.fromkeys(DIRECTIONS, 0)
        self._connections_open = 0
        # upstream -> address -> whether the address is up, None until known; the addresses are those of the configuration, a closed set
        self._reached: dict[str, dict[str, bool | None]] = {
            name: dict.fromkeys(format_address(*parse_address(address)) for address in upstream.addresses)
            for name, upstream in config.upstreams.items()
        }

        upstream = self._upstreams
        self._connections = self._counter("connections", "Client connections that ended, by outcome.", outcome=OUTCOMES)
        self._by_source = self._counter(
            "connections_by_source",
            "Client connections that ended, without the refused ones, by what is known of their source.",
            source=SOURCES,
        )
        self._auth_failures = self._counter("auth_failures", "Refused authentications, by reason.", reason=AUTH_FAILURES)
        self._auth_successes = self._counter("auth_successes", "Successful authentications, by method.", method=AUTH_METHODS)
        self._rejected = self._counter("commands_rejected", "Commands that were refused, by reason.", reason=REJECTIONS)
        self._refused_channels = self._counter(
            "channels_refused", "Channels that a draining worker refused to open; OpenSSH's client then opens a new connection."
        )
        self._sessions = self._counter("sessions", "Sessions that ended, by result.", service=SERVICE_LABELS, result=RESULTS)
        self._idle = self._counter(
            "sessions_idle",
            "Sessions ended because their client was idle; busy: other sessions waited for the git host.",
            reason=IDLE_REASONS,
        )
        self._moved = self._counter("sessions_moved", "Sessions that asked for a repository by a name from which it has moved.")
        self._replays = self._counter(
            "replays",
            "Sessions whose git host was lost when another connection could go on with them, by what came of it.",
            upstream=upstream,
            result=REPLAYS,
        )
        self._packs = self._counter("packs", "Fetches that [packs] could keep, by how they were answered.", result=PACKS)
        self._session_seconds = self._histogram(
            "session_seconds", "Seconds from the command to the end of its session.", SESSION_BUCKETS, service=SERVICE_LABELS
        )
        self._setup_seconds = self._histogram(
            "setup_seconds", "Seconds that a client waits before git begins, by step.", SETUP_BUCKETS, step=STEPS
        )
        self._dials = self._counter("upstream_dials", "Connections dialed to git hosts, by result.", upstream=upstream, result=DIAL_RESULTS)
        self._leases = self._counter(
            "upstream_leases",
            "Connections leased to sessions; warm: the connection was open and logged in already.",
            upstream=upstream,
            warm=("true", "false"),
        )
        self._lease_seconds = self._histogram(
            "upstream_lease_seconds", "Seconds that a session waited for its connection to the git host.", SETUP_BUCKETS, upstream=upstream
        )
        self._wait_seconds = self._histogram(
            "upstream_wait_seconds",
            "Seconds that a session stood in line for a git host, by what kept it when it came.",
            SETUP_BUCKETS,
            upstream=upstream,
            reason=WAITS,
        )
        self._backend_seconds = self._histogram(
            "backend_seconds", "Seconds that a keys, access or routes backend took to answer.", BACKEND_BUCKETS, question=(), source=()
        )
        self._backend_answers = self._counter(
            "backend_answers", "Answers of keys, access and routes backends, by result.", question=(), source=(), result=()
        )
        for question, source in self._sources.items():
            self._backend_seconds.known(question, source)
            for result in ANSWERS:
                self._backend_answers.known(question, source, result)
        self._cache = self._counter(
            "cache", "Questions to the cache in front of a backend, by result.", question=QUESTIONS, result=CACHE_RESULTS
        )
        self._exchanges = self._counter(
            "shared_exchanges", "Exchanges with other relays through the shared Redis, by result.", result=EXCHANGES
        )
        self._spans = self._counter("trace_spans", "Spans of [tracing], by what became of them.", result=SPANS)
        self._lag = self._histogram("event_loop_lag_seconds", "Seconds by which the event loop ran a timer late.", LAG_BUCKETS)
        build = build_labels(libssh2)
        Gauge("relay_build_info", "Versions; always 1.", tuple(build), registry=self.registry).labels(**build).set(1)
        parts = Gauge("relay_native", "1 for each part of git-ssh-relay-native that is used, else 0.", ("part",), registry=self.registry)
        for part in NATIVE_PARTS:
            parts.labels(part=part).set(part in native)
        self.registry.register(_Live(self._tallied))
        self.registry.register(_Live(self._now))

    # -- the scrape ------------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """All metrics as plain values, to be sent to the supervisor."""
        families = []
        for metric in self.registry.collect():
            skip, start = f"{metric.name}_created", len(metric.name)
            samples = [
                (sample.name[start:], tuple(sample.labels.items()), float(sample.value)) for sample in metric.samples if sample.name != skip
            ]
            rule: MergeRule = "max" if metric.name in _GREATEST else "sum"
            families.append(Family(metric.name, _KINDS[metric.type], metric.documentation, rule, samples))
        return Snapshot(families, [Untaken(what, since, problem) for what, (since, problem) in self.untaken.items()])

    def loop_lagged(self, seconds: float) -> None:
        """A timer of the event loop ran `seconds` late."""
        self._lag.add(seconds)

    def _tallied(self) -> Iterator[Metric]:
        """The families that events count."""
        for counts in self._counts:
            counter = CounterMetricFamily(counts.name, counts.text, labels=counts.labels)
            for values, count in counts.series.items():
                counter.add_metric(values, count)
            yield counter
        for timings in self._timings:
            histogram = HistogramMetricFamily(timings.name, timings.text, labels=timings.labels)
            bounds = [*(repr(float(bound)) for bound in timings.bounds), "+Inf"]
            for values, at_most, total in timings.series():
                histogram.add_metric(values, list(zip(bounds, at_most, strict=True)), total)
            yield histogram

    def _now(self) -> Iterator[Metric]:
        """The families that are read from live records at a scrape."""
        open_sessions = dict.fromkeys(SERVICE_LABELS, 0)
        moved = self._ended_bytes.copy()
        for session in self._live.values():
            service = _service(session)
            open_sessions[service] += 1
            moved[service, "in"] += session.bytes_in
            moved[service, "out"] += session.bytes_out
        yield GaugeMetricFamily("relay_connections_open", "Open client connections.", value=self._connections_open)
        sessions = GaugeMetricFamily("relay_sessions_open", "Open sessions, by service.", labels=("service",))
        for service, count in open_sessions.items():
            sessions.add_metric((service,), count)
        yield sessions
        carried = CounterMetricFamily(
            "relay_bytes", "Bytes carried, counted while a session runs; in: client to git host.", labels=("service", "direction")
        )
        for (service, direction), count in moved.items():
            carried.add_metric((service, direction), count)
        yield carried
        yield from self._packs_now()
        certified = GaugeMetricFamily(
            "relay_host_certificate_valid_before_seconds",
            "When the certificate of a host key runs out, in seconds since the epoch; 0 without one, or if it never does.",
            labels=("key_type",),
        )
        ends = self.host_certificates_end()
        for key_type in HOST_KEY_TYPES:
            certified.add_metric((key_type,), ends.get(key_type, 0.0))
        yield certified
        yield from self._keys_now()
        connections = GaugeMetricFamily("relay_upstream_connections", "Connections to git hosts, by state.", labels=("upstream", "state"))
        most = GaugeMetricFamily(
            "relay_upstream_connections_max", "Limit of connections to a git host, of all workers.", labels=("upstream",)
        )
        waiting = GaugeMetricFamily(
            "relay_upstream_waiting", "Sessions that are waiting for a connection to a git host.", labels=("upstream",)
        )
        reached = GaugeMetricFamily(
            "relay_upstream_up", "1 unless every address of a git host failed its checks or dials.", labels=("upstream",)
        )
        answers = GaugeMetricFamily(
            "relay_upstream_address_up", "1 unless this address of a git host failed its checks or dials.", labels=("upstream", "address")
        )
        states = self.pool_states()
        for name in self._upstreams:
            pool = states.get(name, {})
            for state in POOL_STATES:
                connections.add_metric((name, state), pool.get(state, 0))
            most.add_metric((name,), self._connections_max[name])
            waiting.add_metric((name,), pool.get("waiting", 0))
            addresses = self._reached[name]
            reached.add_metric((name,), float(any(up is not False for up in addresses.values())))
            for address, up in addresses.items():
                answers.add_metric((name, address), float(up is not False))
        yield from (connections, most, waiting, reached, answers)
        untaken = GaugeMetricFamily(
            "relay_change_not_taken_since_seconds",
            "When a change was first found not to be in force, in seconds since the epoch; 0 when all changes are in force.",
            labels=("what",),
        )
        for what in CHANGING:
            untaken.add_metric((what,), self.untaken.get(what, (0.0, ""))[0])
        yield untaken

    def _keys_now(self) -> Iterator[Metric]:
        help_ = 'Lines of files of keys that are not used, as faulty_lines = "skip" leaves them out.'
        yield GaugeMetricFamily("relay_keys_left_out", help_, value=self.keys_left_out())

    def _packs_now(self) -> Iterator[Metric]:
        moved = CounterMetricFamily(
            "relay_packs_bytes", "Bytes of answers; in: from git hosts to the disk, out: from there to clients.", labels=("direction",)
        )
        for direction, count in self._packs_bytes.items():
            moved.add_metric((direction,), count)
        disk_bytes, unusable = self.packs_state()
        yield moved
        yield GaugeMetricFamily("relay_packs_disk_bytes", "Bytes of all answers that are kept on this machine.", value=disk_bytes)
        yield GaugeMetricFamily(
            "relay_packs_unusable",
            "1 while nothing can be kept: the folder of [packs] cannot be used, or its disk is full.",
            value=unusable,
        )

    # -- the observer ----------------------------------------------------------------------------------------------------

    def connection_opened(self, connection: ConnectionRecord) -> None:
        self._connections_open += 1

    def connection_closed(self, connection: ConnectionRecord, outcome: ConnectionOutcome, detail: str = "") -> None:
        self._connections_open -= 1
        self._connections.add(outcome)
        self._by_source.add(connection.source)

    def connection_refused(self, address: str, reason: ConnectionOutcome, detail: str) -> None:
        self._connections.add(reason)

    def auth_failed(self, connection: ConnectionRecord, reason: AuthFailure, fingerprint: str = "", detail: str = "") -> None:
        self._auth_failures.add(reason)

    def auth_succeeded(self, connection: ConnectionRecord, identity: Identity) -> None:
        self._auth_successes.add(identity.method)

    def channel_refused(self, connection: ConnectionRecord) -> None:
        self._refused_channels.add()

    def command_rejected(self, session: SessionRecord, reason: str, detail: str) -> None:
        self._rejected.add(reason)

    def session_started(self, session: SessionRecord) -> None:
        self._live[id(session)] = session

    def session_replayed(self, session: SessionRecord, result: ReplayResult) -> None:
        self._replays.add(session.upstream, result)

    def packs_asked(self, session: SessionRecord, result: PacksResult) -> None:
        self._packs.add(result)

    def packs_bytes(self, direction: PacksDirection, count: int) -> None:
        self._packs_bytes[direction] += count

    def session_ended(self, session: SessionRecord, outcome: Outcome) -> None:
        service = _service(session)
        self._live.pop(id(session), None)
        self._ended_bytes[service, "in"] += session.bytes_in
        self._ended_bytes[service, "out"] += session.bytes_out
        self._sessions.add(service, outcome.result)
        if session.moved_from:
            self._moved.add()
        self._session_seconds.add(outcome.seconds, service)
        if outcome.reason in IDLE_REASONS:
            self._idle.add(outcome.reason)

    def step_took(self, step: Step, seconds: float) -> None:
        self._setup_seconds.add(seconds, step)

    def upstream_dialed(self, upstream: str, address: str, result: str, seconds: float, detail: str = "") -> None:
        self._dials.add(upstream, result)

    def upstream_leased(self, upstream: str, seconds: float, warm: bool) -> None:
        self._leases.add(upstream, "true" if warm else "false")
        self._lease_seconds.add(seconds, upstream)

    def upstream_waited(self, upstream: str, waits_for: WaitsFor, seconds: float) -> None:
        self._wait_seconds.add(seconds, upstream, waits_for)

    def upstream_health(self, upstream: str, address: str, up: bool, detail: str = "") -> None:
        if address in (addresses := self._reached.get(upstream, {})):
            addresses[address] = up

    def backend_asked(self, question: BackendQuestion, source: str, seconds: float, result: str) -> None:
        labels = (question, source if self._sources.get(question) == source else OTHER)
        self._backend_seconds.add(seconds, *labels)
        self._backend_answers.add(*labels, result)

    def cache_asked(self, question: BackendQuestion, result: str) -> None:
        self._cache.add(question, result)

    def shared_exchanged(self, result: str) -> None:
        self._exchanges.add(result)

    def spans_sent(self, result: TraceResult, count: int) -> None:
        self._spans.add(result, by=count)

    def change_reported(self, what: str, problems: list[str]) -> None:
        if not problems:
            self.untaken.pop(what, None)
        elif what in CHANGING:
            self.untaken[what] = (self.untaken.get(what, (time.time(), ""))[0], problems[0])

    # -- declaring -------------------------------------------------------------------------------------------------------

    def _counter(self, name: str, text: str, **labels: Collection[str]) -> Counts:
        self._counts.append(Counts(f"relay_{name}", text, **labels))
        return self._counts[-1]

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], **labels: Collection[str]) -> Timings:
        self._timings.append(Timings(f"relay_{name}", text, buckets, **labels))
        return self._timings[-1]


class LoopLag:
    """Sets a timer every `interval` seconds and counts how late it ran: sessions wait as long for the event loop."""

    def __init__(self, metrics: Metrics, interval: float = LAG_INTERVAL_SECONDS) -> None:
        self._metrics = metrics
        self._interval = interval
        self._tasks = Tasks()

    def start(self) -> None:
        """Starts to sample, in the running loop."""
        self._tasks.start(self._sample(), "loop lag")

    async def stop(self) -> None:
        await self._tasks.cancel()

    async def _sample(self) -> None:
        while True:
            # not loop.time(): uvloop updates it once per iteration, so it hides the time that callbacks of this iteration took
            due = time.monotonic() + self._interval
            await asyncio.sleep(self._interval)
            self._metrics.loop_lagged(max(0.0, time.monotonic() - due))


def render(
    snapshot: Snapshot,
    *,
    workers: int,
    restarts: int,
    reloads: int,
    refused: int = 0,
    refused_since: float = 0.0,
    switches: Mapping[tuple[str, str], int] | None = None,
) -> bytes:
    """The Prometheus text exposition, version 0.0.4, of all workers and their supervisor."""
    families = merge([snapshot, Snapshot(supervision(workers, restarts, reloads, refused, refused_since, switches))]).families
    return generate_latest(_Live(lambda: _metrics(families)))


def build_labels(libssh2: str) -> dict[str, str]:
    """The labels of build_info: versions of the relay and its libraries."""
    return {
        "version": metadata.version("git-ssh-relay"),
        "python": platform.python_version(),
        "asyncssh": metadata.version("asyncssh"),
        "uvloop": metadata.version("uvloop"),
        "ssh2_python": _installed("ssh2-python"),
        "libssh2": libssh2,
    }


def _installed(distribution: str) -> str:
    """Its version; "none" in an environment without it, as in the image, which has git-ssh-relay-native alone."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"


class _Live(Collector):
    """Calls `families` at each scrape."""

    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return self._families()


def _metrics(families: list[Family]) -> Iterator[Metric]:
    for family in families:
        metric = Metric(family.name, family.help, family.kind)
        metric.samples = [Sample(family.name + suffix, dict(labels), value) for suffix, labels, value in family.samples]
        yield metric


def _service(session: SessionRecord) -> str:
    return session.command.service if session.command is not None else NO_SERVICE
