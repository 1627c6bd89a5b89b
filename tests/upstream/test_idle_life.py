"""How long idle connections live at a git host, by a clock that the test moves."""

from __future__ import annotations

import pytest

from relay.upstream.idle_life import FORGET_SECONDS, LEARN_FROM, LEAST_SECONDS, TOLD_SECONDS, IdleLife, IdleLives


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def after(*lives: float, apart: float = 10.0) -> tuple[IdleLife, Clock]:
    clock = Clock()
    life = IdleLife(clock)
    for seconds in lives:
        clock.now += apart
        life.closed(seconds)
    return life, clock


@pytest.mark.parametrize(
    ("lives", "expected"),
    [
        ([], None),
        ([60.0, 60.0], None),  # too few
        ([60.0, 61.0, 60.5], 57.0),
        ([600.0, 600.0, 601.0], 570.0),
        ([10.0, 10.9, 10.2], 9.0),
        ([1.2, 1.9, 1.6], 0.6),  # at least half of the lifetime is used
        ([0.0, 0.1, 0.1], LEAST_SECONDS),
        ([5.0, 700.0, 60.0], None),  # the host restarted
        ([5.0, 700.0, 60.0, 60.0, 61.0], 57.0),  # only the last ones count
        ([60.0, 60.0, 60.0, 30.0, 30.0], None),  # the host's configuration has changed
        ([60.0, 60.0, 60.0, 30.0, 30.0, 30.0], 28.5),
    ],
)
def test_connections_are_replaced_a_little_before_the_shortest_lifetime_that_was_seen(lives: list[float], expected: float | None) -> None:
    life, _ = after(*lives)
    assert life.replace_after() == (None if expected is None else pytest.approx(expected))


def test_a_host_that_is_restarted_and_closes_all_connections_at_once_has_no_limit() -> None:
    life, _ = after(*[60.0] * 8, apart=0.01)
    assert life.replace_after() is None


def test_what_was_learned_is_forgotten_for_the_host_may_have_been_configured_otherwise() -> None:
    life, clock = after(*[60.0] * LEARN_FROM)
    clock.now += FORGET_SECONDS - 1
    assert life.replace_after() is not None
    clock.now += 2
    assert life.replace_after() is None
    life.closed(60.0)
    assert life.replace_after() is None, "one close alone proves nothing again"


def test_a_lifetime_of_hours_is_not_forgotten_within_it() -> None:
    life, clock = after(*[7200.0] * LEARN_FROM)
    clock.now += 7200
    assert life.replace_after() == pytest.approx(6840.0)


def test_the_log_is_told_once_a_minute_with_counts() -> None:
    clock = Clock()
    life = IdleLife(clock)
    assert life.closed(1.25) == "idle connections: the git host closed 1 after 1.2 s; 1 more login (UnusedConnectionTimeout?)"
    said = []
    for _ in range(500):
        clock.now += 0.2
        said.append(life.closed(1.0))
        said.append(life.replaced())
    assert len([line for line in said if line]) == 1
    clock.now += TOLD_SECONDS
    line = life.closed(2.0)
    assert "after 1.0 to 2.0 s" in line and "were replaced before it would" in line


def test_every_close_and_replacement_is_in_one_line() -> None:
    clock = Clock()
    life = IdleLife(clock)
    life.closed(3.0)
    for _ in range(4):
        assert (life.closed(2.0), life.replaced()) == ("", "")
    clock.now += TOLD_SECONDS
    assert life.replaced() == (
        "idle connections in 60 s: the git host closed 4 after 2.0 s, 5 were replaced before it would; "
        "9 more logins (UnusedConnectionTimeout?)"
    )


def test_the_pools_of_all_identities_share_what_is_known_of_an_address() -> None:
    lives = IdleLives()
    assert lives.of("10.0.0.5:22") is lives.of("10.0.0.5:22")
    assert lives.of("10.0.0.5:22") is not lives.of("10.0.0.6:22")
