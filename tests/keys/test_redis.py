"""Keys in Redis, through the cache: a revoked key is refused within a second."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from relay import config
from relay.errors import Undecided
from relay.keys import Keys
from relay.keys.open import open_keys
from tests.support.heard import Heard
from tests.support.redis import RedisServer
from tests.support.wait import wait_until_async

REVOKED_SECONDS = 1.0  # the documented promise


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as one:
        one.run("HSET", "relay:keys", "SHA256:a", "alice", "SHA256:b", "bob")
        yield one


@asynccontextmanager
async def opened(server: RedisServer, heard: Heard | None = None, **settings: Any) -> AsyncIterator[Keys]:
    keys = open_keys(config.RedisKeysSettings(urls=[server.url], **{"timeout_seconds": 5, **settings}), Path(), heard)
    try:
        yield keys
    finally:
        await keys.close()


async def remembered(keys: Keys, heard: Heard) -> None:
    """Waits until the backend answers from its cache, which it does once the client is subscribed."""

    async def condition() -> bool:
        await keys.owner("SHA256:a", "k")
        return heard.cache[-1] == "hit"

    await wait_until_async(condition)


async def test_a_revoked_key_is_refused_within_a_second(server: RedisServer) -> None:
    """A busy machine may be late once; a relay that is too slow is late every time."""
    heard, took = Heard(), list[float]()
    async with opened(server, heard, cache=config.CacheSettings(ttl_seconds=3600, stale_seconds=3600)) as keys:

        async def refused() -> bool:
            return await keys.owner("SHA256:a", "k") is None

        async def allowed() -> bool:
            return await keys.owner("SHA256:a", "k") == "alice"

        while not took or (min(took) > REVOKED_SECONDS and len(took) < 5):
            server.run("HSET", "relay:keys", "SHA256:a", "alice")
            server.run("PUBLISH", "relay:changes", "keys SHA256:a")
            await wait_until_async(allowed)
            await remembered(keys, heard)
            await keys.owner("SHA256:b", "k")
            server.run("HDEL", "relay:keys", "SHA256:a")
            assert await keys.owner("SHA256:a", "k") == "alice"  # from the cache: the change is not published yet
            server.run("PUBLISH", "relay:changes", "keys SHA256:a")
            revoked = time.monotonic()
            await wait_until_async(refused)
            took.append(time.monotonic() - revoked)
        assert min(took) <= REVOKED_SECONDS
        server.kill()
        assert await keys.owner("SHA256:a", "k") is None  # the key stays refused while the Redis is down
        await keys.owner("SHA256:b", "k")
        assert heard.cache[-1] in ("hit", "stale")


async def test_a_key_revoked_without_a_subscription_is_refused_once_redis_is_back(server: RedisServer) -> None:
    heard = Heard()
    async with opened(server, heard, timeout_seconds=0.5, cache=config.CacheSettings(ttl_seconds=3600)) as keys:
        await remembered(keys, heard)
        server.kill()

        async def stale() -> bool:
            return await keys.owner("SHA256:a", "k") == "alice" and heard.cache[-1] == "stale"

        await wait_until_async(stale)
        assert heard.answers[-1] in ("unreachable", "timeout")
        with pytest.raises(Undecided):
            await keys.owner("SHA256:nobody", "k")
        server.start()
        server.run("HDEL", "relay:keys", "SHA256:a")  # without a published message

        async def refused() -> bool:
            return await keys.owner("SHA256:a", "k") is None

        await wait_until_async(refused)
        await wait_until_async(lambda: keys.owner("SHA256:b", "k"))


async def test_one_message_may_say_that_everything_changed(server: RedisServer) -> None:
    heard = Heard()
    async with opened(server, heard) as keys:
        await remembered(keys, heard)
        server.run("HSET", "relay:keys", "SHA256:a", "zoe")
        server.run("PUBLISH", "relay:changes", "keys")

        async def renamed() -> bool:
            return await keys.owner("SHA256:a", "k") == "zoe"

        await wait_until_async(renamed)


@pytest.mark.parametrize("name", ["", "*", "@core", "a/b", "a\nb"])
async def test_an_invalid_identity_is_no_answer(server: RedisServer, name: str) -> None:
    server.run("HSET", "relay:keys", "SHA256:x", name)
    async with opened(server) as keys:
        with pytest.raises(Undecided) as caught:
            await keys.owner("SHA256:x", "k")
        assert caught.value.why == "invalid"
