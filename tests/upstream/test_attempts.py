"""The attempts to serve one session: which upstreams and addresses are leased, in what order, and what ends the attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from relay.errors import ClientGone, HostBusy, HostRefused, IdentityBusy, Lost, NoExit, RelayError, RepositoryBusy, Unavailable
from relay.events import ConnectionRecord, Observer, SessionRecord
from relay.model import Command, Exit, Identity, Route
from relay.replay import Stage
from relay.upstream.attempts import Attempts
from relay.upstream.libssh2 import Connection
from relay.upstream.pool import Pool
from relay.upstream.replay_budget import ReplayBudget
from tests.support.play import Lent, raising

COMMAND = Command(service="git-upload-pack", repository="team/app")
ROUTE = Route(upstream="main", path="/srv/app.git")
REPLICATED = Route(upstream="main", path="/srv/app.git", read_upstream="copies")
HOSTS = {"main": ["main-1", "main-2"], "copies": ["copy-1", "copy-2"]}


class Pools:
    """One upstream's pool: leases its addresses in order, without those to avoid."""

    def __init__(self, addresses: list[str], error: RelayError | None, leased: list[tuple[str, Any, str]]) -> None:
        self.members = addresses
        self.wait_seconds = 0.0
        self.replays = ReplayBudget(20)
        self.error = error
        self.fails = 1 << 30  # so many leases
        self.again: list[bool] = []  # whether each lease was for a session that had one before
        self.spent: list[float] = []  # of wait_seconds, before each lease
        self.lost_at: list[str] = []  # of each lease
        self.failed: list[bool] = []  # of each lease that has ended
        self._leased = leased

    def of(self, identity: str, tell: Any, waited: Any) -> Pools:
        assert identity == "alice"
        return self

    def lease(
        self,
        line: str,
        environment: Any,
        repository: str,
        without: Collection[str],
        *,
        again: bool,
        patient: bool,
        spent_seconds: float,
        lost_at: str,
    ) -> Lent:
        assert patient is (self.members[0].startswith("main") and not without), "who waits for one that is away can go nowhere else"
        self.again.append(again)
        self.spent.append(spent_seconds)
        self.lost_at.append(lost_at)
        address = next(address for address in self.members if address not in without)
        self._leased.append((line, environment, address))
        assert repository == "team/app"
        failing = self.error is not None and self.fails > 0
        self.fails -= failing
        return Lent(SimpleNamespace(address=address), raising(self.error) if failing and self.error is not None else None, self.failed)


@dataclass
class At:
    """The git host is lost at this stage of the session."""

    stage: Stage | None
    error: RelayError = field(default_factory=lambda: Lost("cut"))
    caught_up: bool = True  # before that, if another one had been lost


class Trial:
    """One session, what is leased for it, and what its attempts carry: for each lease an Exit, an error, or a loss that may be replayed.

    A Lost alone is one before anything was carried.
    """

    def __init__(
        self,
        *ends: Exit | RelayError | At,
        failing: Mapping[str, RelayError] | None = None,
        may_move: bool = True,
        hosts: Mapping[str, list[str]] = HOSTS,
        wait_seconds: float = 0.0,
        budget: int = 20,
    ) -> None:
        self.results: list[str] = []
        self.free = may_move
        self.leased: list[tuple[str, Any, str]] = []
        self.carried: list[str] = []
        self.steps: list[str] = []
        self._ends = list(ends)
        connection = ConnectionRecord(id="c", address="192.0.2.1", port=50000)
        self.record = SessionRecord(id="c-1", connection=connection, identity=Identity(name="alice", fingerprint="SHA256:x"))
        observer = Observer()
        observer.step_took = lambda step, seconds: self.steps.append(step)  # type: ignore[method-assign]
        observer.session_replayed = lambda session, result: self.results.append(result)  # type: ignore[method-assign]
        self.pools = {name: Pools(addresses, (failing or {}).get(name), self.leased) for name, addresses in hosts.items()}
        for pool in self.pools.values():
            pool.wait_seconds, pool.replays = wait_seconds, ReplayBudget(budget)
        pools = cast(Mapping[str, Pool], self.pools)
        self.attempts = Attempts(self.record, pools, observer, lambda name: [("UPSTREAM", name)], self._carry, lambda: self.free)

    async def _carry(self, upstream: Connection) -> Exit:
        """As a Session does: it may not move but with leave."""
        self.carried.append(upstream.address)
        assert self.record.address == upstream.address
        end = self._ends.pop(0)
        free, self.free = self.free, False
        if isinstance(end, Lost):
            end = At(None, end, caught_up=False)
        if isinstance(end, At):
            if end.caught_up:
                self.attempts.caught_up()
            self.free = self.attempts.permit(end.stage, end.error) and free
            raise end.error
        if isinstance(end, RelayError):
            raise end
        self.attempts.caught_up()
        return end

    @property
    def addresses(self) -> list[str]:
        return [address for _, _, address in self.leased]


