"""One gigabyte each way. Streams go through the real ssh to stub services at the git host: down is `cat` of incompressible bytes,
which the client's end of the pipe counts and throws away without copying; up ends in `cksum`, whose answer must be right. Before
the first round one stream each way is read in full and checked by CRC. Throughput is from the first byte of the answer to the
client's exit, so the login is not part of it; several streams count from the first byte of the first to the exit of the last. Then
git clones (bare) and pushes a real repository of incompressible files, without deltas, recompression or fsync at either end, whole
wall time. Once with the cipher a stock OpenSSH client negotiates (it asks for chacha20-poly1305 first, and gets AES-GCM where the
server does not offer that), once with aes128-gcm forced. CPU seconds per GB (10^9 bytes) are of the relay's process tree and of the
git host's. One stream by GCM has the floor beside it: packets of the same size, received, opened, sealed and sent on by 400 lines of C.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.contenders import Contender, Profile
from benchmarks.figures import Sample
from benchmarks.sizes import MIB

if TYPE_CHECKING:
    from benchmarks.suite import Bench

NAME = "bulk"
RATE, RELAY_CPU, UPSTREAM_CPU = "throughput", "relay CPU per GB", "upstream CPU per GB"
DOWN, UP, CLONE, PUSH = "down", "up", "clone", "push"
PROFILES = (Profile.STOCK, Profile.GCM)
VERIFY_BYTES = 16 * MIB


def case(profile: Profile, what: str, streams: int = 1) -> str:
    return f"{profile.value}, {what}{'' if streams == 1 else f', {streams} streams'}"


def counted(bench: Bench, contender: Contender, carry: Callable[[], tuple[int, float]]) -> dict[str, Sample]:
    """Throughput and CPU of `carry`, which returns bytes and seconds."""
    cost = bench.cost(contender)
    size, seconds = carry()
    relay, upstream = cost.seconds()
    samples = {
        RATE: Sample("MB/s", "higher", [size / seconds / 1e6]),
        UPSTREAM_CPU: Sample("s", "lower", [upstream / size * 1e9]),
    }
    if contender.pids:
        samples[RELAY_CPU] = Sample("s", "lower", [relay / size * 1e9])
    return samples


def streams(bench: Bench, profile: Profile, what: str, size: int, at_once: int, contender: Contender) -> dict[str, Sample]:
    one = bench.clients.down if what == DOWN else bench.clients.up

    def carry() -> tuple[int, float]:
        done = bench.clients.runner.together([lambda: one(contender, profile, size)] * at_once)
        return sum(each.size for each in done), max(each.ended for each in done) - min(each.first for each in done)

    return counted(bench, contender, carry)


def least(bench: Bench, what: str, size: int) -> dict[str, Sample]:
    """The floor's turn."""
    assert bench.floor is not None
    figures = bench.floor.bulk(what, size)
    return {
        RATE: Sample("MB/s", "higher", [size / figures.seconds / 1e6]),
        RELAY_CPU: Sample("s", "lower", [figures.cpu_seconds / size * 1e9]),
    }


def repository(bench: Bench, profile: Profile, what: str, contender: Contender) -> dict[str, Sample]:
    one = bench.clients.clone if what == CLONE else bench.clients.push
    return counted(bench, contender, lambda: (bench.sizes.repository_bytes, one(contender, profile, "big")))


def verify(bench: Bench, profile: Profile, contender: Contender) -> Mapping[str, Sample]:
    """Raises MeasureError for a contender that does not carry every byte unchanged."""
    size = min(VERIFY_BYTES, bench.sizes.stream_bytes)
    bench.clients.down(contender, profile, size, verify=True)
    bench.clients.up(contender, profile, size)
    return {}


def big_repository(bench: Bench) -> None:
    if not (bench.space.git / "big.git").exists():
        bench.space.repository("big", bench.sizes.repository_bytes)


def run(bench: Bench) -> None:
    sizes = bench.sizes
    big_repository(bench)
    for profile in PROFILES:
        for at_once, size in ((1, sizes.stream_bytes), (sizes.streams_at_once, sizes.streams_bytes)):
            for what in (DOWN, UP):
                bench.case(
                    NAME,
                    case(profile, what, at_once),
                    partial(streams, bench, profile, what, size, at_once),
                    warm=partial(verify, bench, profile) if (what, at_once) == (DOWN, 1) else None,
                    rounds=sizes.stream_rounds,
                    least=partial(least, bench, what, size) if bench.floor and (profile, at_once) == (Profile.GCM, 1) else None,
                )
        for what in (CLONE, PUSH):
            bench.case(NAME, case(profile, what), partial(repository, bench, profile, what), rounds=sizes.repository_rounds)
