"""Settings of a worker process: the limit of file descriptors, the allocator, the garbage collector."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from relay.config import Config, LimitsSettings, UpstreamSettings, UserCertificateSettings, connections_most
from relay.process.resources import OWN_DESCRIPTORS, fitted

ROOT = Path(__file__).parents[2]


def config(connections: int, *connections_max: int) -> Config:
    hosts = {
        f"host{number}": UpstreamSettings(addresses=["git.example:22"], connections_max=most) for number, most in enumerate(connections_max)
    }
    return Config(upstreams=hosts, limits=LimitsSettings(connections=connections))


def test_a_limit_with_room_for_all_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    wanted = config(1_000, 64, 36)
    assert fitted(wanted, 1_100 + OWN_DESCRIPTORS) is wanted
    assert not caplog.records


@pytest.mark.parametrize(
    ("limit", "connections_max", "room"),
    [
        (1_099 + OWN_DESCRIPTORS, (64, 36), 999),
        (1_024, (64,), 1_024 - OWN_DESCRIPTORS - 64),
        (200, (1_000,), 200 - OWN_DESCRIPTORS - 100),  # git hosts get at most half
        (10, (64,), 1),
    ],
)
def test_git_hosts_keep_their_part_of_a_small_limit(
    limit: int, connections_max: tuple[int, ...], room: int, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = config(1_000, *connections_max)
    with caplog.at_level(logging.WARNING):
        got = fitted(wanted, limit)
    assert got.limits.connections == room
    assert got == msgspec.structs.replace(wanted, limits=msgspec.structs.replace(wanted.limits, connections=room)), "nothing else changes"
    assert caplog.messages == [f"{room} connections at most, not 1000: no more than {limit} file descriptors may be open"]


def test_a_host_with_connections_of_each_identity_counts_them_all() -> None:
    certificate = UserCertificateSettings(ca_key="ca", identities_max=10, connections_max=3)
    upstream = UpstreamSettings(addresses=["a:22", "b:22"], connections_max=64, user_certificate=certificate)
    assert connections_most(upstream) == 2 * 10 * 3
    assert connections_most(msgspec.structs.replace(upstream, user_certificate=None)) == 2 * 64


def test_the_soft_limit_is_raised_to_the_hard_limit() -> None:
    """In a process of its own: raising the limit again needs a privilege."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = min(hard, 4_000)
    program = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, {hard}))
from relay.process.resources import raise_limit
print(raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{hard} ({hard}, {hard})\n"


def test_each_address_of_a_git_host_has_its_own_connections() -> None:
    """connections_max applies to each address."""
    main = UpstreamSettings(addresses=["a:22", "b:22", "c:22"], connections_max=10)
    wanted = Config(upstreams={"main": main}, limits=LimitsSettings(connections=1_000))
    assert fitted(wanted, 500).limits.connections == 500 - OWN_DESCRIPTORS - 30


def test_a_default_that_does_not_fit_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        fitted(config(LimitsSettings().connections, 64), 20_000)
    assert [(record.levelname, "connections at most" in record.message) for record in caplog.records] == [("INFO", True)]


_ROUNDS = 200
_PROGRAM = f"""
import resource, sys
from relay.process.resources import keep_buffers
if sys.argv[1] == "kept":
    assert keep_buffers()
bytearray(300_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({_ROUNDS}):
    one, two = bytearray(300_000), bytearray(290_000)
    del one, two
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_reused_buffer_causes_no_page_faults() -> None:
    def faults(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", _PROGRAM, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    pages = 590_000 // resource.getpagesize()
    assert faults("kept") < 4 * pages  # page faults of one round, not of every round


def test_earlier_objects_are_excluded_from_later_collections() -> None:
    program = (
        "import gc; from relay.process.resources import COLLECT_AFTER, calm_collector; calm_collector();"
        "print(gc.get_freeze_count() > 1000, gc.get_threshold()[0] == COLLECT_AFTER, gc.isenabled())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True"]


_HUGE_PROGRAM = """
import os, sys
from relay.process.resources import HUGE_PAGE_BYTES, use_huge_pages
used = bytearray(os.urandom(1024)) * (16 * 1024)
if sys.argv[1] == "sparse":
    import mmap
    sparse = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    sparse[0] = 1
moved = use_huge_pages()
with open("/proc/self/smaps_rollup") as told:
    sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in told if "kB" in line}
assert used[:1024] == used[-1024:]
print(moved, sizes["AnonHugePages:"], sizes["Rss:"], HUGE_PAGE_BYTES)
"""


def huge(what: str = "", **environment: str) -> tuple[int, int, int, int]:
    """Bytes that were moved into huge pages, that lie in them, and in memory; and the size of such a page."""
    argv = [sys.executable, "-c", _HUGE_PROGRAM, what]
    done = subprocess.run(argv, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=True)
    moved, there, rss, page = map(int, done.stdout.split())
    return moved, there, rss, page


def test_memory_in_use_moves_into_huge_pages() -> None:
    moved, there, _, page = huge()
    if not moved:
        pytest.skip("this kernel gives no huge pages (madvise(2), MADV_COLLAPSE)")
    assert moved % page == 0
    assert there >= moved >= 4 * page, "a bytearray of 16 MiB has seven whole pages"


def test_memory_that_is_not_used_is_not_filled() -> None:
    """A range that is mapped and hardly touched would take all of its size."""
    assert huge("sparse")[2] < huge()[2] + (16 << 20)


def test_with_relay_huge_pages_0_the_relay_moves_no_memory() -> None:
    """The kernel itself may still give huge pages, where transparent_hugepage/enabled is `always`."""
    assert huge(RELAY_HUGE_PAGES="0")[0] == 0
