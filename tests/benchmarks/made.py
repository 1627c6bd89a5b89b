"""Made-up results for tests of computations."""

from __future__ import annotations

from benchmarks.contenders import Profile
from benchmarks.figures import Series
from benchmarks.results import Failure, Results
from benchmarks.scenarios import bulk, idle, latency, mixed, sessions
from benchmarks.sizes import TINY

CONTENDERS = {"direct": 10.0, "forced": 22.0, "go": 8.0, "relay": 3.0}  # ms, the value of every duration


def made() -> Results:
    """A run in which the relay takes 3 ms, direct 10 and go 8, with throughputs in inverse proportion; two rounds."""
    results = Results("2026-01-01T00:00:00+00:00", TINY, {"processor": "2 x a | strange name"})
    results.contenders = {name: f"about {name}" for name in CONTENDERS}
    results.methods = {"latency": "How latency is measured.", "sessions": "How sessions are measured.", "bulk": "How bulk is."}
    for name, cost in CONTENDERS.items():
        for profile in (Profile.STOCK, Profile.PINNED):
            _add(results, latency.NAME, latency.case(profile, 1), latency.TIME, name, cost, ("p50", "p95", "p99"))
        for clients in (1, 16):
            case = sessions.case(clients)
            _add(results, sessions.NAME, case, sessions.TIME, name, cost, ("p50", "p99"))
            _add(results, sessions.NAME, case, sessions.RATE, name, 1000 / cost)
            if name != "direct":
                _add(results, sessions.NAME, case, sessions.RELAY_CPU, name, cost / 2)
        for profile in bulk.PROFILES:
            for what in (bulk.DOWN, bulk.UP):
                _add(results, bulk.NAME, bulk.case(profile, what), bulk.RATE, name, 1000 / cost)
                if name != "direct":
                    _add(results, bulk.NAME, bulk.case(profile, what), bulk.RELAY_CPU, name, cost)
        _add(results, mixed.NAME, mixed.CASE, mixed.UNLOADED, name, cost, ("p50", "p95", "p99"))
        _add(results, mixed.NAME, mixed.CASE, mixed.LOADED, name, cost * 4, ("p50", "p95", "p99"))
        _add(results, idle.NAME, idle.case(1000), idle.RSS, name, cost * 10)
    _add(results, mixed.NAME, mixed.CASE, mixed.LOADED, "relay, packs", 8.0, ("p50", "p95", "p99"))
    for what in (bulk.DOWN, bulk.UP):
        _add(results, bulk.NAME, bulk.case(Profile.GCM, what), bulk.RELAY_CPU, "floor", 2.0)
    results.failures = [Failure("bulk", bulk.case(Profile.GCM, bulk.CLONE), "forced", "it said\nno | twice")]
    return results


def _add(
    results: Results, scenario: str, case: str, quantity: str, contender: str, value: float, statistics: tuple[str, ...] = ("median",)
) -> None:
    rounds = ((value,), (value * 1.5,))
    results.series.append(Series(scenario, case, quantity, contender, "unit", "lower", statistics, rounds))
