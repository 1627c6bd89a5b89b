"""The attempts to serve one session: which upstreams and addresses are leased, in what order, and what ends the attempts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from relay.errors import ClientGone, HostBusy, HostRefused, IdentityBusy, Lost, NoExit, RelayError, RepositoryBusy, Unavailable
from relay.events import ConnectionRecord, Observer, SessionRecord
from relay.model import Command, Exit, Identity, Route
from relay.upstream.attempts import Attempts
from relay.upstream.libssh2 import Connection
from relay.upstream.pool import Pool

COMMAND = Command(service="git-upload-pack", repository="team/app")
ROUTE = Route(upstream="main", path="/srv/app.git")
REPLICATED = Route(upstream="main", path="/srv/app.git", read_upstream="copies")
HOSTS = {"main": ["main-1", "main-2"], "copies": ["copy-1", "copy-2"]}


class Pools:
    """One upstream's pool: leases its addresses in order, without those to avoid."""

    def __init__(self, addresses: list[str], error: RelayError | None, leased: list[tuple[str, Any, str]]) -> None:
        self.members = addresses
        self._error = error
        self._leased = leased

    def of(self, identity: str, tell: Any, waited: Any) -> Pools:
        assert identity == "alice"
        return self

    @asynccontextmanager
    async def lease(
        self, line: str, environment: Any, repository: str, without: Collection[str], *, again: bool, patient: bool
    ) -> AsyncIterator[Any]:
        assert again is bool(without)
        assert patient is self.members[0].startswith("main"), "of a replica nobody waits for one that is away"
        address = next(address for address in self.members if address not in without)
        self._leased.append((line, environment, address))
        assert repository == "team/app"
        if self._error is not None:
            raise self._error
        yield SimpleNamespace(address=address)


class Trial:
    """One session, its leases, and the result of its attempts: an Exit or an error for each address, in order."""

    def __init__(self, *ends: Exit | RelayError, failing: Mapping[str, RelayError] | None = None, may_move: bool = True) -> None:
        self.leased: list[tuple[str, Any, str]] = []
        self.carried: list[str] = []
        self.steps: list[str] = []
        self._ends = list(ends)
        connection = ConnectionRecord(id="c", address="192.0.2.1", port=50000)
        self.record = SessionRecord(id="c-1", connection=connection, identity=Identity(name="alice", fingerprint="SHA256:x"))
        observer = Observer()
        observer.step_took = lambda step, seconds: self.steps.append(step)  # type: ignore[method-assign]
        pools = {name: cast(Pool, Pools(addresses, (failing or {}).get(name), self.leased)) for name, addresses in HOSTS.items()}
        self.attempts = Attempts(self.record, pools, observer, lambda name: [("UPSTREAM", name)], self._carry, lambda: may_move)

    async def _carry(self, upstream: Connection) -> Exit:
        self.carried.append(upstream.address)
        assert self.record.address == upstream.address
        end = self._ends.pop(0)
        if isinstance(end, RelayError):
            raise end
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


async def test_each_address_is_lost_once_at_most() -> None:
    second = Lost("again")
    trial = Trial(Lost("cut"), second)
    with pytest.raises(Lost) as caught:
        await trial.attempts.serve(COMMAND, ROUTE)
    assert caught.value is second
    assert trial.carried == ["main-1", "main-2"]


@pytest.mark.parametrize("error", [NoExit("none"), HostRefused("no"), ClientGone("left")], ids=lambda error: type(error).__name__)
async def test_only_a_lost_connection_leads_to_the_next_address(error: RelayError) -> None:
    trial = Trial(error)
    with pytest.raises(type(error)):
        await trial.attempts.serve(COMMAND, ROUTE)
    assert trial.carried == ["main-1"]


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
