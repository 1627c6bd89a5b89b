"""Several relays behind one address share, through a Redis, connections by source, penalties, and answers of the keys backend.

Each worker exchanges its counts with the Redis four times a second, and decides from memory. While the Redis is unreachable, each worker
applies its limits alone.
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
from relay.shared.mirror import PAGE, Batch, ExchangeReply, Mirror
from relay.shared.script import EXCHANGE, KEYS
from relay.tasks import Tasks

EXCHANGE_SECONDS = 0.25
HURRY_SECONDS = 0.05  # when there was more than one exchange holds
FAILED_SECONDS = 1.0  # after an exchange that failed
LEASES = 3  # a worker's connections count for this many timeouts (of at least a second) after its last exchange
LOOPBACK = ("localhost", "127.0.0.1", "::1")

_log = logging.getLogger("relay.shared")


class Shared:
    """One worker's side. Admission uses `neighbours`; the cache of the keys backend uses `answers`, which is None without a secret."""

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
        self._prefix = f"{{{settings.prefix}}}"  # in braces, so that a cluster keeps all keys on one node
        self._tasks = Tasks()
        self._down_since: float | None = None
        self._first = True
        self._asked = False  # an exchange was sent, so the Redis may have counts of this worker
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
        """Begins to exchange, in the running loop."""
        self._tasks.start(self._run(), "shared limits")

    async def close(self) -> None:
        """Takes this worker's counts out of the Redis, so that they do not count until the lease ends."""
        self._closed = True
        await self._tasks.cancel()
        if self._down_since is None and self._asked:
            try:
                await self._ask(self.neighbours.batch(), lease=0)
            except Undecided as error:
                _log.debug("shared: not signed off, the lease will end by itself: %s", error)
        if self.answers is not None:
            await self.answers.close()
        await self._client.close()

    async def check(self) -> None:
        """For `relay check --connect`: one exchange, then signs off. Raises Undecided."""
        try:
            self._decoded(await self._ask(self.neighbours.batch()))
            await self._ask(self.neighbours.batch(), lease=0)
        finally:
            await self._client.close()

    async def _run(self) -> None:
        while not self._closed:  # redis-py may swallow a cancellation
            started = time.monotonic()
            batch = self.neighbours.batch()
            self._asked = True
            try:
                reply = self._decoded(await self._ask(batch))
            except Undecided as error:
                self._exchange_failed(error)
                pause = FAILED_SECONDS
            else:
                self.neighbours.answered(batch, reply, started)
                self._exchanged(reply)
                pause = HURRY_SECONDS if self.neighbours.behind or not reply.epoch else EXCHANGE_SECONDS
            await asyncio.sleep(pause)

    async def _ask(self, batch: Batch, lease: int | None = None) -> Any:
        """Runs the script; returns its reply. With `lease` 0 this worker signs off. Raises Undecided."""
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

    def _decoded(self, reply: Any) -> ExchangeReply:
        """The reply decoded. Raises Undecided for a reply that the script cannot have made."""
        try:
            epoch, since, totals, kept, workers = reply
            return ExchangeReply(
                epoch=epoch.decode(),
                since=int(since),
                totals={source: int(count) for source, count in _pairs(totals)},
                kept={source: left / 1000 for source, left in _pairs(kept)},
                workers=int(workers),
            )
        except (ValueError, TypeError, AttributeError, OverflowError) as error:  # OverflowError: an infinite count
            raise Undecided(f"{self._client.name}: an exchange was answered by something else: {error}", "invalid") from None

    def _exchange_failed(self, error: Undecided) -> None:
        self._observer.shared_exchanged(error.why)
        if self.answers is not None:
            self.answers.usable = False
        if self._down_since is None:
            self._down_since = time.monotonic()
            _log.warning("shared: nothing can be shared (%s); until it can, each worker applies its limits alone", error)

    def _exchanged(self, reply: ExchangeReply) -> None:
        self._observer.shared_exchanged("ok")
        if not reply.epoch:
            return
        if self._first and reply.workers <= 1 and self.answers is not None:
            self.answers.begin()  # no relay was there to receive changes
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
    """The problem of a Redis that other machines reach without a password: whoever can write there can lock everyone out."""
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
    """Redis returns names and numbers alternately."""
    return [(name.decode(), float(number)) for name, number in zip(values[::2], values[1::2], strict=True)]