async def test_the_first_attempt_serves() -> None:
    trial = Trial(Exit(status=3))
    assert await trial.attempts.serve(COMMAND, ROUTE) == Exit(status=3)
    assert trial.leased == [("git-upload-pack '/srv/app.git'", [("UPSTREAM", "main")], "main-1")]
    assert (trial.record.upstream, trial.record.address, trial.steps) == ("main", "main-1", ["upstream"])


async def test_an_address_lost_before_anything_was_carried_is_replaced_by_the_next() -> None:
    trial = Trial(Lost("cut"), Exit())
    assert await trial.attempts.serve(COMMAND, ROUTE) == Exit()
    assert trial.carried == ["main-1", "main-2"]
    assert trial.record.address == "main-2"
    assert trial.pools["main"].failed == [False, False], "no command runs on a connection that is lost"


async def test_after_each_address_was_lost_the_session_starts_over_once_more() -> None:
    third = Lost("again")
    trial = Trial(Lost("cut"), Lost("cut"), third)
    with pytest.raises(Lost) as caught:
        await trial.attempts.serve(COMMAND, ROUTE)
    assert caught.value is third
    assert trial.carried == ["main-1", "main-2", "main-1"]
    assert (trial.record.replays, trial.results) == (2, ["lost", "lost"])


@pytest.mark.parametrize("error", [NoExit("none"), HostRefused("no"), ClientGone("left")], ids=lambda error: type(error).__name__)
async def test_only_a_lost_connection_leads_to_the_next_address(error: RelayError) -> None:
    trial = Trial(error)
    with pytest.raises(type(error)):
        await trial.attempts.serve(COMMAND, ROUTE)
    assert trial.carried == ["main-1"]
    assert trial.pools["main"].failed == [True]


async def test_a_session_that_is_cancelled_gives_its_connection_back_as_failed() -> None:
    trial = Trial()

    async def carry(upstream: Connection) -> Exit:
        return await asyncio.Future()

    trial.attempts._carry = carry
    serving = asyncio.create_task(trial.attempts.serve(COMMAND, ROUTE))
    await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert trial.pools["main"].failed == [True]


async def test_the_primary_serves_when_a_replica_has_no_connection() -> None:
    trial = Trial(Exit(), failing={"copies": Unavailable("down")})
    assert await trial.attempts.serve(COMMAND, REPLICATED) == Exit()
    assert trial.addresses == ["copy-1", "main-1"]
    assert [environment for _, environment, _ in trial.leased] == [[("UPSTREAM", "copies")], [("UPSTREAM", "main")]]
    assert (trial.record.upstream, trial.record.address) == ("main", "main-1")


async def test_the_primary_serves_when_the_replica_is_busy() -> None:
    trial = Trial(Exit(), failing={"copies": HostBusy("full")})
    assert await trial.attempts.serve(COMMAND, REPLICATED) == Exit()
    assert trial.addresses == ["copy-1", "main-1"]


@pytest.mark.parametrize("kind", [IdentityBusy, RepositoryBusy])
async def test_a_limit_that_holds_for_all_upstreams_leads_to_no_other(kind: type[HostBusy]) -> None:
    trial = Trial(Exit(), failing={"copies": kind("enough")})
    with pytest.raises(kind):
        await trial.attempts.serve(COMMAND, REPLICATED)
    assert trial.addresses == ["copy-1"]


async def test_the_time_in_line_is_added_up() -> None:
    trial = Trial()
    for seconds in (0.5, 1.5):
        trial.attempts._waited(seconds)
    assert trial.record.waited == 2


