"""`git ls-remote` of a small repository, one at a time, while four bare clones of the big one run through the same contender, each
beginning again when it has ended; measured only while all four have data under way. In the same turn the same ls-remotes are timed
before the clones begin, so the two belong together. Real git and ssh at both ends, everything as a stock client negotiates. The
four clients, git's own indexing and four packers at the git host share the machine with the contender, so what is seen is the whole
path's answer under load; direct shows how much of it the machine itself explains. The relay takes part twice, as it is and with
[packs], whose folder is emptied before each turn: there the four equal clones are read from an entry, as fast as they index. A second
case tells where the time of an ls-remote goes: there both relays send traces to the suite, whose spans, the suite's clock and git's
trace2 divide each ls-remote into parts that follow one another. Their medians and p99 are told by themselves and do not add up.
forced takes no part: its turns would take half of the time, in which the others have more samples for their p99.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.clients import Listed
from benchmarks.contenders import Contender, Profile
from benchmarks.figures import Sample
from benchmarks.processes import MeasureError, settle
from benchmarks.scenarios.bulk import big_repository
from benchmarks.scenarios.latency import TIME, together
from benchmarks.scenarios.storm import clear
from benchmarks.traces import PARTS, Collector, collecting

if TYPE_CHECKING:
    from benchmarks.suite import Bench

NAME = "mixed"
CASE = "ls-remote beside bulk clones"
WHERE = "where the time of an ls-remote goes"
UNLOADED, LOADED = "unloaded", "during clones"


def turn(bench: Bench, contender: Contender) -> dict[str, Sample]:
    sizes = bench.sizes
    clear(contender)
    settle((*contender.pids, bench.fleet.upstream.pid))
    unloaded = together(bench, Profile.STOCK, 1, sizes.mixed_samples, contender)[TIME]
    with bench.clients.cloning(contender, Profile.STOCK, "big", sizes.mixed_clones):
        loaded = together(bench, Profile.STOCK, 1, sizes.mixed_samples, contender)[TIME]
    return {UNLOADED: unloaded, LOADED: loaded}


def divided(bench: Bench, collector: Collector, contender: Contender) -> dict[str, Sample]:
    """As `turn`, each ls-remote divided into its parts."""
    sizes = bench.sizes
    clear(contender)
    settle((*contender.pids, bench.fleet.upstream.pid))

    def listed() -> list[Listed]:
        return [bench.clients.ls_remote_heard(contender, Profile.STOCK, "small") for _ in range(sizes.mixed_samples)]

    unloaded = listed()
    with bench.clients.cloning(contender, Profile.STOCK, "big", sizes.mixed_clones):
        loaded = listed()
    samples = {}
    for phase, of, statistics in ((UNLOADED, unloaded, ("p50",)), (LOADED, loaded, ("p50", "p99"))):
        each = collector.parts("small", of)
        for part in PARTS:
            samples[f"{phase}; {part}"] = Sample("ms", "lower", [one[part] * 1e3 for one in each], statistics)
    return samples


def run(bench: Bench) -> None:
    big_repository(bench)
    warm = partial(together, bench, Profile.STOCK, 1, 1)
    with bench.fleet.relay(packs=True) as with_packs:
        bench.results.contenders[with_packs.name] = with_packs.about
        among = [*(one for one in bench.contenders if one.name != "forced"), with_packs]
        bench.case(NAME, CASE, partial(turn, bench), warm=warm, rounds=bench.sizes.mixed_rounds, among=among)
    with ExitStack() as stack:
        try:
            collector = stack.enter_context(collecting())
        except MeasureError as error:
            bench.results.left_out[f"{NAME}: {WHERE}"] = str(error)
            return
        traced = [stack.enter_context(bench.fleet.relay(packs=packs, traces=collector.url)) for packs in (False, True)]
        bench.case(NAME, WHERE, partial(divided, bench, collector), warm=warm, rounds=bench.sizes.mixed_rounds, among=traced)
