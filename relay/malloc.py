"""glibc's malloc, told that large buffers come and go with every read."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1  # mallopt(3)
_M_MMAP_THRESHOLD = -3

MMAP_THRESHOLD_BYTES = 4 << 20  # a read's 256 KiB would be mapped, faulted in page by page and unmapped each time
TRIM_THRESHOLD_BYTES = 16 << 20  # what may stay free at the heap's end


def keep_buffers() -> bool:
    """Once a process, before its load; False where the C library is not glibc, which is left as it is."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES))
