"""Rates of live sessions, from successive lists of them: how fast each moves bytes, and since when it does not. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:  # the command line needs ORDERS for its help, and not the asyncio that messages bring
    from relay.process.messages import LiveSession

WINDOW_SECONDS: Final = 3.0  # a rate is an average over this time
QUIET_SECONDS: Final = 5.0  # git is often quiet for so long, while the git host counts objects
STALLED_SECONDS: Final = 30.0  # but rarely for so long
SLOW_BYTES: Final = 20_000  # a second
HISTORY: Final = 120  # number of lists whose totals are kept

Pace = Literal["new", "moving", "slow", "quiet", "stalled"]


class Row(NamedTuple):
    """A session now. Rates are bytes a second, None while unknown."""

    line: LiveSession
    rate_in: float | None
    rate_out: float | None
    quiet_seconds: float  # since a byte was last seen to move

    @property
    def rate(self) -> float:
        return (self.rate_in or 0.0) + (self.rate_out or 0.0)

    @property
    def pace(self) -> Pace:
        if self.quiet_seconds >= STALLED_SECONDS:
            return "stalled"
        if self.quiet_seconds >= QUIET_SECONDS:
            return "quiet"
        if self.rate_in is None:
            return "new"
        return "slow" if self.rate < SLOW_BYTES and self.line.seconds > QUIET_SECONDS else "moving"


class Totals(NamedTuple):
    sessions: int
    people: int
    bytes_in: int
    bytes_out: int
    rate_in: float
    rate_out: float


class _Track:
    """The byte counts of a session in the last WINDOW_SECONDS."""

    def __init__(self, line: LiveSession) -> None:
        self.seen: deque[LiveSession] = deque()
        self.moved = line.seconds  # age of the session when a byte was last seen to move

    def look(self, line: LiveSession) -> Row:
        before = self.seen[-1] if self.seen else line
        if line.bytes_in + line.bytes_out != before.bytes_in + before.bytes_out:
            self.moved = line.seconds
        self.seen.append(line)
        while len(self.seen) > 2 and self.seen[1].seconds <= line.seconds - WINDOW_SECONDS:
            self.seen.popleft()
        first, since = self.seen[0], line.seconds - self.seen[0].seconds
        if since > 0:
            rates = ((line.bytes_in - first.bytes_in) / since, (line.bytes_out - first.bytes_out) / since)
        elif 0 < line.seconds <= WINDOW_SECONDS:
            rates = (line.bytes_in / line.seconds, line.bytes_out / line.seconds)
        else:
            return Row(line, None, None, 0.0)
        return Row(line, *rates, quiet_seconds=line.seconds - self.moved)


class Live:
    """The sessions with their rates, and the history of their total rates."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.history: deque[tuple[float, float]] = deque(maxlen=HISTORY)  # (in, out) rates of all sessions, for each list
        self._tracks: dict[tuple[int, str], _Track] = {}

    def look(self, lines: Iterable[LiveSession]) -> list[Row]:
        """Takes a new list of sessions; those that ended are forgotten."""
        tracks: dict[tuple[int, str], _Track] = {}
        self.rows = []
        for line in lines:
            key = (line.worker, line.id)
            track = tracks[key] = self._tracks.get(key) or _Track(line)
            self.rows.append(track.look(line))
        self._tracks = tracks
        total = self.totals
        self.history.append((total.rate_in, total.rate_out))
        return self.rows

    @property
    def totals(self) -> Totals:
        rows = self.rows
        return Totals(
            sessions=len(rows),
            people=len({row.line.identity for row in rows}),
            bytes_in=sum(row.line.bytes_in for row in rows),
            bytes_out=sum(row.line.bytes_out for row in rows),
            rate_in=sum(row.rate_in or 0.0 for row in rows),
            rate_out=sum(row.rate_out or 0.0 for row in rows),
        )


# -- order -------------------------------------------------------------------------------------------------------------------

# the greatest number or the first name is on top
ORDERS: Final[dict[str, Callable[[Row], Any]]] = {
    "rate": lambda row: -row.rate,
    "age": lambda row: -row.line.seconds,
    "in": lambda row: -row.line.bytes_in,
    "out": lambda row: -row.line.bytes_out,
    "quiet": lambda row: -row.quiet_seconds,
    "who": lambda row: row.line.identity,
    "from": lambda row: row.line.address,
    "repository": lambda row: row.line.repository,
    "upstream": lambda row: row.line.upstream,
}


def ordered(rows: Sequence[Row], by: str, backwards: bool = False) -> list[Row]:
    """Sorted by one of ORDERS, and equal rows by age, so that they do not change places."""
    by_age = sorted(rows, key=lambda row: (-row.line.seconds, row.line.id))
    return sorted(by_age, key=ORDERS[by], reverse=backwards)
