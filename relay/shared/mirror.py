"""What this worker knows of the other workers, and what it has to report to them; answers are immediate. Pure, with an injected clock.

`batch` makes the next report, `answered` takes in the reply, `start_over` is for a Redis that does not know this worker. Memory is bounded
by the limits on connections and on penalised sources, whatever arrives and however long the Redis is unreachable.
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

BATCH: Final = 500  # sources of each kind that an exchange sends; it may return eight times as many
PAGE: Final = 8 * BATCH
UNKNOWN: Final = -1  # the stored count of a source is unknown after an exchange whose reply was lost
LIFE_SECONDS: Final = 60.0  # Redis drops keys that no worker touched for the longest penalty and this


class Batch(Frozen, frozen=True):
    """What one exchange sends: `counts` are present connections by source, `penalties` seconds by source since the last exchange."""

    number: int
    fresh: bool
    epoch: str
    since: int
    counts: dict[str, int]
    penalties: dict[str, float]


class ExchangeReply(Frozen, frozen=True):
    """What one exchange returns. With an empty epoch the Redis does not know this worker: it must send everything again."""

    epoch: str
    since: int
    totals: dict[str, int]
    kept: dict[str, float]
    workers: int  # alive, including this one


class Mirror(Neighbours):
    """One worker's copy of what all workers share."""

    def __init__(self, limits: config.LimitsSettings, lease_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """After `lease_seconds` without an exchange this worker's connections no longer count for the others, nor theirs for it."""
        self.lease_seconds = lease_seconds
        self.hot = max(1, limits.connections_per_source // 2)  # sources with fewer connections are not returned
        self.penalty_min_seconds = min(PENALTY_MIN_SECONDS, limits.penalty_max_seconds)
        self.penalty_max_seconds = limits.penalty_max_seconds
        self.life_seconds = LIFE_SECONDS + limits.penalty_max_seconds
        self._clock = clock
        # to tell
        self._here: dict[str, int] = {}
        self._dirty: dict[str, None] = {}  # sources whose present count was not sent, the longest waiting first
        self._reported: dict[str, int] = {}
        self._penalties: dict[str, float] = {}
        self._sent: dict[str, float] = {}  # penalties of the exchange `_number`, until its reply came
        self._number = 0
        # told
        self._epoch, self._since = "", 0
        self._heard = float("-inf")
        self._elsewhere: dict[str, int] = {}
        self.behind = False  # there is more than one exchange holds
        self._kept: dict[str, float] = {}  # source -> when its penalty ends
        self._soonest: list[tuple[float, str]] = []

    def __repr__(self) -> str:
        return f"<mirror {self._epoch or 'alone'} here={len(self._here)} elsewhere={len(self._elsewhere)} kept_out={len(self._kept)}>"

    # -- decisions -------------------------------------------------------------------------------------------------------

    def connections(self, source: str) -> int:
        """Connections at other workers; 0 after a lease without exchange, for the counts are out of date."""
        return self._elsewhere.get(source, 0) if self._clock() - self._heard < self.lease_seconds else 0

    def penalty(self, source: str) -> float:
        return max(0.0, self._kept.get(source, 0.0) - self._clock())

    # -- sent -----------------------------------------------------------------------------------------------------------

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
        """What to send. Penalties whose reply was lost are sent again first, under the same number, so that they count once."""
        if not self._sent and self._penalties:
            self._number += 1
            self._sent = dict(islice(self._penalties.items(), BATCH))
            for source in self._sent:
                del self._penalties[source]
        counts = {source: self._here.get(source, 0) for source in islice(self._dirty, BATCH)}
        self._reported.update(dict.fromkeys(counts, UNKNOWN))  # until the reply comes
        return Batch(
            number=self._number,
            fresh=not self._epoch,
            epoch=self._epoch,
            since=self._since,
            counts=counts,
            penalties=self._sent,
        )

    def answered(self, batch: Batch, told: ExchangeReply, asked: float) -> None:
        """Takes in the reply to `batch`. `asked` is when the exchange began, by the clock."""
        if not told.epoch or (told.epoch != self._epoch and not batch.fresh):
            self.start_over()
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

    def start_over(self) -> None:
        """Sends and receives everything again, for the Redis knows nothing of this worker."""
        self._epoch, self._since = "", 0
        self._reported = {}
        self._dirty = dict.fromkeys(self._here)

    # -- received --------------------------------------------------------------------------------------------------------

    def _keep(self, kept: Mapping[str, float]) -> None:
        """Stores penalties of other workers, none longer than the limit here. Beyond SOURCES_LIMIT those that end soonest are dropped."""
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
