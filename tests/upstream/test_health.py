"""An address is up or down, by checks and by dials: what counts, when the observer is told, and when a check is made."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from relay.errors import Unavailable
from relay.upstream.health import Health, check_for_ever
from tests.support.wait import wait_until_async
from tests.upstream.peers import Seen

REFUSED = Unavailable("10.0.0.5:22: refused")
WRONG_KEY = Unavailable("10.0.0.5:22: HOST KEY MISMATCH", reason="host_key")


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def health(seen: Seen) -> Health:
    return Health("main", "10.0.0.5:22", 3, 2, seen)


def after(health: Health, *outcomes: Unavailable | None) -> list[bool | None]:
    """The state of the address after each check."""
    thought = []
    for outcome in outcomes:
        health.checked(outcome)
        thought.append(health.up)
    return thought


def test_the_first_outcome_decides_then_it_takes_several_in_a_row(health: Health) -> None:
    assert health.up is None
    assert repr(health) == "<health 10.0.0.5:22 unknown <breaker closed failures=0>>"
    assert after(health, None) == [True]
    assert after(health, REFUSED, REFUSED, None, REFUSED, REFUSED, REFUSED) == [True, True, True, True, True, False]
    assert after(health, None, REFUSED, None, None) == [False, False, False, True]


def test_a_host_that_was_never_up_is_down_at_the_first_failure(health: Health) -> None:
    assert after(health, REFUSED) == [False]


def test_a_wrong_host_key_needs_no_second_look(health: Health) -> None:
    assert after(health, None, WRONG_KEY) == [True, False]


def test_a_login_proves_more_than_checks_do(health: Health) -> None:
    after(health, REFUSED)
    health.dialed(None)
    assert health.up is True
    assert not health.suspect


def test_a_host_that_answers_but_lets_nobody_in_is_down(health: Health) -> None:
    health.dialed(None)
    for _ in range(3):
        health.dialed(Unavailable("10.0.0.5:22: the key was refused", reason="auth"))
        health.checked(None)
    assert (health.up, health.checks_pass) == (False, True)
    health.dialed(None)
    assert health.up is True


def test_changes_are_told_once(health: Health, seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "relay.upstream")
    after(health, None, None, REFUSED, REFUSED, REFUSED, REFUSED)
    health.dialed(REFUSED)
    health.dialed(None)
    assert seen.health == [("10.0.0.5:22", True), ("10.0.0.5:22", False), ("10.0.0.5:22", True)]
    assert caplog.messages == ["upstream main: 10.0.0.5:22 is down: 10.0.0.5:22: refused", "upstream main: 10.0.0.5:22 is back"]


def test_quiet_health_reports_nothing(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    health = Health("main", "10.0.0.5:22", 3, 2, seen, quiet=True)
    health.dialed(None)
    assert after(health, WRONG_KEY, None, None) == [False, False, True]
    assert (seen.health, caplog.messages) == ([], [])


@asynccontextmanager
async def checking(health: Health, check: Callable[[], Awaitable[None]], patience: float = 10) -> AsyncIterator[list[bool | None]]:
    """Checks all the time; collects the state after each check."""
    thought: list[bool | None] = []

    async def checked(recent: float) -> bool:
        await check()
        return True

    task = asyncio.ensure_future(check_for_ever(health, checked, 0.001, patience, lambda error: thought.append(health.up)))
    yield thought
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_checks_go_on_whatever_their_outcome(health: Health) -> None:
    outcomes: list[Unavailable | None] = [None, REFUSED, REFUSED, REFUSED, None, None]

    async def check() -> None:
        if outcomes and (error := outcomes.pop(0)) is not None:
            raise error

    async with checking(health, check) as thought:
        await wait_until_async(lambda: len(thought) >= 8)
    assert thought[:6] == [True, True, True, False, False, True]


async def test_a_check_that_hangs_has_failed(health: Health) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    async with checking(health, hang, patience=0.001) as thought:
        await wait_until_async(lambda: thought)
    assert thought[0] is False


async def test_a_check_left_to_another_worker_does_not_count(health: Health) -> None:
    asked = 0

    async def check(recent: float) -> bool:
        nonlocal asked
        asked += 1
        return False

    outcomes: list[object] = []
    task = asyncio.ensure_future(check_for_ever(health, check, 0.001, 10, outcomes.append))
    await wait_until_async(lambda: asked > 2)
    task.cancel()
    assert (health.up, outcomes) == (None, [])


async def test_no_check_follows_right_after_a_failed_dial(health: Health) -> None:
    asked = 0

    async def check() -> None:
        nonlocal asked
        asked += 1

    health.dialed(REFUSED)
    health.heard += 3600  # as if a dial ended after any check begins
    async with checking(health, check):
        await asyncio.sleep(0.05)
    assert asked == 0
    health.heard -= 7200
    async with checking(health, check):
        await wait_until_async(lambda: asked)
