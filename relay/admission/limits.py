"""Limits on connections: by number, by source, and penalties for sources that fail. Decisions only, with an injected clock, no I/O.

The rules are OpenSSH's: MaxStartups' random early drop (sshd.c), PerSourceMaxStartups with a netblock for IPv6, and the
PerSourcePenalties of 9.8 (srclimit.c).
"""

from __future__ import annotations

import heapq
import random as random_
import time
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Final, Literal

from relay import config
from relay.admission.proxy_protocol import Trusted
from relay.events import SourceKind
from relay.model import Frozen
from relay.text import counted

SOURCES_LIMIT: Final = (
    65_536  # penalised sources that are remembered, as OpenSSH's max-sources4; beyond it the soonest to expire is forgotten
)
SOURCES_CACHED: Final = 4_096
KNOWN_WEIGHT: Final = 0.25  # of a failure where somebody logged in lately: one bad key behind a NAT must not keep its neighbours out
PENALTY_MIN_SECONDS: Final = 15.0  # less than this keeps nobody out, so that one mistake does not
IPV6_SOURCE_BITS: Final = 64  # what one customer is given, at least


RefusalReason = Literal["penalty", "connections", "source", "unauthenticated"]
Failure = Literal["noauth", "auth", "grace", "crash"]

WEIGHTS: Final[dict[Failure, float]] = {  # of penalty_seconds; OpenSSH: 1 s, 5 s, 10 s, 90 s
    "noauth": 0.2,  # disconnected without a try: scanners, but health checks too
    "auth": 1.0,
    "grace": 2.0,  # held a slot for the whole login grace time
    "crash": 18.0,  # caused an internal error
}
FREE_CPU_SECONDS: Final = 0.005  # CPU time of an unauthenticated connection; a handshake takes 1 to 3 ms, with group 18 about 15 ms
DEAR_CPU_SECONDS: Final = 0.02  # so much CPU time beyond the free weighs as much as a failed login
PROBES_FREE: Final = 10  # port checks of one source in a window; further ones count as noauth
PROBES_WINDOW_SECONDS: Final = 2.0


