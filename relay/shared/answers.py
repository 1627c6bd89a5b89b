"""Yes answers of the keys backend, shared by relays through their Redis: signed, and bound to the key and to the time.

| key | holds |
|---|---|
| `{prefix}keys:FINGERPRINT` | when the backend was asked (milliseconds since the epoch), the signature, the identity |
| `{prefix}gone:FINGERPRINT`, `{prefix}gone` | when a change was published: answers asked for before are not used |

Without the secret, whoever can write to that Redis can neither make nor change an answer. They can only put an old answer back, for as long
as it would have been kept. The relays' clocks must agree within SKEW_SECONDS.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Final

from relay.backends.token import Token
from relay.errors import Undecided
from relay.tasks import Tasks

if TYPE_CHECKING:
    from relay.backends.redis import RedisClient

SKEW_SECONDS: Final = 2.0
FIND_SECONDS: Final = 0.25  # then the backend is asked: a Redis that hangs must not delay a login
WAITING: Final = 1000  # answers that are being stored; beyond it further ones are dropped

_log = logging.getLogger("relay.shared")


class Answers:
    """A relay.backends.cache.Level. While the last exchange with the Redis failed (`usable` is False), it is not asked."""

    def __init__(self, prefix: str, secret: Token, ttl_seconds: float, clock: Callable[[], float] = time.time) -> None:
        self.usable = False
        self._prefix = prefix
        self._secret = secret
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._client: RedisClient | None = None
        self._tasks = Tasks()
        self._trusted = False
        self._lost = False  # the subscription to changes was lost, and is not back yet
        self._floor = 0  # answers asked for before this time (milliseconds) are not used
        self._odd = False  # the last answer had a wrong signature, which is logged once
        self._trust: Callable[[bool], None] = lambda trusted: None
        self._forget: Callable[[str | None], None] = lambda what: None

    def use(self, client: RedisClient) -> None:
        """Sets the client; to be called first."""
        self._client = client

    def listen(self, trust: Callable[[bool], None], forget: Callable[[str | None], None]) -> None:
        self._trust, self._forget = trust, forget
        trust(self._trusted)

    async def close(self) -> None:
        await self._tasks.cancel()
        await self._secret.close()

    # -- changes ---------------------------------------------------------------------------------------------------------

    def trust(self, trusted: bool) -> None:
        """Whether changes are received. After a gap, in which perhaps no relay received any, answers from before are not used."""
        if trusted and self._lost:
            self.begin()
        self._lost = not trusted and (self._lost or self._trusted)
        self._trusted = trusted
        self._trust(trusted)

    def begin(self) -> None:
        """Stops using all answers asked for before now, for changes since then may have been missed."""
        self._floor = self._now()
        self._gone(None)

    def forget(self, what: str | None) -> None:
        self._gone(what)
        self._forget(what)

    def _gone(self, what: str | None) -> None:
        key = f"{self._prefix}gone" if what is None else f"{self._prefix}gone:{what}"
        self._tasks.start(self._mark(key), "a change is marked")

    async def _mark(self, key: str) -> None:
        """Stores the time of the change, for as long as older answers may still be stored."""
        life = int((self._ttl_seconds + 2 * SKEW_SECONDS) * 1000)
        try:
            await self._asked(("SET", key, str(self._now()), "PX", str(life)))
        except Undecided as error:
            _log.warning("shared: a change could not be marked for relays that did not receive it: %s", error)

    # -- answers ---------------------------------------------------------------------------------------------------------

    async def find(self, key: Hashable) -> tuple[str, float] | None:
        if not self.usable:
            return None
        names = [f"{self._prefix}{name}" for name in (f"keys:{key}", f"gone:{key}", "gone")]
        try:
            async with asyncio.timeout(FIND_SECONDS):
                answer, *gone = await self._asked(("MGET", *names))
        except (Undecided, TimeoutError) as error:
            _log.debug("shared: not asked about a key: %s", error)
            return None
        if answer is None:
            return None
        at, _, rest = answer.partition(" ")
        signature, _, name = rest.partition(" ")
        if not at.isdecimal() or not hmac.compare_digest(signature.encode(), (await self._sign(str(key), at, name)).encode()):
            if not self._odd:
                _log.warning("shared: an answer about a key is not signed with this relay's secret and is not used")
            self._odd = True
            return None
        self._odd = False
        age = (self._now() - int(at)) / 1000
        floor = max([self._floor, *(int(mark) for mark in gone if mark is not None and mark.isdecimal())])
        if age < -SKEW_SECONDS or int(at) <= floor + (SKEW_SECONDS * 1000 if floor else 0):
            return None
        return name, max(0.0, age)

    def keep(self, key: Hashable, answer: str | None, age: float) -> None:
        if self.usable and len(self._tasks) < WAITING:
            self._tasks.start(self._keep(str(key), answer, age), "an answer is shared")

    async def _keep(self, key: str, name: str | None, age: float) -> None:
        at, left = self._now() - int(age * 1000), int((self._ttl_seconds - age) * 1000)
        stored = f"{self._prefix}keys:{key}"
        try:
            if name is None:
                await self._asked(("DEL", stored))
            elif left > 0:
                await self._asked(("SET", stored, f"{at} {await self._sign(key, str(at), name)} {name}", "PX", str(left)))
        except Undecided as error:
            _log.debug("shared: an answer about a key was not shared: %s", error)

    async def _asked(self, command: tuple[str, ...]) -> list[str | None]:
        """The values of an MGET as texts; an empty list for other commands. Raises Undecided."""
        assert self._client is not None
        [reply] = await self._client.ask(command)
        return [self._client.text(value) for value in reply] if isinstance(reply, list) else []

    async def _sign(self, key: str, at: str, name: str) -> str:
        sign = await self._secret.sign()
        return sign("\0".join(("git-ssh-relay keys 1", key, at, name)).encode()).hex()

    def _now(self) -> int:
        return int(self._clock() * 1000)
