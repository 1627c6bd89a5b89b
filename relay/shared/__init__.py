"""Several relays behind one address: through a Redis each worker tells the others its connections by source, its penalties and what its
keys backend said, and hears theirs, four times a second. Decisions are made from memory; without the Redis each worker has its own limits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

from relay import config
from relay.admission.limits import SOURCES_LIMIT
from relay.backends.token import Token
from relay.errors import ConfigError, Undecided
from relay.events import Observer
from relay.shared.answers import Answers
from relay.shared.mirror import PAGE, Batch, Mirror, Told
from relay.shared.script import EXCHANGE, KEYS
from relay.tasks import Tasks

EXCHANGE_SECONDS = 0.25
HURRY_SECONDS = 0.05  # when one exchange did not hold all
AGAIN_SECONDS = 1.0  # after one that failed
LEASES = 3  # timeouts, of at least a second, that a worker's connections count for after its last exchange
LOOPBACK = ("localhost", "127.0.0.1", "::1")

_log = logging.getLogger("relay.shared")


class Shared:
    """One worker's part. `neighbours` is for the gate, `answers` for the cache of keys: None unless there is a secret."""

    def __init__(
        self,
        settings: config.SharedSettings,
        limits: config.LimitsSettings,
        keys: config.AnyKeys,
        base: Path,
        observer: Observer | None = None,
    ) -> None:
        """Raises ConfigError with every problem of the settings and the files that they name. Needs no running loop."""
        from relay.backends.redis import Changes, RedisClient  # here: a relay without a Redis starts without redis-py, a fifth sooner

        self.id = token_hex(8)
        self.neighbours = Mirror(limits, LEASES * max(1.0, settings.timeout_seconds))
        self.answers: Answers | None = None
        self._observer = observer or Observer()
        self._prefix = f"{{{settings.prefix}}}"  # in braces: a cluster keeps all keys on one node
        self._tasks = Tasks()
        self._down_since: float | None = None
        self._first = True
        self._asked = False  # the others may know of this worker, though the answer has not come
        self._closed = False
        problems = _unprotected(settings)
        changes = None
        if settings.secret_file is not None:
            secret = Token(base / settings.secret_file, "shared.secret_file", "")
            problems += secret.problems
            if isinstance(keys, config.HttpKeysSettings | config.ExecKeysSettings):
                self.answers = Answers(self._prefix, secret, keys.cache.ttl_seconds)
                changes = Changes(self.answers.trust, self.answers.forget)
            else:
                problems.append("shared.secret_file: is of no use with keys from a file or a Redis, must be left out")
        try:
            self._client = RedisClient("shared", settings, base, changes, about="keys")
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(problems)
        if self.answers is not None:
            self.answers.use(self._client)

    def __repr__(self) -> str:
        return f"<shared {self.id} {'down' if self._down_since is not None else 'up'} {self.neighbours!r}>"

    def start(self) -> None:
        """Exchanges from now on, in the running loop."""
        self._tasks.start(self._run(), "shared limits")

    async def close(self) -> None:
        """The others need not wait for the lease to end."""
        self._closed = True
        await self._tasks.cancel()
        if self._down_since is None and self._asked:
            try:
                await self._ask(self.neighbours.batch(), lease=0)
            except Undecided as error:
                _log.debug("shared: the others will notice by themselves: %s", error)
        if self.answers is not None:
            await self.answers.close()
        await self._client.close()

    async def check(self) -> None:
        """For `relay check --connect`: comes and goes. Raises Undecided."""
        try:
            self._told(await self._ask(self.neighbours.batch()))
            await self._ask(self.neighbours.batch(), lease=0)
        finally:
            await self._client.close()

    async def _run(self) -> None:
        while not self._closed:  # redis-py may swallow a cancellation
            started = time.monotonic()
            batch = self.neighbours.batch()
            self._asked = True
            try:
                told = self._told(await self._ask(batch))
            except Undecided as error:
                self._cannot(error)
                pause = AGAIN_SECONDS
            else:
                self.neighbours.took(batch, told, started)
                self._can(told)
                pause = HURRY_SECONDS if self.neighbours.behind or not told.epoch else EXCHANGE_SECONDS
            await asyncio.sleep(pause)

    async def _ask(self, batch: Batch, lease: int | None = None) -> Any:
        """Raises Undecided. `lease` 0: the last exchange."""
        mirror = self.neighbours
        keys = [f"{self._prefix}{name}" for name in KEYS]
        keys[-1] += self.id
        words: list[object] = [
            self.id, batch.epoch, int(batch.fresh), _ms(mirror.lease_seconds) if lease is None else lease, _ms(mirror.life_seconds),
            batch.since, batch.number, mirror.hot, SOURCES_LIMIT, PAGE, _ms(mirror.penalty_min_seconds), _ms(mirror.penalty_max_seconds),
            len(batch.counts), *(word for pair in batch.counts.items() for word in pair),
            len(batch.penalties), *(word for source, seconds in batch.penalties.items() for word in (source, _ms(seconds))),
        ]  # fmt: skip
        [reply] = await self._client.ask(("EVAL", EXCHANGE, str(len(keys)), *keys, *map(str, words)))
        return reply

    def _told(self, reply: Any) -> Told:
        """Raises Undecided for what the script cannot have said."""
        try:
            epoch, since, totals, kept, workers = reply
            return Told(
                epoch=epoch.decode(),
                since=int(since),
                totals={source: int(count) for source, count in _pairs(totals)},
                kept={source: left / 1000 for source, left in _pairs(kept)},
                workers=int(workers),
            )
        except (ValueError, TypeError, AttributeError, OverflowError) as error:  # an infinite count, for one
            raise Undecided(f"{self._client.name}: an exchange was answered by something else: {error}", "invalid") from None

    def _cannot(self, error: Undecided) -> None:
        self._observer.shared_exchanged(error.why)
        if self.answers is not None:
            self.answers.usable = False
        if self._down_since is None:
            self._down_since = time.monotonic()
            _log.warning("shared: nothing can be shared (%s); until it can, limits hold for each worker by itself", error)

    def _can(self, told: Told) -> None:
        self._observer.shared_exchanged("ok")
        if not told.epoch:
            return
        if self._first and told.workers <= 1 and self.answers is not None:
            self.answers.begin()  # nobody was there to hear of changes
        self._first = False
        if self.answers is not None:
            self.answers.usable = True
        if self._down_since is not None:
            _log.warning("shared: limits are shared again after %.1f s", time.monotonic() - self._down_since)
            self._down_since = None


def open_shared(
    settings: config.SharedSettings, limits: config.LimitsSettings, keys: config.AnyKeys, base: Path, observer: Observer | None = None
) -> Shared | None:
    """None when nothing is shared. Raises ConfigError with every problem. Needs no running loop."""
    return Shared(settings, limits, keys, base, observer) if settings.urls else None


def _unprotected(settings: config.SharedSettings) -> list[str]:
    """Whoever may write there can shut everyone out: a Redis that other machines reach asks for a password."""
    if settings.password_file is not None:
        return []
    for url in settings.urls:
        parts = urlsplit(url)
        if parts.scheme != "unix" and parts.hostname not in LOOPBACK and not parts.password:
            return ["shared.password_file: is missing, must be there for a Redis that other machines reach"]
    return []


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _pairs(values: list[Any]) -> list[tuple[str, float]]:
    """Names and numbers in turn, as Redis gives them."""
    return [(name.decode(), float(number)) for name, number in zip(values[::2], values[1::2], strict=True)]
