"""Answers about keys that relays share: found, signed, aged, deleted; and attacks by the Redis."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from relay import config
from relay.backends.redis import Changes, RedisClient
from relay.backends.token import Token
from relay.shared.answers import SKEW_SECONDS, Answers
from tests.support.redis import RedisServer
from tests.support.wait import wait_until_async

KEY = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"
STORED = f"p:keys:{KEY}"
TTL = 60.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as one:
        yield one


@asynccontextmanager
async def opened(redis: RedisServer, folder: Path, clock: Clock, secret: str = "s" * 32) -> AsyncIterator[Answers]:
    """The answers of one relay; the test, not the Redis, reports changes."""
    path = folder / f"secret{secret[0]}"
    path.write_text(secret)
    path.chmod(0o600)
    answers = Answers("p:", Token(path, "shared.secret_file", ""), TTL, clock)
    client = RedisClient("shared", config.SharedSettings(urls=[redis.url], timeout_seconds=5), folder, None)
    answers.use(client)
    answers.usable = True
    try:
        yield answers
    finally:
        await answers.close()
        await client.close()


@pytest.fixture
async def relays(redis: RedisServer, tmp_path: Path) -> AsyncIterator[tuple[Answers, Answers, Clock]]:
    clock = Clock()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(opened(redis, tmp_path, clock))
        yield first, await stack.enter_async_context(opened(redis, tmp_path, clock)), clock


async def kept(one: Answers, redis: RedisServer, name: str = "alice", age: float = 0.0) -> str:
    one.keep(KEY, name, age)
    await wait_until_async(lambda: redis.run("EXISTS", STORED) == 1, message="the answer is there")
    return str(redis.run("GET", STORED))


async def test_an_answer_that_one_relay_stores_another_finds_with_its_age(
    relays: tuple[Answers, Answers, Clock], redis: RedisServer
) -> None:
    one, other, clock = relays
    assert await other.find(KEY) is None
    await kept(one, redis, "Ål ice", age=7)
    assert 0 < redis.run("PTTL", STORED) <= 53_000
    assert await other.find(KEY) == ("Ål ice", 7.0)
    clock.now += 5
    assert await other.find(KEY) == ("Ål ice", 12.0)


async def test_a_no_deletes_the_yes(relays: tuple[Answers, Answers, Clock], redis: RedisServer) -> None:
    one, other, _ = relays
    await kept(one, redis)
    other.keep(KEY, None, 0)
    await wait_until_async(lambda: redis.run("EXISTS", STORED) == 0)


@pytest.mark.parametrize("what", [KEY, None])
async def test_an_answer_from_before_a_change_is_not_used(
    relays: tuple[Answers, Answers, Clock], redis: RedisServer, what: str | None
) -> None:
    one, other, clock = relays
    forgotten: list[str | None] = []
    one.listen(lambda trusted: None, forgotten.append)
    clock.now += 10
    one.forget(what)
    assert forgotten == [what]
    await wait_until_async(lambda: redis.run("EXISTS", f"p:gone:{KEY}" if what else "p:gone") == 1)
    await kept(other, redis, age=1)  # stored by another relay, whose question began before the change
    assert await one.find(KEY) is None
    assert await other.find(KEY) is None
    clock.now += SKEW_SECONDS + 1
    redis.run("DEL", STORED)
    await kept(other, redis)
    assert await one.find(KEY) == ("alice", 0.0)


async def test_after_a_gap_in_the_subscription_no_older_answer_is_used(relays: tuple[Answers, Answers, Clock], redis: RedisServer) -> None:
    one, other, clock = relays
    trusted: list[bool] = []
    one.listen(trusted.append, lambda what: None)
    await kept(other, redis)
    one.trust(True)
    clock.now += 1
    assert await one.find(KEY) is not None, "who has only just come relies on the others"
    one.trust(False)
    assert await one.find(KEY) is not None, "the cache in front does not use it now"
    one.trust(True)
    assert await one.find(KEY) is None
    await wait_until_async(lambda: redis.run("EXISTS", "p:gone") == 1, message="nobody is to use it")
    assert await other.find(KEY) is None
    assert trusted == [False, True, False, True]


async def test_no_answer_can_be_forged_without_the_secret(
    relays: tuple[Answers, Answers, Clock], redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other, clock = relays
    at, signature, name = (await kept(one, redis)).split(" ")
    moved = f"p:keys:{KEY}x"
    later = str(int(at) + 1)
    for key, forged in [
        (KEY, f"{at} {signature} root"),
        (KEY, f"{later} {signature} {name}"),
        (KEY, f"{at} {signature[:-2]} {name}"),
        (KEY, f"{at}  {name}"),
        (KEY, "x"),
        (KEY, ""),
        (KEY, f"-{at} {signature} {name}"),
        (f"{KEY}x", f"{at} {signature} {name}"),
    ]:
        redis.run("SET", moved if key != KEY else STORED, forged)
        assert await other.find(key) is None, forged
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "shared: an answer about a key is not signed with this relay's secret and is not used"
    ]
    async with opened(redis, tmp_path, clock, "t" * 32) as stranger:
        redis.run("DEL", STORED)
        await kept(stranger, redis, "root")
        assert await other.find(KEY) is None
        assert await stranger.find(KEY) == ("root", 0.0)


async def test_an_answer_from_the_future_is_not_used(relays: tuple[Answers, Answers, Clock], redis: RedisServer) -> None:
    one, other, clock = relays
    await kept(one, redis)
    clock.now -= SKEW_SECONDS
    assert await other.find(KEY) == ("alice", 0.0)
    clock.now -= 1
    assert await other.find(KEY) is None


async def test_an_unreachable_or_hanging_redis_is_not_waited_for(relays: tuple[Answers, Answers, Clock], redis: RedisServer) -> None:
    one, other, _ = relays
    await kept(one, redis)
    other.usable = False
    assert await other.find(KEY) is None
    other.usable = True
    redis.freeze()
    try:
        assert await other.find(KEY) is None
    finally:
        redis.freeze(False)
    redis.kill()
    assert await other.find(KEY) is None
    other.keep(KEY, "alice", 0)


async def test_changes_are_received_from_the_redis(redis: RedisServer, tmp_path: Path) -> None:
    """Wired as in relay.shared: `keys FINGERPRINT` on the channel."""
    heard: list[str | None] = []
    trusted: list[bool] = []
    settings = config.SharedSettings(urls=[redis.url], timeout_seconds=5)
    client = RedisClient("shared", settings, tmp_path, Changes(trusted.append, heard.append), about="keys")
    try:
        await client.ask(("PING",))
        await wait_until_async(lambda: trusted[-1:] == [True])
        redis.run("PUBLISH", "relay:shared:changes", f"keys {KEY}")
        redis.run("PUBLISH", "relay:shared:changes", "access alice")
        redis.run("PUBLISH", "relay:shared:changes", "keys")
        await wait_until_async(lambda: heard == [KEY, None])
    finally:
        await client.close()
