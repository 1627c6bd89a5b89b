"""Large buffers are kept instead of being mapped and unmapped with every read."""

from __future__ import annotations

import resource
import subprocess
import sys

_ROUNDS = 200
_PROGRAM = f"""
import resource, sys
from relay.memory import keep_buffers
if sys.argv[1] == "kept":
    assert keep_buffers()
bytearray(300_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({_ROUNDS}):
    one, two = bytearray(300_000), bytearray(290_000)
    del one, two
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_buffer_that_comes_again_is_not_faulted_in_again() -> None:
    def faults(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", _PROGRAM, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    pages = 590_000 // resource.getpagesize()
    assert faults("kept") < 4 * pages  # once, not once a round


def test_what_was_made_before_is_never_collected_again() -> None:
    program = (
        "import gc; from relay.memory import COLLECT_AFTER, calm_collector; calm_collector();"
        "print(gc.get_freeze_count() > 1000, gc.get_threshold()[0] == COLLECT_AFTER, gc.isenabled())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True"]