@lru_cache(maxsize=SOURCES_CACHED)
def source_of(address: str) -> str:
    """The source that limits count by: an IPv4 address (also IPv4-mapped), or the /64 of an IPv6 address; anything else is one source."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(ip, IPv6Address):
        return str(ip.ipv4_mapped or IPv6Network((ip, IPV6_SOURCE_BITS), strict=False))
    return str(ip)


class Refusal(Frozen, frozen=True):
    """Why a connection is refused; `detail` is for the log."""

    reason: RefusalReason
    detail: str


class Neighbours:
    """Connections and penalties of a source at other workers and relays; this base class knows of none. Answers come from memory."""

    def connections(self, source: str) -> int:
        """How many are open elsewhere."""
        return 0

    def penalty(self, source: str) -> float:
        """Seconds for which the source is still refused, for failures anywhere."""
        return 0.0

    def counted(self, source: str, here: int) -> None:
        """Reports that `here` are open here."""

    def penalised(self, source: str, seconds: float) -> None:
        """Reports a penalty that the source got here."""


class Ticket:
    """One admitted connection. The first `leave` ends it; later calls of any method have no effect."""

    __slots__ = ("_admission", "_cpu_seconds", "_failure", "_open", "_unauthenticated", "kind", "source")

    def __init__(self, admission: Admission, source: str, kind: SourceKind) -> None:
        self.source = source
        self.kind: SourceKind = kind
        self._admission = admission
        self._open = True
        self._unauthenticated = True
        self._failure: Failure | None = None
        self._cpu_seconds = 0.0

    def __repr__(self) -> str:
        state = "left" if not self._open else "unauthenticated" if self._unauthenticated else "authenticated"
        return f"<ticket {self.source} {state}>"

    def authenticated(self) -> None:
        """The connection is no longer counted as unauthenticated, and earlier failures are forgiven: an agent offers several keys."""
        if self._open and self._unauthenticated:
            self._unauthenticated = False
            self._admission.unauthenticated -= 1
            if self.source:
                self._admission.known.saw(self.source)

    def failed(self, kind: Failure) -> None:
        """Notes a reason for a penalty; the heaviest one counts, once, when the connection ends unauthenticated."""
        if self._failure is None or WEIGHTS[kind] > WEIGHTS[self._failure]:
            self._failure = kind

    def probed(self) -> None:
        """The client sent nothing and disconnected at once, to check the port: penalised only when there are many."""
        if not self._admission._probe_is_free(self.source):
            self.failed("noauth")

    def cost(self, cpu_seconds: float) -> None:
        """CPU time that was spent on the connection before its login or end: expensive failures weigh more."""
        self._cpu_seconds = cpu_seconds

    def leave(self) -> None:
        if not self._open:
            return
        self._open = False
        self._admission._left(self.source, self._unauthenticated, self._failure, self._cpu_seconds)


class Admission:
    """A worker's limits on connections. The counters may be read at any time: none is negative, none exceeds its limit."""

    def __init__(
        self,
        limits: config.LimitsSettings,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random_.random,
        exempt: Callable[[str], bool] = lambda address: False,
        neighbours: Neighbours | None = None,
    ) -> None:
        """`clock` in seconds; `random` in [0, 1). Addresses that are `exempt` (load balancers, whose own connections are health checks)
        are neither penalised nor counted by source, as those in limits.exempt, which are clients."""
        self.connections = 0
        self.unauthenticated = 0
        self.by_source: dict[str, int] = {}
        self.refused: dict[RefusalReason, int] = {"penalty": 0, "connections": 0, "source": 0, "unauthenticated": 0}
        self.penalties = Penalties(limits.penalty_max_seconds, clock)
        self.known = Known(limits.known_source_seconds, clock)
        self._limits = limits
        self._random = random
        self._exempt = exempt
        self._exempt_clients = Trusted(limits.exempt)
        self._neighbours = neighbours or Neighbours()
        self._clock = clock
        self._probes: dict[str, int] = {}  # by source, in the window
        self._probes_end = 0.0

    def _probe_is_free(self, source: str) -> bool:
        now = self._clock()
        if now >= self._probes_end:
            self._probes, self._probes_end = {}, now + PROBES_WINDOW_SECONDS
        self._probes[source] = count = self._probes.get(source, 0) + 1
        return count <= PROBES_FREE

    def enter(self, address: str, *, named_by_header: bool = False) -> Refusal | Ticket:
        """Admits a connection from `address`, or returns why not. The ticket's `leave` must be called in the end.

        `named_by_header`: a PROXY header named the address, so it is a client's: limits.exempt may exempt it, and nothing else does.
        """
        exempt = (not named_by_header and self._exempt(address)) or self._exempt_clients.believes(address)
        source = "" if exempt else source_of(address)
        limits = self._limits
        remaining = max(self.penalties.remaining(source), self._neighbours.penalty(source))
        if remaining:
            return self._refuse("penalty", f"{source} failed too often, it is kept out for {remaining:.0f} s more")
        if self.connections >= limits.connections:
            return self._refuse("connections", f"{counted(self.connections, 'connection', 'are')} open, no more are allowed")
        here = self.by_source.get(source, 0)
        elsewhere = self._neighbours.connections(source)
        if source and here + elsewhere >= limits.connections_per_source:
            has = counted(here + elsewhere, "connection")
            return self._refuse("source", f"{source} has {has} open, no more are allowed from one source")
        if self._random() < self._drop_probability():
            waiting = counted(self.unauthenticated, "connection", "are")
            return self._refuse("unauthenticated", f"{waiting} not authenticated yet, this one was dropped")
        self.connections += 1
        self.unauthenticated += 1
        if source:
            self.by_source[source] = here + 1
            self._neighbours.counted(source, here + 1)
        return Ticket(self, source, "exempt" if exempt else "known" if self.known.knows(source) else "stranger")

    def _drop_probability(self) -> float:
        """MaxStartups start:rate:full with start = half of full and rate = 0: nothing below half, linear from there, all when full."""
        full = self._limits.unauthenticated_connections
        start = full // 2
        if self.unauthenticated < start:
            return 0.0
        return (self.unauthenticated - start) / (full - start)

    def _refuse(self, reason: RefusalReason, detail: str) -> Refusal:
        self.refused[reason] += 1
        return Refusal(reason=reason, detail=detail)

    def _left(self, source: str, unauthenticated: bool, failure: Failure | None, cpu_seconds: float) -> None:
        self.connections -= 1
        if unauthenticated:
            self.unauthenticated -= 1
        if not source:
            return
        here = self.by_source[source] - 1
        if here:
            self.by_source[source] = here
        else:
            del self.by_source[source]
        self._neighbours.counted(source, here)
        if unauthenticated and failure is not None:
            weight = WEIGHTS[failure] + max(0.0, cpu_seconds - FREE_CPU_SECONDS) / DEAR_CPU_SECONDS
            if failure != "crash" and self.known.knows(source):
                weight *= KNOWN_WEIGHT
            seconds = weight * self._limits.penalty_seconds
            self.penalties.add(source, seconds)
            self._neighbours.penalised(source, seconds)


