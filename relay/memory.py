"""What a worker tells its allocator and its collector, once, before the load comes."""

from __future__ import annotations

import ctypes
import gc

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
