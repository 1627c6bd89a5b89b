"""Logins at one address: refused ones are not repeated, and of several workers one goes first. test_start_logins.py has the real sshd."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from relay.errors import Unavailable
from relay.upstream.colleagues import Colleagues, HostNews
from relay.upstream.libssh2 import Connection
from relay.upstream.logins import TURN_AFTER, Logins
from relay.upstream.refusals import Refusals
from tests.support.wait import wait_until_async

ADDRESS = "192.0.2.1:22"
REFUSED = Unavailable("refused the key", reason="auth")


class Worker:
    """One worker's logins at a host that accepts or refuses them; `news` is what it told the others."""

    def __init__(self, identity: str = "", *, first: bool = True, probing: bool = True, seconds: float | None = 60.0) -> None:
        self.now = 0.0
        self.host: Unavailable | None = None  # how it refuses
        self.dials = 0
        self.proven = False
        self.known: list[bool] = []  # each time that it learnt enough, whether it then still waited
        self.news: list[HostNews] = []
        colleagues = Colleagues()
        colleagues.connect(self.news.append, first=first)
        colleagues.probing = probing
        refusals = Refusals(seconds, lambda: self.now) if seconds is not None else None
        self.logins = Logins("main", ADDRESS, identity, self._dial, lambda: self.proven, self._learn, refusals, colleagues)

    def _learn(self) -> None:
        self.known.append(self.logins.waits)

    async def _dial(self) -> Connection:
        self.dials += 1
        await asyncio.sleep(0)
        if self.host is not None:
            raise self.host
        return cast(Connection, object())

    async def log_in(self) -> str:
        """The reason for which it failed, if it did."""
        try:
            await self.logins.log_in()
        except Unavailable as error:
            return error.reason
        self.proven = True
        return ""


async def test_logins_that_begin_together_are_refused_once() -> None:
    worker = Worker()
    worker.host = REFUSED
    assert await asyncio.gather(*(worker.log_in() for _ in range(5))) == ["auth"] * 5
    assert worker.dials == 1
    assert worker.news == [HostNews("main", ADDRESS, "refused the key", "auth", "", 60.0)]
    worker.now, worker.host = 60.0, None
    assert await worker.log_in() == "" and worker.dials == 2
    assert worker.news[1:] == [HostNews("main", ADDRESS, reason="auth")], "the others hear that it is accepted again"


async def test_a_login_that_was_accepted_before_is_told_to_nobody_and_waits_for_no_other() -> None:
    worker = Worker()
    worker.proven = True
    assert await asyncio.gather(*(worker.log_in() for _ in range(3))) == [""] * 3
    assert worker.dials == 3 and not worker.news


async def test_another_failure_is_no_refusal() -> None:
    worker = Worker()
    worker.host = Unavailable("nobody listens", reason="dial")
    assert [await worker.log_in(), await worker.log_in()] == ["dial", "dial"]
    assert worker.dials == 2 and not worker.news and worker.logins.pause(worker.host) == 0


async def test_where_nothing_is_remembered_each_login_is_tried() -> None:
    worker = Worker(seconds=None)
    worker.host = REFUSED
    assert [await worker.log_in(), await worker.log_in()] == ["auth", "auth"]
    assert worker.dials == 2 and not worker.logins.shared and not worker.logins.hear(HostNews("main", ADDRESS, reason="auth"))


@pytest.mark.parametrize(("probing", "seconds"), [(True, 60.0), (False, 60.0 * TURN_AFTER)])
async def test_news_of_a_refusal_spare_the_login_longer_where_another_worker_probes(probing: bool, seconds: float) -> None:
    worker = Worker(probing=probing)
    assert not worker.logins.hear(HostNews("main", ADDRESS, "refused", "auth", "", 60.0))
    assert (await worker.log_in(), worker.dials) == ("auth", 0)
    assert worker.logins.pause(REFUSED) == seconds
    assert worker.logins.hear(HostNews("main", ADDRESS, reason="auth"))
    assert await worker.log_in() == "" and worker.dials == 1


async def test_of_workers_that_start_together_the_others_wait_for_the_first() -> None:
    first, other = Worker(), Worker(first=False)
    for worker in (first, other):
        worker.logins.start(60.0)
    assert (first.logins.waits, other.logins.waits) == (False, True)
    assert await first.log_in() == ""
    assert other.logins.hear(first.news[0]) and other.logins.waits, "who hears may have to close its breaker first"
    other.logins.wait_no_more()
    other.logins.wait_no_more()
    assert other.known == [False]
    other.logins.stop()


async def test_a_first_worker_that_says_nothing_is_waited_for_only_so_long() -> None:
    other: Any = Worker(first=False)
    other.logins.start(0.01)
    await wait_until_async(lambda: other.known == [False], message="it waits no more")
    assert not other.logins.waits


async def test_an_identity_waits_for_nobody_and_its_refusal_holds_until_a_session_tries() -> None:
    worker = Worker("alice", first=False)
    worker.logins.start(60.0)
    assert not worker.logins.waits and not worker.logins.shared
    worker.host = REFUSED
    assert await worker.log_in() == "auth"
    assert worker.logins.pause(REFUSED) is None
    assert worker.news == [HostNews("main", ADDRESS, "refused the key", "auth", "alice", 60.0)]