class Known:
    """Sources from which somebody logged in lately. Only whoever has a key can add one; beyond a limit the oldest is forgotten."""

    def __init__(self, seconds: float, clock: Callable[[], float], sources_limit: int = SOURCES_LIMIT) -> None:
        self._seconds = seconds
        self._clock = clock
        self._sources_limit = sources_limit
        self._seen: dict[str, float] = {}  # source -> the last login there, the oldest first

    def __len__(self) -> int:
        return len(self._seen)

    def saw(self, source: str) -> None:
        """Somebody logged in from there."""
        if not self._seconds:
            return
        self._seen.pop(source, None)
        self._seen[source] = self._clock()
        if len(self._seen) > self._sources_limit:
            del self._seen[next(iter(self._seen))]

    def knows(self, source: str) -> bool:
        last = self._seen.get(source)
        if last is None:
            return False
        if self._clock() - last < self._seconds:
            return True
        del self._seen[source]
        return False


class Penalties:
    """Seconds of penalty by source. They add up and expire in real time; from a minimum on the source is refused until they are gone."""

    def __init__(self, max_seconds: float, clock: Callable[[], float], sources_limit: int = SOURCES_LIMIT) -> None:
        self._max = max_seconds
        self._min = min(PENALTY_MIN_SECONDS, max_seconds)
        self._clock = clock
        self._sources_limit = sources_limit
        self._table: dict[str, tuple[float, bool]] = {}  # source -> (when it ends, whether the source is refused)
        self._soonest: list[tuple[float, str]] = []  # a heap; entries that differ from the table are stale

    def __len__(self) -> int:
        """Sources remembered, at most the limit."""
        return len(self._table)

    def remaining(self, source: str) -> float:
        """Seconds for which `source` is still refused, or 0."""
        now = self._clock()
        self._forget(now)
        ends, active = self._table.get(source, (now, False))
        return ends - now if active else 0.0

    def add(self, source: str, seconds: float) -> None:
        if seconds <= 0:
            return
        now = self._clock()
        self._forget(now)
        ends, active = self._table.get(source, (now, False))
        ends = min(ends + seconds, now + self._max)
        self._table[source] = (ends, active or ends - now >= self._min)
        heapq.heappush(self._soonest, (ends, source))
        self._forget(now)
        if len(self._soonest) > 2 * len(self._table) + 64:  # as many stale ones as live ones
            self._soonest = [(ends, source) for source, (ends, _) in self._table.items()]
            heapq.heapify(self._soonest)

    def _forget(self, now: float) -> None:
        """Removes expired penalties, and on overflow those that expire soonest: a flood of small penalties cannot evict a big one."""
        while self._soonest and (self._soonest[0][0] <= now or len(self._table) > self._sources_limit):
            ends, source = heapq.heappop(self._soonest)
            if source in self._table and self._table[source][0] == ends:
                del self._table[source]


class Allowance:
    """A token bucket: `burst` at once, then `per_second`. It may go into debt; the caller then waits until the debt is paid."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._left = burst
        self._since = clock()

    def spend(self, count: float) -> float:
        """Takes `count` and returns how many seconds to wait before anything more is taken; 0 while something is left."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._since) * self._per_second) - count
        self._since = now
        return max(0.0, -self._left / self._per_second)
