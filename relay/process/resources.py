"""Settings of a worker process: the limit of file descriptors, the allocator, the size of pages, the garbage collector."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import resource
from collections.abc import Iterator

import msgspec

from relay.admission.farewell import FAREWELLS_MOST
from relay.config import Config, LimitsSettings, connections_most

# for connections that are being refused; for listeners, log, audit, event loop, and the programs and connections of backends
OWN_DESCRIPTORS = FAREWELLS_MOST + 64
_log = logging.getLogger("relay.descriptors")


def raise_limit() -> int:
    """Raises the soft limit of descriptors to the hard limit (getrlimit(2)) and returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def fitted(config: Config, limit: int) -> Config:
    """`config` with `limits.connections` lowered to the descriptors that connections to git hosts leave free, which is logged."""
    wanted = config.limits.connections
    git_hosts = sum(connections_most(upstream) for upstream in config.upstreams.values())
    free = max(1, limit - OWN_DESCRIPTORS - min(git_hosts, limit // 2))
    if free >= wanted:
        return config
    # a warning only when the operator has set the number
    level = logging.INFO if wanted == LimitsSettings().connections else logging.WARNING
    _log.log(level, "%d connections at most, not %d: no more than %d file descriptors may be open", free, wanted, limit)
    return msgspec.structs.replace(config, limits=msgspec.structs.replace(config.limits, connections=free))


_M_TRIM_THRESHOLD = -1  # mallopt(3)
_M_MMAP_THRESHOLD = -3
MMAP_THRESHOLD_BYTES = 4 << 20  # else malloc maps each read's 256 KiB buffer anew, and every page of it faults
TRIM_THRESHOLD_BYTES = 16 << 20  # free memory that malloc keeps at the top of the heap
COLLECT_AFTER = 10_000  # new container objects; a login makes thousands, few of them in cycles


def keep_buffers() -> bool:
    """Lets malloc reuse buffers of reads instead of mapping them anew; False where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES))


_MADV_COLLAPSE = 25  # madvise(2)
HUGE_PAGE_BYTES = 2 << 20
HUGE_MOST_BYTES = 64 << 20  # about three times what a worker has when it begins to serve


def use_huge_pages() -> int:
    """Moves the memory that the process has by now into huge pages, and returns how many bytes lie in them then.

    A session touches code and objects all over that memory, and each lookup of a page costs more in a virtual machine. Where the kernel
    cannot (before Linux 6.1), may not or has no huge page free, the memory stays in small pages, which costs only time. With
    RELAY_HUGE_PAGES=0 in the environment it all stays there.
    """
    if os.environ.get("RELAY_HUGE_PAGES") == "0":
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    moved = 0
    for begin, end in list(_private_memory()):
        first = -(-begin // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        size = min((end - first) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES, HUGE_MOST_BYTES - moved)
        if size > 0 and madvise(first, size, _MADV_COLLAPSE) == 0:
            moved += size
    return moved


def _private_memory() -> Iterator[tuple[int, int]]:
    """Begin and end of each range of the process's own memory that is written to and for the most part in use (proc_pid_smaps(5))."""
    begin = end = 0
    try:
        with open("/proc/self/smaps", encoding="utf-8", errors="surrogateescape") as ranges:
            for line in ranges:
                key, *values = line.split(maxsplit=5)
                if key == "Rss:" and int(values[0]) * 1024 * 2 >= end - begin > 0:
                    yield begin, end
                elif not key.endswith(":"):
                    begin, end = (int(address, 16) for address in key.split("-"))
                    if not values[0].startswith("rw-p") or values[4:] not in ([], ["[heap]\n"]):
                        begin = end = 0  # a file's, a stack, or not written to
    except OSError:
        return  # without /proc


def calm_collector() -> None:
    """Excludes all present objects, which are mostly modules and classes, from later collections, and collects less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])
