"""Several workers with one real Redis share counts, penalties and answers; the Redis stops, hangs and loses its data."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from relay import config, shared
from relay.admission.limits import Admission, Refusal, Ticket
from relay.backends.cache import Cache
from relay.errors import ConfigError, Denied
from relay.events import Observer
from relay.shared import Shared, open_shared
from tests.support.heard import Heard
from tests.support.machine import free_port
from tests.support.redis import RedisServer
from tests.support.wait import wait_until_async

ADDRESS = "192.0.2.1"
KEYS = config.HttpKeysSettings(url="http://127.0.0.1:1/")


class Exchanges(Observer):
    def __init__(self) -> None:
        self.results: Counter[str] = Counter()

    def shared_exchanged(self, result: str) -> None:
        self.results[result] += 1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "EXCHANGE_SECONDS", 0.02)
    monkeypatch.setattr(shared, "FAILED_SECONDS", 0.02)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as one:
        yield one


def secret(folder: Path) -> str:
    path = folder / "secret"
    path.write_text("s" * 32)
    path.chmod(0o600)
    return str(path)


@asynccontextmanager
async def worker(
    redis: RedisServer, *, secret_file: str | None = None, **limits: float
) -> AsyncIterator[tuple[Shared, Admission, Exchanges]]:
    """One worker with its admission."""
    told = Exchanges()
    of = config.LimitsSettings(**limits)  # type: ignore[arg-type]  # counts are ints, seconds floats
    settings = config.SharedSettings(urls=[redis.url], timeout_seconds=0.5, secret_file=secret_file)
    one = Shared(settings, of, KEYS, Path(), told)
    one.start()
    try:
        await wait_until_async(lambda: told.results["ok"] > 0)
        yield one, Admission(of, random=lambda: 0.999_999, neighbours=one.neighbours), told
    finally:
        await one.close()


def enter(gate: Admission) -> Ticket:
    ticket = gate.enter(ADDRESS)
    assert isinstance(ticket, Ticket), ticket
    return ticket


def refused(gate: Admission) -> str:
    """The refusal's reason; "" if the connection was admitted, which then leaves."""
    answer = gate.enter(ADDRESS)
    if isinstance(answer, Refusal):
        return answer.reason
    answer.leave()
    return ""


async def test_connections_of_a_source_are_counted_together(redis: RedisServer) -> None:
    async with worker(redis, connections_per_source=4) as (_, one, _), worker(redis, connections_per_source=4) as (_, other, _):
        tickets = [enter(one) for _ in range(3)]
        await wait_until_async(lambda: other._neighbours.connections(ADDRESS) == 3)
        tickets.append(enter(other))
        assert refused(other) == "source"
        await wait_until_async(lambda: refused(one) == "source")
        tickets.pop().leave()
        await wait_until_async(lambda: refused(one) == "")
        for ticket in tickets:
            ticket.leave()
        await wait_until_async(lambda: other._neighbours.connections(ADDRESS) == 0)


async def test_the_connections_of_a_worker_that_ends_do_not_count(redis: RedisServer) -> None:
    async with worker(redis, connections_per_source=2) as (_, one, _):
        async with worker(redis, connections_per_source=2) as (_, other, _):
            enter(other)
            await wait_until_async(lambda: one._neighbours.connections(ADDRESS) == 1)
        assert redis.run("ZCARD", "{relay:shared:}workers") == 1
        await wait_until_async(lambda: one._neighbours.connections(ADDRESS) == 0)


async def test_penalties_apply_at_both_workers_and_add_up(redis: RedisServer) -> None:
    async with worker(redis, penalty_seconds=10) as (_, one, _), worker(redis, penalty_seconds=10) as (_, other, _):
        for gate in (one, other):
            ticket = enter(gate)
            ticket.failed("auth")
            ticket.leave()
        assert one.penalties.remaining(ADDRESS) == 0, "10 seconds alone keep nobody out"
        await wait_until_async(lambda: refused(one) == "penalty")
        await wait_until_async(lambda: refused(other) == "penalty")
        async with worker(redis, penalty_seconds=10) as (_, late, _):
            await wait_until_async(lambda: refused(late) == "penalty")


