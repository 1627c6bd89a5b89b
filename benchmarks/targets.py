"""The project's targets, each computed from the ratios of one run, with the verdict met, missed or not measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from benchmarks.contenders import Profile
from benchmarks.figures import Spread
from benchmarks.render import figure
from benchmarks.results import Results
from benchmarks.scenarios import bulk, idle, latency, mixed, sessions, shield, storm

Verdict = Literal["met", "missed", "not measured"]
CLIENTS = 16
IDLE = (1_000, 5_000)


class Target(NamedTuple):
    """`limit` is the most (`<=`) or the least (`>=`) that meets it; `measured` is None if the run has no measurement for it."""

    what: str
    sign: Literal["<=", ">="]
    limit: float
    unit: str
    measured: Spread | None

    @property
    def verdict(self) -> Verdict:
        """Judged by the value over all rounds, not by the best round."""
        if self.measured is None:
            return "not measured"
        value = self.measured.value
        return "met" if (value <= self.limit if self.sign == "<=" else value >= self.limit) else "missed"

    @property
    def limit_text(self) -> str:
        return f"{self.sign} {self.limit:g} {self.unit}"

    @property
    def measured_text(self) -> str:
        return "-" if self.measured is None else f"{figure(self.measured)} {self.unit}"


def targets(results: Results) -> list[Target]:
    """Every target; a row about two contenders, ciphers or directions becomes one row for each."""
    parts = (_latency, _sessions, _bulk, _mixed, _idle, _shield, _storm)
    return [target for part in parts for target in part(results)]


def _latency(results: Results) -> Iterator[Target]:
    rows = (
        (Profile.STOCK, "direct", 0.35, "as a stock client negotiates"),
        (Profile.PINNED, "direct", 0.5, "same key exchange pinned"),
        (Profile.STOCK, "go", 0.48, "as a stock client negotiates"),
        (Profile.PINNED, "go", 0.48, "same key exchange pinned"),
    )
    for profile, other, limit, how in rows:
        measured = results.ratio(latency.NAME, latency.case(profile, 1), latency.TIME, ("relay", other), "p50")
        yield Target(f"ls-remote p50, warm pool, {how}", "<=", limit, f"x {other}", measured)


def _sessions(results: Results) -> Iterator[Target]:
    for other, limit in (("direct", 0.12), ("go", 0.12)):
        measured = results.ratio(sessions.NAME, sessions.case(1), sessions.TIME, ("relay", other), "p50")
        yield Target("a whole session by a library client, p50", "<=", limit, f"x {other}", measured)
    for other, limit in (("direct", 5.0), ("go", 6.0)):
        measured = results.ratio(sessions.NAME, sessions.case(CLIENTS), sessions.RATE, ("relay", other))
        yield Target(f"sessions per second, {CLIENTS} clients", ">=", limit, f"x {other}", measured)
    measured = results.ratio(sessions.NAME, sessions.case(CLIENTS), sessions.RELAY_CPU, ("relay", "go"))
    yield Target(f"relay CPU per session, warm pool, {CLIENTS} clients", "<=", 0.65, "x go", measured)


def _bulk(results: Results) -> Iterator[Target]:
    limits = {
        (Profile.STOCK, bulk.DOWN): (0.8, 1.3),
        (Profile.STOCK, bulk.UP): (0.8, 1.3),
        (Profile.GCM, bulk.DOWN): (0.85, 1.5),
        (Profile.GCM, bulk.UP): (0.75, 1.5),
    }
    for (profile, what), of_each in limits.items():
        for other, limit in zip(("direct", "go"), of_each, strict=True):
            measured = results.ratio(bulk.NAME, bulk.case(profile, what), bulk.RATE, ("relay", other))
            yield Target(f"bulk, one stream {what}, {profile.value} ciphers", ">=", limit, f"x {other}", measured)
    for profile, what in limits:
        measured = results.ratio(bulk.NAME, bulk.case(profile, what), bulk.RELAY_CPU, ("relay", "go"))
        yield Target(f"relay CPU per GB, one stream {what}, {profile.value} ciphers", "<=", 0.7, "x go", measured)
    for what in (bulk.DOWN, bulk.UP):
        measured = results.ratio(bulk.NAME, bulk.case(Profile.GCM, what), bulk.RELAY_CPU, ("relay", "floor"))
        yield Target(f"relay CPU per GB, one stream {what}, {Profile.GCM.value} ciphers", "<=", 1.35, "x floor", measured)


def _mixed(results: Results) -> Iterator[Target]:
    for relay in ("relay", "relay, packs"):
        measured = results.ratio(mixed.NAME, mixed.CASE, mixed.LOADED, (relay, "direct"), "p99")
        yield Target(f"ls-remote p99 during 4 bulk clones{relay.removeprefix('relay')}", "<=", 0.25, "x direct", measured)


def _idle(results: Results) -> Iterator[Target]:
    for connections in IDLE:
        series = results.find(idle.NAME, idle.case(connections), idle.RSS, "relay")
        yield Target(f"RSS per idle connection, {connections:,} held", "<=", 40.0, "kB", None if series is None else series.spread())


def _shield(results: Results) -> Iterator[Target]:
    series = results.find(shield.NAME, shield.CASE, shield.LS_REMOTE_ERRORS, "relay")
    yield Target("ls-remotes that fail over a restart of the git host", "<=", 0.0, "%", None if series is None else series.spread())


def _storm(results: Results) -> Iterator[Target]:
    rows = ((storm.HOST_CPU, "median", 0.06), (storm.FIRST, "p50", 0.2), (storm.WALL, "median", 0.5))
    for case in (storm.FULL, storm.SHALLOW):
        for quantity, statistic, limit in rows:
            measured = results.ratio(storm.NAME, case, quantity, ("relay, packs", "direct"), statistic)
            what = quantity if statistic == "median" else f"{quantity}, {statistic}"
            yield Target(f"equal {case}: {what}", "<=", limit, "x direct", measured)
    for quantity in (storm.WALL, storm.RELAY_CPU):
        measured = results.ratio(storm.NAME, storm.UNEQUAL, quantity, ("relay, packs", "relay"))
        yield Target(f"{storm.UNEQUAL}, none of them a hit: {quantity}", "<=", 1.03, "x relay without packs", measured)