async def test_the_primary_serves_when_all_addresses_of_a_replica_are_lost() -> None:
    trial = Trial(Lost("one"), Lost("two"), Exit())
    assert await trial.attempts.serve(COMMAND, REPLICATED) == Exit()
    assert trial.carried == ["copy-1", "copy-2", "main-1"]
    assert (trial.record.replays, trial.results) == (2, ["lost", "served"])


async def test_the_primary_serves_when_the_replica_is_not_configured() -> None:
    trial = Trial(Exit())
    route = Route(upstream="main", path="/srv/app.git", read_upstream="gone")
    assert await trial.attempts.serve(COMMAND, route) == Exit()
    assert trial.addresses == ["main-1"]


async def test_the_last_upstream_is_not_configured() -> None:
    trial = Trial()
    with pytest.raises(Unavailable, match="'gone', which is not configured") as caught:
        await trial.attempts.serve(COMMAND, Route(upstream="gone", path="/x"))
    assert caught.value.reason == "no_upstream"
    assert (trial.record.upstream, trial.record.address, trial.steps) == ("gone", "", [])


async def test_the_primarys_error_is_raised_when_no_upstream_serves() -> None:
    primary = Unavailable("primary down")
    trial = Trial(failing={"copies": Unavailable("down"), "main": primary})
    with pytest.raises(Unavailable) as caught:
        await trial.attempts.serve(COMMAND, REPLICATED)
    assert caught.value is primary


