"""Fixtures: pools in front of the test sshd, which are closed and checked to be empty after the test, and their observer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from relay.upstream.pool import MemberLimits, Pool
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async
from tests.upstream.peers import EMPTY, Make, Seen, login


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
async def make(sshd: Sshd, seen: Seen) -> AsyncIterator[Make]:
    """A pool with at most one connection to each address and none kept warm, by default; at the end asserts that no login is left."""
    pools: list[Pool] = []

    def make(address: tuple[str, int] | None = None, *more: tuple[str, int], **limits: Any) -> Pool:
        known = {"connections_max": 1, "idle_connections": 0, "idle_seconds": 300, "connect_seconds": 10, "keepalive_seconds": 15}
        addresses = [address or (sshd.address, sshd.port), *more]
        pools.append(Pool("main", addresses, login(sshd), MemberLimits(**{**known, **limits}), seen))
        return pools[-1]

    yield make
    for pool in pools:
        await pool.close()
        assert pool.states == EMPTY
    await wait_until_async(lambda: sshd.session_count() == 0, message="no login is left")
