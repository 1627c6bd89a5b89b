"""The scenarios, in the order in which a run measures them."""

from __future__ import annotations

from types import ModuleType

from benchmarks.scenarios import bulk, idle, latency, mixed, scale, sessions, shield, storm

SCENARIOS: dict[str, ModuleType] = {
    "latency": latency,
    "sessions": sessions,
    "bulk": bulk,
    "mixed": mixed,
    "idle": idle,
    "scale": scale,
    "shield": shield,
    "storm": storm,
}