async def test_without_the_redis_each_worker_applies_its_limits_alone(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async with worker(redis, connections_per_source=2) as (shares, one, told), worker(redis, connections_per_source=2) as (_, other, _):
        elsewhere = [enter(other), enter(other)]
        await wait_until_async(lambda: refused(one) == "source")
        redis.kill()
        await wait_until_async(lambda: told.results["unreachable"] > 2)
        await wait_until_async(lambda: refused(one) == "", message="what was elsewhere is not believed for ever")
        here = [enter(one), enter(one)]
        assert refused(one) == "source", "its own limit holds"
        assert "down" in repr(shares)
        redis.start()
        await wait_until_async(lambda: one._neighbours.connections(ADDRESS) == 2, message="it is shared again")
        for ticket in (*here, *elsewhere):
            ticket.leave()
        await wait_until_async(lambda: redis.run("ZCARD", "{relay:shared:}counts") == 0)
    said = [record.getMessage() for record in caplog.records if record.name == "relay.shared"]
    assert sum(text.startswith("shared: nothing can be shared") for text in said) == 2, "each worker once"
    assert sum(text.startswith("shared: limits are shared again after ") for text in said) == 2


async def test_a_redis_that_lost_its_data_or_hung_gets_everything_again(redis: RedisServer) -> None:
    async with worker(redis, connections_per_source=5) as (_, one, told), worker(redis, connections_per_source=5) as (_, other, _):
        enter(one)
        enter(one)
        await wait_until_async(lambda: other._neighbours.connections(ADDRESS) == 2)
        redis.run("FLUSHALL")
        enter(one)
        await wait_until_async(lambda: other._neighbours.connections(ADDRESS) == 3)
        redis.freeze()
        try:
            await wait_until_async(lambda: told.results["timeout"] > 0)
            assert isinstance(one.enter(ADDRESS), Ticket), "nobody waits for it"
        finally:
            redis.freeze(False)
        await wait_until_async(lambda: other._neighbours.connections(ADDRESS) == 4)


async def test_an_impossible_reply_is_refused(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = "{'e', 0, {'a', 'inf'}, {}, 1}"
    unpaired, no_text = "{'e', 0, {'a'}, {}, 1}", "{'e', 0, {1, 2}, {}, 1}"
    for nonsense in ("1", "{1, 2}", "{'e', 'x', {}, {}, 1}", unpaired, no_text, "{'e', 0, 'a', {}, 1}", endless):
        monkeypatch.setattr(shared, "EXCHANGE", f"return {nonsense}")
        told = Exchanges()
        one = Shared(config.SharedSettings(urls=[redis.url]), config.LimitsSettings(), KEYS, Path(), told)
        one.start()
        await wait_until_async(lambda told=told: told.results["invalid"] > 1)  # type: ignore[misc]
        await one.close()


async def test_a_worker_that_ends_before_its_first_reply_signs_off(redis: RedisServer) -> None:
    """The other workers know its counts already, so it must sign off all the same."""
    one = Shared(config.SharedSettings(urls=[redis.url]), config.LimitsSettings(), KEYS, Path(), Exchanges())
    one.neighbours.counted(ADDRESS, 2)
    ask, on_its_way = one._client.ask, asyncio.Event()

    async def held(*commands: tuple[str, ...]) -> Any:
        reply = await ask(*commands)
        if not on_its_way.is_set():
            on_its_way.set()
            await asyncio.Event().wait()
        return reply

    one._client.ask = held  # type: ignore[method-assign]
    one.start()
    await on_its_way.wait()
    assert redis.run("ZSCORE", "{relay:shared:}counts", ADDRESS) == "2"
    await one.close()
    assert redis.run("ZCARD", "{relay:shared:}counts") == 0


async def test_a_cluster_has_all_keys_on_one_node() -> None:
    port = free_port()
    with RedisServer("cluster-enabled yes", f"cluster-port {free_port()}", port=port) as redis:
        assert redis.run("CLUSTER", "ADDSLOTSRANGE", "0", "16383") == "OK"
        await wait_until_async(lambda: "cluster_state:ok" in redis.run("CLUSTER", "INFO"))
        told = Exchanges()
        settings = config.SharedSettings(urls=[f"redis://127.0.0.1:{port}"], mode="cluster", timeout_seconds=5)
        one = Shared(settings, config.LimitsSettings(), KEYS, Path(), told)
        one.neighbours.counted(ADDRESS, 2)
        one.start()
        await wait_until_async(lambda: redis.run("ZSCORE", "{relay:shared:}counts", ADDRESS) == "2")
        await one.close()
        assert redis.run("ZCARD", "{relay:shared:}counts") == 0


class Backend:
    """The backend behind the cache of one relay."""

    def __init__(self, one: Shared) -> None:
        self.heard = Heard()
        self.asked = 0
        self.answer: str | None = "alice"
        self.cache: Cache[str] = Cache("keys", "http", KEYS.cache, self.heard, level=one.answers)
        assert one.answers is not None
        one.answers.listen(self.cache.trust, lambda what: self.cache.forget(None if what is None else lambda key: key == what))

    def look_up(self) -> Callable[[], Awaitable[str]]:
        async def look() -> str:
            self.asked += 1
            if self.answer is None:
                raise Denied("no")
            return self.answer

        return look

    async def owner(self) -> str | None:
        try:
            return await self.cache.get("SHA256:x", self.look_up())
        except Denied:
            return None


async def test_answers_about_keys_are_shared_and_taken_back_everywhere(redis: RedisServer, tmp_path: Path) -> None:
    path = secret(tmp_path)
    async with worker(redis, secret_file=path) as (one, _, _), worker(redis, secret_file=path) as (two, _, _):
        first, second = Backend(one), Backend(two)
        stored = "{relay:shared:}keys:SHA256:x"

        async def asked_again() -> bool:
            """An answer from before the relay was subscribed is not shared."""
            first.cache.forget()
            await first.owner()
            return redis.run("EXISTS", stored) == 1 and await two.answers.find("SHA256:x") is not None  # type: ignore[union-attr]

        await wait_until_async(asked_again)
        assert await second.owner() == "alice"
        assert (second.asked, second.heard.cache) == (0, ["shared"])
        assert await second.owner() == "alice"
        assert second.heard.cache == ["shared", "hit"]

        first.answer = second.answer = None
        redis.run("PUBLISH", "relay:shared:changes", "keys SHA256:x")

        async def gone() -> bool:
            return await first.owner() is None and await second.owner() is None

        await wait_until_async(gone)
        await wait_until_async(lambda: redis.run("EXISTS", stored) == 0 or redis.run("EXISTS", "{relay:shared:}gone:SHA256:x") == 1)


async def test_the_acl_user_of_the_page_may_do_all_that_is_needed(
    redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page = (Path(__file__).parents[2] / "deploy" / "README.md").read_text()
    acl = page[page.index("ACL SETUSER") :].partition("```")[0].split()
    assert redis.run(*(word.replace(">PASSWORD", ">word") for word in acl)) == "OK"
    password = tmp_path / "password"
    password.write_text("word")
    password.chmod(0o600)
    told = Exchanges()
    settings = config.SharedSettings(
        urls=[redis.url], username="relay", password_file=str(password), secret_file=secret(tmp_path), timeout_seconds=5
    )
    one = Shared(settings, config.LimitsSettings(), KEYS, Path(), told)
    assert one.answers is not None
    one.start()
    try:
        one.neighbours.counted(ADDRESS, 40)
        one.neighbours.penalised(ADDRESS, 20)
        await wait_until_async(lambda: one.neighbours.penalty(ADDRESS) > 0)
        one.neighbours.counted(ADDRESS, 0)
        one.answers.keep("SHA256:x", "alice", 0)
        await wait_until_async(lambda: redis.run("EXISTS", "{relay:shared:}keys:SHA256:x") == 1)
        assert await one.answers.find("SHA256:y") is None
        redis.run("PUBLISH", "relay:shared:changes", "keys SHA256:x")
        await wait_until_async(lambda: redis.run("EXISTS", "{relay:shared:}gone:SHA256:x") == 1)
        one.answers.keep("SHA256:x", None, 0)
        await wait_until_async(lambda: redis.run("EXISTS", "{relay:shared:}keys:SHA256:x") == 0)
        redis.run("ZADD", "{relay:shared:}workers", "1", "dead")
        redis.run("HSET", "{relay:shared:}of:dead", ADDRESS, "1")
        await wait_until_async(lambda: redis.run("EXISTS", "{relay:shared:}of:dead") == 0)
    finally:
        await one.close()
    assert set(told.results) == {"ok"}
    assert redis.run("ZCARD", "{relay:shared:}workers") == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_it_is_off_without_urls() -> None:
    assert open_shared(config.SharedSettings(), config.LimitsSettings(), KEYS, Path()) is None


@pytest.mark.parametrize(
    ("settings", "keys", "problem"),
    [
        (
            config.SharedSettings(urls=["redis://10.0.0.9"]),
            KEYS,
            "shared.password_file: is missing, must be there for a Redis that other machines reach",
        ),
        (config.SharedSettings(urls=["redis://127.0.0.1?x=y"]), KEYS, "shared.urls: cannot be understood"),
        (
            config.SharedSettings(urls=["redis://127.0.0.1"], secret_file="nowhere"),
            KEYS,
            "shared.secret_file: the file cannot be read (No such file or directory)",
        ),
        (
            config.SharedSettings(urls=["redis://127.0.0.1"], secret_file="secret"),
            config.FileKeysSettings(),
            "shared.secret_file: is of no use with keys from a file or a Redis, must be left out",
        ),
        (config.SharedSettings(urls=["redis://127.0.0.1"], secret_file="short"), KEYS, "shared.secret_file: the file holds 5 bytes, "),
    ],
)
def test_invalid_settings_are_problems(tmp_path: Path, settings: config.SharedSettings, keys: config.AnyKeys, problem: str) -> None:
    secret(tmp_path)
    (tmp_path / "short").write_text("short")
    (tmp_path / "short").chmod(0o600)
    with pytest.raises(ConfigError) as raised:
        open_shared(settings, config.LimitsSettings(), keys, tmp_path)
    assert len(raised.value.problems) == 1
    assert raised.value.problems[0].startswith(problem)


def test_a_password_in_the_url_is_enough() -> None:
    assert open_shared(config.SharedSettings(urls=["redis://:word@10.0.0.9"]), config.LimitsSettings(), KEYS, Path()) is not None


async def test_check_signs_off(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await Shared(config.SharedSettings(urls=[redis.url]), config.LimitsSettings(), KEYS, Path()).check()
    assert redis.run("ZCARD", "{relay:shared:}workers") == 0
    assert not caplog.records
