"""What this worker knows of the others, and what it has to tell them; decisions come from here at once. Pure, with an injected clock.

`batch` says what to tell next, `took` what came of it, `lost` that nothing did. Memory is bounded by the limits of connections and of
penalised sources, whatever arrives and however long nobody can be told.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final

from relay import config
from relay.admission.limits import PENALTY_MIN_SECONDS, SOURCES_LIMIT, Neighbours
from relay.model import Frozen

BATCH: Final = 500  # sources of each kind in one exchange, each way eight times as many
PAGE: Final = 8 * BATCH
UNKNOWN: Final = -1  # what the others believe of a source after an exchange whose answer was lost
LIFE_SECONDS: Final = 60.0  # beyond the longest penalty: what nobody has touched for so long is gone


class Batch(Frozen, frozen=True):
    """One exchange. `counts` are connections by source as they are now, `penalties` seconds by source since the last."""

    number: int
    fresh: bool
    epoch: str
    since: int
    counts: dict[str, int]
    penalties: dict[str, float]


class Told(Frozen, frozen=True):
    """The answer; an empty epoch asks for everything anew."""

    epoch: str
    since: int
    totals: dict[str, int]
    kept: dict[str, float]
    workers: int  # that live, this one among them


class Mirror(Neighbours):
    """One worker's."""

    def __init__(self, limits: config.LimitsSettings, lease_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Without an exchange for `lease_seconds`, a worker's connections count no more for the others, and theirs no more for it."""
        self.lease_seconds = lease_seconds
        self.hot = max(1, limits.connections_per_source // 2)  # of a source with fewer connections nobody needs to know
        self.penalty_min_seconds = min(PENALTY_MIN_SECONDS, limits.penalty_max_seconds)
        self.penalty_max_seconds = limits.penalty_max_seconds
        self.life_seconds = LIFE_SECONDS + limits.penalty_max_seconds
        self._clock = clock
        # to tell
        self._here: dict[str, int] = {}
        self._dirty: dict[str, None] = {}  # sources whose count the others do not know, the longest changed first
        self._reported: dict[str, int] = {}
        self._penalties: dict[str, float] = {}
        self._sent: dict[str, float] = {}  # penalties that are under way, with this number
        self._number = 0
        # told
        self._epoch, self._since = "", 0
        self._heard = float("-inf")
        self._elsewhere: dict[str, int] = {}
        self.behind = False  # one exchange did not hold all
        self._kept: dict[str, float] = {}  # source -> when it may come in again
        self._soonest: list[tuple[float, str]] = []

    def __repr__(self) -> str:
        return f"<mirror {self._epoch or 'alone'} here={len(self._here)} elsewhere={len(self._elsewhere)} kept_out={len(self._kept)}>"

    # -- decisions -------------------------------------------------------------------------------------------------------

    def connections(self, source: str) -> int:
        """None once the others were not heard for a lease: what they had then may long be gone."""
        return self._elsewhere.get(source, 0) if self._clock() - self._heard < self.lease_seconds else 0

    def penalty(self, source: str) -> float:
        return max(0.0, self._kept.get(source, 0.0) - self._clock())

    # -- to tell ---------------------------------------------------------------------------------------------------------

    def counted(self, source: str, here: int) -> None:
        if here:
            self._here[source] = here
        else:
            self._here.pop(source, None)
        if here == self._reported.get(source, 0):
            self._dirty.pop(source, None)
        else:
            self._dirty[source] = None

    def penalised(self, source: str, seconds: float) -> None:
        if seconds > 0 and (source in self._penalties or len(self._penalties) < SOURCES_LIMIT):
            self._penalties[source] = min(self._penalties.get(source, 0.0) + seconds, self.penalty_max_seconds)

    def batch(self) -> Batch:
        """Penalties whose fate is not known are told once more under their number; they come first."""
        if not self._sent and self._penalties:
            self._number += 1
            self._sent = dict(islice(self._penalties.items(), BATCH))
            for source in self._sent:
                del self._penalties[source]
        counts = {source: self._here.get(source, 0) for source in islice(self._dirty, BATCH)}
        self._reported.update(dict.fromkeys(counts, UNKNOWN))  # until it is answered
        return Batch(
            number=self._number,
            fresh=not self._epoch,
            epoch=self._epoch,
            since=self._since,
            counts=counts,
            penalties=self._sent,
        )

    def took(self, batch: Batch, told: Told, asked: float) -> None:
        """`asked` is when the exchange began, by the clock."""
        if not told.epoch or (told.epoch != self._epoch and not batch.fresh):
            self.anew()
            return
        self._epoch, self._since, self._heard = told.epoch, told.since, asked
        self._sent = {}
        for source, count in batch.counts.items():
            if count:
                self._reported[source] = count
            else:
                self._reported.pop(source, None)
            self.counted(source, self._here.get(source, 0))
        own = self._reported
        self._elsewhere = {source: more for source, total in told.totals.items() if (more := total - max(0, own.get(source, 0))) > 0}
        self._keep(told.kept)
        self.behind = (bool(self._dirty) and len(batch.counts) == BATCH) or len(batch.penalties) == BATCH or len(told.kept) == PAGE

    def anew(self) -> None:
        """The others know nothing of this worker: everything is to be told again, and heard."""
        self._epoch, self._since = "", 0
        self._reported = {}
        self._dirty = dict.fromkeys(self._here)

    # -- told ------------------------------------------------------------------------------------------------------------

    def _keep(self, kept: Mapping[str, float]) -> None:
        """No penalty from elsewhere is longer than one from here may be, and on overflow the soonest to end goes."""
        now = self._clock()
        for source, seconds in kept.items():
            if seconds > 0:
                ends = self._kept[source] = now + min(seconds, self.penalty_max_seconds)
                heapq.heappush(self._soonest, (ends, source))
            else:
                self._kept.pop(source, None)
        while self._soonest and (self._soonest[0][0] <= now or len(self._kept) > SOURCES_LIMIT):
            ends, source = heapq.heappop(self._soonest)
            if self._kept.get(source) == ends:
                del self._kept[source]
        if len(self._soonest) > 2 * len(self._kept) + 64:
            self._soonest = [(ends, source) for source, ends in self._kept.items()]
            heapq.heapify(self._soonest)
