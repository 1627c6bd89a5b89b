"""`git ls-remote` of a small repository, one at a time, while four bare clones of the big one run through the same contender, each
beginning again when it has ended; measured only while all four have data under way. In the same turn the same ls-remotes are timed
before the clones begin, so the two belong together. Real git and ssh at both ends, everything as a stock client negotiates. The
four clients, git's own indexing and four packers at the git host share the machine with the contender, so what is seen is the whole
path's answer under load; direct shows how much of it the machine itself explains. The relay takes part twice, as it is and with
[packs], whose folder is emptied before each turn: there the four equal clones are read from an entry, as fast as they index.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.contenders import Contender, Profile
from benchmarks.figures import Sample
from benchmarks.processes import settle
from benchmarks.scenarios.bulk import big_repository
from benchmarks.scenarios.latency import TIME, together
from benchmarks.scenarios.storm import clear

if TYPE_CHECKING:
    from benchmarks.suite import Bench

NAME = "mixed"
CASE = "ls-remote beside bulk clones"
UNLOADED, LOADED = "unloaded", "during clones"


def turn(bench: Bench, contender: Contender) -> dict[str, Sample]:
    sizes = bench.sizes
    clear(contender)
    settle((*contender.pids, bench.fleet.upstream.pid))
    unloaded = together(bench, Profile.STOCK, 1, sizes.mixed_samples, contender)[TIME]
    with bench.clients.cloning(contender, Profile.STOCK, "big", sizes.mixed_clones):
        loaded = together(bench, Profile.STOCK, 1, sizes.mixed_samples, contender)[TIME]
    return {UNLOADED: unloaded, LOADED: loaded}


def run(bench: Bench) -> None:
    big_repository(bench)
    warm = partial(together, bench, Profile.STOCK, 1, 1)
    with bench.fleet.relay(packs=True) as with_packs:
        bench.results.contenders[with_packs.name] = with_packs.about
        among = [*bench.contenders, with_packs]
        bench.case(NAME, CASE, partial(turn, bench), warm=warm, rounds=bench.sizes.mixed_rounds, among=among)
