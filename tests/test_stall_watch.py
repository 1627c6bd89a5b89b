"""The stall watch on a clock that the test moves; what a splice tells it is in test_splice."""

from __future__ import annotations

import math

import pytest

from relay.errors import ClientIdle, NoExit, RelayError, Stalled
from relay.stall_watch import StallWatch
from tests.support.clock import Clock

SECONDS = 8.0
TO_CLIENT, TO_HOST, EXIT = range(3)


class Carrier:
    """What carries a session: nothing is awaited until a test says so."""

    def __init__(self) -> None:
        self.owed: float | None = None
        self.sides: list[tuple[int, int] | None] = [None, None, None]
        self.ended: list[RelayError] = []
        self.hangs: list[NoExit] = []

    def progress(self) -> tuple[tuple[int, int] | None, ...]:
        return tuple(self.sides)

    def stop(self, error: RelayError) -> bool:
        self.ended.append(error)
        return True

    def host_hangs(self, error: NoExit) -> None:
        self.hangs.append(error)


class Session:
    def __init__(self, idle_seconds: float = math.inf) -> None:
        self.carrier = Carrier()
        self.clock = Clock()
        self.watch = StallWatch(self.carrier, SECONDS, idle_seconds, self.clock.loop)


@pytest.fixture
def session() -> Session:
    return Session()


def test_nothing_awaited_is_no_stall(session: Session) -> None:
    session.clock.run_until(1000)
    assert session.carrier.ended == []


@pytest.mark.parametrize(("side", "fault"), [(TO_CLIENT, "client"), (TO_HOST, "upstream")])
def test_bytes_that_wait_and_do_not_move_end_the_session(session: Session, side: int, fault: str) -> None:
    session.clock.run_until(100)
    session.carrier.sides[side] = (7, 100)
    session.clock.run_until(108)
    assert session.carrier.ended == []
    session.clock.run_until(112)
    (error,) = session.carrier.ended
    assert (type(error), error.fault) == (Stalled, fault)
    assert session.clock.waiting == []  # it looks no more


@pytest.mark.parametrize("side", [TO_CLIENT, TO_HOST, EXIT])
def test_whatever_moves_is_no_stall(session: Session, side: int) -> None:
    def move() -> None:
        session.carrier.sides[side] = (int(session.clock.now), 0)

    session.clock.run_until(1000, move)
    assert (session.carrier.ended, session.carrier.hangs) == ([], [])


def test_a_wait_that_was_over_does_not_count_for_the_next(session: Session) -> None:
    for start in range(0, 100, 10):
        session.carrier.sides[TO_CLIENT] = (7, 100)
        session.clock.run_until(start + 6)
        session.carrier.sides[TO_CLIENT] = None
        session.clock.run_until(start + 10)
    assert session.carrier.ended == []


def test_a_git_host_that_does_not_exit_is_told_as_that(session: Session) -> None:
    session.carrier.sides[EXIT] = (0, 0)
    session.clock.run_until(100)
    assert (session.carrier.ended, len(session.carrier.hangs)) == ([], 1)
    assert session.carrier.hangs[0].reason == "no_exit"


def test_a_client_that_owes_its_next_word_for_too_long_is_idle() -> None:
    session = Session(idle_seconds=4.0)
    session.carrier.owed = 3.9
    session.clock.run_until(100)
    assert session.carrier.ended == []
    session.carrier.owed = 4.0
    session.clock.run_until(102)
    assert [type(error) for error in session.carrier.ended] == [ClientIdle]


def test_a_watch_that_was_stopped_looks_no_more(session: Session) -> None:
    session.carrier.sides[TO_CLIENT] = (7, 100)
    session.watch.stop()
    session.clock.run_until(1000)
    assert session.carrier.ended == []
