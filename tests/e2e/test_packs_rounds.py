"""Some of the rounds of packs_rounds.py, a few of each kind."""

from __future__ import annotations

import random
from pathlib import Path

from tests.e2e.packs_rounds import BLOB_BYTES, KINDS, Round, Stage

EACH = 5  # of each kind; `python -m tests.e2e.packs_rounds` plays as many as one likes


def test_a_fill_that_is_cut_anywhere_never_looks_whole(sshd_installed: None, tmp_path: Path) -> None:
    draw = random.Random(15)
    with Stage(tmp_path) as stage:
        for kind in KINDS:
            for cut in (0, *(draw.randrange(BLOB_BYTES) for _ in range(EACH - 1))):
                stage.play(Round(kind, cut))
        assert not stage.tally.failures
        assert stage.tally.rounds == EACH * len(KINDS)
        assert not stage.tally.failed["client"], "the others read on"