@pytest.mark.parametrize("end", [Lost("cut"), NoExit("none")], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("route", [ROUTE, REPLICATED], ids=["one upstream", "replica"])
async def test_a_session_that_may_not_move_is_not_served_again(end: RelayError, route: Route) -> None:
    trial = Trial(end, may_move=False)
    with pytest.raises(type(end)):
        await trial.attempts.serve(COMMAND, route)
    assert len(trial.leased) == 1


async def test_a_session_that_may_not_move_does_not_fall_back_to_the_primary() -> None:
    trial = Trial(failing={"copies": Unavailable("down")}, may_move=False)
    with pytest.raises(Unavailable):
        await trial.attempts.serve(COMMAND, REPLICATED)
    assert trial.addresses == ["copy-1"]


async def test_an_error_that_is_not_the_upstreams_leads_to_no_other_upstream() -> None:
    trial = Trial(ClientGone("left"))
    with pytest.raises(ClientGone):
        await trial.attempts.serve(COMMAND, REPLICATED)
    assert trial.carried == ["copy-1"]


# -- replays -------------------------------------------------------------------------------------------------------------------

LISTING, LISTED, COUNTING = Stage(0, True), Stage(1, False), Stage(1, True)
LONE = {"main": ["main-1"]}


async def test_a_session_that_was_carried_goes_on_at_the_next_address() -> None:
    trial = Trial(At(LISTING), Exit())
    assert await trial.attempts.serve(COMMAND, ROUTE) == Exit()
    assert trial.carried == ["main-1", "main-2"]
    assert (trial.record.replays, trial.results) == (1, ["served"])


async def test_a_session_goes_on_at_a_lone_address() -> None:
    trial = Trial(At(LISTING), Exit(), hosts=LONE)
    assert await trial.attempts.serve(COMMAND, ROUTE) == Exit()
    assert trial.carried == ["main-1", "main-1"]


async def test_each_stage_is_replayed_once() -> None:
    last = Lost("once more")
    trial = Trial(At(None), At(LISTING), At(LISTED), At(COUNTING), At(COUNTING, last), hosts=LONE)
    with pytest.raises(Lost) as caught:
        await trial.attempts.serve(COMMAND, ROUTE)
    assert caught.value is last
    assert (trial.record.replays, trial.results) == (4, ["served"] * 4 + ["lost"])


async def test_a_host_that_is_lost_before_it_has_caught_up_is_not_replaced_again() -> None:
    trial = Trial(At(COUNTING), At(COUNTING, caught_up=False), hosts=LONE)
    with pytest.raises(Lost):
        await trial.attempts.serve(COMMAND, ROUTE)
    assert (trial.record.replays, trial.results) == (1, ["lost"])


async def test_a_budget_of_none_leaves_the_session_where_it_is_but_for_another_address_before_a_byte() -> None:
    trial = Trial(Lost("cut"), At(LISTING), budget=0)
    with pytest.raises(Lost):
        await trial.attempts.serve(COMMAND, ROUTE)
    assert trial.carried == ["main-1", "main-2"]
    assert (trial.record.replays, trial.results) == (1, ["served", "budget"])


async def test_a_session_beyond_the_budget_waits_for_its_turn(caplog: pytest.LogCaptureFixture) -> None:
    trial = Trial(At(LISTING), Exit(), hosts=LONE, wait_seconds=30, budget=50)
    for _ in range(50):
        assert trial.pools["main"].replays.reserve(30) == 0
    assert await trial.attempts.serve(COMMAND, ROUTE) == Exit()
    assert trial.results == ["served"]
    before, after = trial.pools["main"].spent
    assert before == 0 < after <= 30, "its turn and its git host are waited for within wait_seconds in all"
    spent = Trial(At(LISTING), hosts=LONE, wait_seconds=0, budget=1)
    assert spent.pools["main"].replays.reserve(0) == 0
    with pytest.raises(Lost):
        await spent.attempts.serve(COMMAND, ROUTE)
    assert spent.results == ["budget"] and "replay_budget = 1 is used up" in caplog.text


async def test_a_session_that_is_replayed_is_the_next_in_line() -> None:
    trial = Trial(At(LISTING), Exit(), hosts=LONE)
    await trial.attempts.serve(COMMAND, ROUTE)
    assert trial.pools["main"].again == [False, True]
    assert trial.pools["main"].lost_at == ["", "main-1"], "where it was lost only a new connection serves"


@pytest.mark.parametrize("error", [Unavailable("refused"), HostBusy("the line is full"), IdentityBusy("yours")], ids=repr)
@pytest.mark.parametrize("stage", [None, COUNTING])
async def test_a_host_that_does_not_come_back_ends_the_session(stage: Stage | None, error: RelayError) -> None:
    """A session of which something was carried was lost, whatever kept it from going on."""
    trial = Trial(At(stage), hosts=LONE)
    pool, carry = trial.pools["main"], trial._carry

    async def carried(upstream: Connection) -> Exit:
        pool.error = error
        return await carry(upstream)

    trial.attempts._carry = carried
    with pytest.raises(type(error) if stage is None else Lost, match=str(error)):
        await trial.attempts.serve(COMMAND, ROUTE)
    assert (trial.record.replays, trial.results, len(trial.leased)) == (1, ["unavailable"], 2)


async def test_the_lost_address_is_asked_when_no_other_serves() -> None:
    trial = Trial(At(COUNTING), Exit())
    pool = trial.pools["main"]
    carry = trial._carry

    async def carried(upstream: Connection) -> Exit:
        pool.error, pool.fails = Unavailable("refused"), 1
        return await carry(upstream)

    trial.attempts._carry = carried
    assert await trial.attempts.serve(COMMAND, ROUTE) == Exit()
    assert (trial.addresses, trial.carried) == (["main-1", "main-2", "main-1"], ["main-1", "main-1"])


async def test_the_primary_goes_on_at_once_for_a_replica_that_is_gone() -> None:
    trial = Trial(At(COUNTING), Exit(), hosts={"main": ["main-1"], "copies": ["copy-1"]}, wait_seconds=60)
    pool, carry = trial.pools["copies"], trial._carry

    async def carried(upstream: Connection) -> Exit:
        pool.error = Unavailable("refused")
        return await carry(upstream)

    trial.attempts._carry = carried
    assert await trial.attempts.serve(COMMAND, REPLICATED) == Exit()
    assert (trial.addresses, trial.record.upstream) == (["copy-1", "copy-1", "main-1"], "main")
    assert (trial.record.replays, trial.results) == (1, ["served"])


async def test_a_client_that_leaves_ends_the_replay() -> None:
    trial = Trial(At(COUNTING), may_move=False)
    with pytest.raises(Lost):
        await trial.attempts.serve(COMMAND, ROUTE)
    assert (trial.record.replays, trial.results) == (0, ["ended"])


async def test_a_host_that_says_something_else_ends_the_session() -> None:
    trial = Trial(At(COUNTING), hosts=LONE)
    carry = trial._carry

    async def carried(upstream: Connection) -> Exit:
        if trial.carried:
            trial.free = False
            trial.attempts.differed()
            raise Lost("it differs")
        return await carry(upstream)

    trial.attempts._carry = carried
    with pytest.raises(Lost, match="it differs"):
        await trial.attempts.serve(COMMAND, ROUTE)
    assert (trial.record.replays, trial.results) == (1, ["differed"])
