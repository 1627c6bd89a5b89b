"""How much each scenario does: one table, a row for each way to run the suite."""

from __future__ import annotations

import msgspec

MIB = 1 << 20
GIB = 1 << 30


class Sizes(msgspec.Struct, frozen=True):
    """The sizes of one run. Bytes, seconds and counts are for one turn of a contender; `rounds` is the number of turns of each."""

    name: str
    rounds: int
    latency_samples: int  # ls-remotes one at a time
    latency_together: int  # ls-remotes at once ...
    latency_together_samples: int  # ... and how many in all
    session_clients: tuple[int, ...]
    session_seconds: float
    session_warm: int  # sessions before the first turn
    floor_sessions: int  # of a turn of the floor
    stream_bytes: int
    stream_rounds: int
    streams_at_once: int
    streams_bytes: int  # of each stream, when there are several
    repository_bytes: int
    repository_rounds: int
    mixed_clones: int
    mixed_samples: int
    mixed_rounds: int
    idle_connections: tuple[int, ...]
    idle_rounds: int
    idle_forking_max: int  # the most for a contender that forks for each connection
    scale_clients: int
    scale_seconds: float
    scale_bytes: int  # of each of `streams_at_once`
    scale_rounds: int
    shield_seconds: float  # of a turn, in which the git host restarts
    shield_down_seconds: float
    shield_every_seconds: float  # between two attempts of one kind
    shield_rounds: int
    storm_repository_bytes: int
    storm_fetches: int  # equal ones in a turn ...
    storm_together: int  # ... and how many at once
    storm_git_clones: int  # by real git ...
    storm_git_together: int  # ... and how many at once
    storm_unequal: int  # fetches that each ask for something else
    storm_rounds: int
    pool_idle: int  # warm connections of each worker of the relay


FULL = Sizes(
    name="full",
    rounds=5,
    latency_samples=20,
    latency_together=16,
    latency_together_samples=48,
    session_clients=(1, 16, 64),
    session_seconds=4.0,
    session_warm=64,
    floor_sessions=2_000,
    stream_bytes=1 * GIB,
    stream_rounds=5,
    streams_at_once=4,
    streams_bytes=GIB // 8,
    repository_bytes=1_000_000_000,
    repository_rounds=1,
    mixed_clones=4,
    mixed_samples=40,
    mixed_rounds=3,
    idle_connections=(1_000, 5_000),
    idle_rounds=2,
    idle_forking_max=1_000,
    scale_clients=16,
    scale_seconds=4.0,
    scale_bytes=GIB // 8,
    scale_rounds=3,
    shield_seconds=12.0,
    shield_down_seconds=3.0,
    shield_every_seconds=0.25,
    shield_rounds=3,
    storm_repository_bytes=200_000_000,
    storm_fetches=64,
    storm_together=16,
    storm_git_clones=16,
    storm_git_together=8,
    storm_unequal=512,
    storm_rounds=2,
    pool_idle=32,
)

QUICK = Sizes(
    name="quick",
    rounds=5,
    latency_samples=3,
    latency_together=8,
    latency_together_samples=8,
    session_clients=(1, 16),
    session_seconds=1.5,
    session_warm=16,
    floor_sessions=2_000,
    stream_bytes=256 * MIB,
    stream_rounds=5,
    streams_at_once=4,
    streams_bytes=24 * MIB,
    repository_bytes=10 * MIB,
    repository_rounds=1,
    mixed_clones=4,
    mixed_samples=3,
    mixed_rounds=1,
    idle_connections=(300,),
    idle_rounds=1,
    idle_forking_max=50,
    scale_clients=16,
    scale_seconds=0.5,
    scale_bytes=12 * MIB,
    scale_rounds=1,
    shield_seconds=3.0,
    shield_down_seconds=0.6,
    shield_every_seconds=0.25,
    shield_rounds=1,
    storm_repository_bytes=20 * MIB,
    storm_fetches=8,
    storm_together=8,
    storm_git_clones=2,
    storm_git_together=2,
    storm_unequal=16,
    storm_rounds=1,
    pool_idle=8,
)

TINY = Sizes(
    name="tiny",
    rounds=2,
    latency_samples=2,
    latency_together=2,
    latency_together_samples=2,
    session_clients=(2,),
    session_seconds=0.2,
    session_warm=2,
    floor_sessions=20,
    stream_bytes=1 * MIB,
    stream_rounds=1,
    streams_at_once=2,
    streams_bytes=1 * MIB,
    repository_bytes=2 * MIB,
    repository_rounds=1,
    mixed_clones=1,
    mixed_samples=2,
    mixed_rounds=1,
    idle_connections=(4,),
    idle_rounds=1,
    idle_forking_max=4,
    scale_clients=2,
    scale_seconds=0.2,
    scale_bytes=1 * MIB,
    scale_rounds=1,
    shield_seconds=3.0,
    shield_down_seconds=0.2,
    shield_every_seconds=0.5,
    shield_rounds=1,
    storm_repository_bytes=2 * MIB,
    storm_fetches=4,
    storm_together=2,
    storm_git_clones=2,
    storm_git_together=2,
    storm_unequal=4,
    storm_rounds=1,
    pool_idle=2,
)

SIZES = {sizes.name: sizes for sizes in (FULL, QUICK, TINY)}
