"""What a worker asks of its process: file descriptors, the allocator and the garbage collector."""

from __future__ import annotations

import ctypes
import gc
import logging
import resource

import msgspec

from relay.admission.farewell import FAREWELLS_MOST
from relay.config import Config, LimitsSettings, connections_most

# Clients that are turned away; listeners, log, the audit, the loop, programs and backends that are asked for keys, access or routes.
OWN_DESCRIPTORS = FAREWELLS_MOST + 64
_log = logging.getLogger("relay.descriptors")


def raise_limit() -> int:
    """Takes the soft limit to the hard one (getrlimit(2)); what it is then."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def fitted(config: Config, limit: int) -> Config:
    """`config` with as many client connections as are left by all connections to git hosts; at least one. Says so when those are fewer."""
    wanted = config.limits.connections
    git_hosts = sum(connections_most(upstream) for upstream in config.upstreams.values())
    room = max(1, limit - OWN_DESCRIPTORS - min(git_hosts, limit // 2))
    if room >= wanted:
        return config
    # the default is what nobody asked for: only somebody who did is warned
    level = logging.INFO if wanted == LimitsSettings().connections else logging.WARNING
    _log.log(level, "%d connections at most, not %d: no more than %d file descriptors may be open", room, wanted, limit)
    return msgspec.structs.replace(config, limits=msgspec.structs.replace(config.limits, connections=room))


_M_TRIM_THRESHOLD = -1  # mallopt(3)
_M_MMAP_THRESHOLD = -3
MMAP_THRESHOLD_BYTES = 4 << 20  # a read's 256 KiB would be mapped, faulted in page by page and unmapped each time
TRIM_THRESHOLD_BYTES = 16 << 20  # what may stay free at the heap's end
COLLECT_AFTER = 10_000  # new container objects; a login makes thousands, and few of them are in cycles


def keep_buffers() -> bool:
    """False where the C library is not glibc, which is left as it is."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES))


def calm_collector() -> None:
    """Modules and classes are never garbage: they are taken out of every later collection, and collections come less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])
