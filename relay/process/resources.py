"""Settings of a worker process: the limit of file descriptors, the allocator, the garbage collector."""

from __future__ import annotations

import ctypes
import gc
import logging
import resource

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


def calm_collector() -> None:
    """Excludes all present objects, which are mostly modules and classes, from later collections, and collects less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])
