"""The script in a real Redis, called like a worker does: sums, leases, numbers, penalties and pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from relay.shared.script import EXCHANGE, KEYS
from tests.support.redis import RedisServer
from tests.support.wait import wait_until

LEASE_MS = 60_000


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as one:
        yield one


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    server.run("FLUSHALL")
    return server


class Worker:
    """One caller of the script."""

    def __init__(self, redis: RedisServer, name: str, page: int = 100, most: int = 1000) -> None:
        self._redis = redis
        self.name = name
        self.epoch, self.since, self.number = "", "0", 0
        self._page, self._most = page, most

    def tell(
        self,
        counts: dict[str, int] | None = None,
        penalties: dict[str, int] | None = None,
        *,
        lease: int = LEASE_MS,
        fresh: bool = False,
        repeat: bool = False,
        hot: int = 1,
    ) -> tuple[str, dict[str, int], dict[str, int], int]:
        """Epoch, totals, penalised sources with their milliseconds, workers."""
        counts, penalties = counts or {}, penalties or {}
        self.number += bool(penalties) and not repeat
        keys = [f"{{p:}}{name}" for name in KEYS]
        keys[-1] += self.name
        words: list[Any] = [self.name, self.epoch, int(fresh or not self.epoch), lease, 60_000, self.since, self.number]
        words += [hot, self._most, self._page, 15_000, 600_000]
        for table in (counts, penalties):
            words += [len(table), *(word for pair in table.items() for word in pair)]
        reply = self._redis.run("EVAL", EXCHANGE, str(len(keys)), *keys, *map(str, words))
        assert isinstance(reply, list), reply
        epoch, self.since, totals, kept, workers = reply
        self.epoch = epoch or self.epoch
        return epoch, dict(zip(totals[::2], map(int, totals[1::2]), strict=True)), dict(zip(kept[::2], kept[1::2], strict=True)), workers


def test_counts_are_summed_and_returned_from_the_threshold_on(redis: RedisServer) -> None:
    a, b = Worker(redis, "a"), Worker(redis, "b")
    a.tell({"x": 2, "y": 1})
    epoch, totals, _, workers = b.tell({"x": 3})
    assert (epoch, totals, workers) == (a.epoch, {"x": 5, "y": 1}, 2)
    assert a.tell({"x": 0}, hot=2)[1] == {"x": 3}
    assert a.tell({"x": 0})[1] == {"x": 3, "y": 1}, "told twice, counted once"
    assert b.tell({"x": 0})[1] == {"y": 1}


def test_a_worker_whose_lease_has_ended_does_not_count(redis: RedisServer) -> None:
    a, b = Worker(redis, "a"), Worker(redis, "b")
    a.tell({"x": 2}, lease=1)
    wait_until(lambda: b.tell({"x": 1})[1] == {"x": 1}, message="the lease of a millisecond is over")
    assert redis.run("EXISTS", "{p:}of:a") == 0
    assert a.tell({"x": 3})[0] == "", "it is to tell everything anew"
    assert b.tell()[1] == {"x": 1}
    assert a.tell({"x": 3}, fresh=True)[1] == {"x": 4}


def test_a_worker_that_signs_off_does_not_count(redis: RedisServer) -> None:
    a, b = Worker(redis, "a"), Worker(redis, "b")
    a.tell({"x": 2})
    b.tell({"x": 1})
    a.tell(lease=0)
    assert b.tell()[1:] == ({"x": 1}, {}, 1)


def test_a_redis_that_lost_everything_has_another_epoch(redis: RedisServer) -> None:
    a = Worker(redis, "a")
    a.tell({"x": 2})
    before = a.epoch
    wait_until(lambda: int(redis.run("TIME")[0]) * 1000 + int(redis.run("TIME")[1]) // 1000 > int(before.partition(":")[2]) + 1)
    redis.run("FLUSHALL")
    assert a.tell()[0] == ""
    assert a.tell({"x": 2}, fresh=True)[1] == {"x": 2}
    assert a.epoch != before


def test_penalties_of_all_workers_add_up_and_apply_from_the_minimum_on(redis: RedisServer) -> None:
    a, b = Worker(redis, "a"), Worker(redis, "b")
    assert a.tell(penalties={"x": 10_000})[2] == {}
    kept = b.tell(penalties={"x": 10_000})[2]
    assert 15_000 < kept["x"] <= 20_000
    assert 15_000 < a.tell()[2]["x"] <= 20_000
    assert a.tell()[2] == {}, "told once"
    assert Worker(redis, "c").tell()[2].keys() == {"x"}, "and to who comes later"
    assert 600_000 >= a.tell(penalties={"x": 10_000_000})[2]["x"] > 590_000


def test_penalties_that_are_sent_twice_count_once(redis: RedisServer) -> None:
    a = Worker(redis, "a")
    a.tell(penalties={"x": 20_000})
    a.tell(penalties={"x": 20_000}, repeat=True)
    assert float(redis.run("ZSCORE", "{p:}penalties", "x")) - float(redis.run("TIME")[0]) * 1000 <= 21_000


def test_penalties_end_and_there_are_no_more_of_them_than_allowed(redis: RedisServer) -> None:
    a = Worker(redis, "a", most=3)
    a.tell(penalties={"short": 1})
    wait_until(lambda: a.tell() and redis.run("ZCARD", "{p:}penalties") == 0, message="the penalty of a millisecond is over")
    a.tell(penalties={str(number): 20_000 + 1000 * number for number in range(5)})
    assert redis.run("ZRANGE", "{p:}penalties", "0", "-1") == ["2", "3", "4"]
    assert redis.run("ZRANGE", "{p:}kept", "0", "-1") == ["2", "3", "4"]
    assert sorted(redis.run("ZRANGE", "{p:}news", "0", "-1")) == ["2", "3", "4"]


def test_many_penalties_are_returned_in_pages(redis: RedisServer) -> None:
    Worker(redis, "a").tell(penalties={str(number): 20_000 for number in range(25)})
    b = Worker(redis, "b", page=10)
    pages = [b.tell()[2] for _ in range(4)]
    assert [len(page) for page in pages] == [10, 10, 5, 0]
    assert len({source for page in pages for source in page}) == 25


def test_every_key_ends_by_itself(redis: RedisServer) -> None:
    Worker(redis, "a").tell({"x": 1}, {"x": 20_000})
    keys = redis.run("KEYS", "*")
    assert sorted(keys) == sorted(["{p:}of:a", *(f"{{p:}}{name}" for name in KEYS[:-1])])
    assert all(0 < redis.run("PTTL", key) <= 60_000 for key in keys)
