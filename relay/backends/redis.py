"""Asks a Redis (single, behind sentinels, or a cluster) and subscribes to its changes; the sole importer of redis-py.

Whatever is not an answer is unknown (Undecided). Changes are messages on the channel `{prefix}changes`; without a subscription no cached
answer is trusted.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from relay import config
from relay.backends.slots import Slots
from relay.backends.token import Token
from relay.errors import ConfigError, Denied, Undecided
from relay.events import BackendQuestion
from relay.git.namespaces import PLACEHOLDER, namespace
from relay.tasks import Tasks
from relay.text import error_text, printable

try:
    from redis import exceptions
    from redis.asyncio import Redis, RedisCluster
    from redis.asyncio.cluster import ClusterNode
    from redis.asyncio.connection import parse_url
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import Sentinel
    from redis.backoff import NoBackoff
    from redis.credentials import CredentialProvider
except ModuleNotFoundError:  # the extra [redis] is not installed
    INSTALLED = False
else:
    INSTALLED = True

RETRY_SECONDS = (0.02, 0.1)  # before the second attempt, chosen at random so that workers do not retry in step
PING_SECONDS = 0.25  # without a message for this long the channel is pinged; without an answer for as long it is lost
RESUBSCRIBE_SECONDS = (0.1, 0.5)  # before subscribing to a lost channel again
FOLDERS = 32  # depth of folders that may have rules or routes
NAMED_MOST = 4  # segments of a repository's name that are the name of the identity that asks
VALUE_BYTES = 8192  # a longer name, path or set of rules is refused

_log = logging.getLogger("relay.clients.redis")
_random = random.SystemRandom()


class Changes(NamedTuple):
    """Called by the subscription: `trust` with whether changes are received, `forget` with what changed (None: anything may have)."""

    trust: Callable[[bool], None]
    forget: Callable[[str | None], None]


class RedisClient:
    """Asks one Redis one kind of question. Connects when first asked, in the loop that asks."""

    def __init__(
        self,
        question: BackendQuestion | Literal["shared"],
        settings: config.RedisServerSettings,
        base: Path,
        changes: Changes | None,
        about: str = "",
    ) -> None:
        """Subscribes to the changes of `about`, by default of the question; without `changes` to none.

        Raises ConfigError with every problem of the settings and the files that they name.
        """
        if not INSTALLED:
            key = "shared.urls" if question == "shared" else f"{question}.source"
            raise ConfigError([f"{key}: needs the package redis, must be installed: pip install 'git-ssh-relay[redis]'"])
        self.name = f"{question} redis"
        self.prefix = settings.prefix
        self._about = about or question
        self._settings = settings
        self._changes = changes
        self._asking = Slots(self.name, settings.connections, settings.timeout_seconds, "questions are under way")
        self._tasks = Tasks()
        self._listening: asyncio.Task[None] | None = None
        self._closed = False
        self._lost = False  # the loss of the subscription is logged
        problems: list[str] = []
        self._password = Token(base / settings.password_file, f"{question}.password_file") if settings.password_file is not None else None
        if self._password is not None:
            problems += self._password.problems
        ca_file = str(base / settings.ca_file) if settings.ca_file is not None else None
        try:
            self._client, self._sentinels = _client(settings, self._password, ca_file)
        except (ValueError, TypeError, exceptions.RedisClusterException):
            problems.append(f"{question}.urls: cannot be understood, must be redis://, rediss:// or unix:// URLs with options of redis-py")
        if ca_file is not None:
            if not any(url.startswith("rediss://") for url in settings.urls):
                problems.append(f"{question}.ca_file: is of no use without TLS, must be set with rediss:// URLs only")
            elif not Path(ca_file).is_file():
                problems.append(f"{question}.ca_file: {ca_file} is missing, must be certificates in PEM")
        if problems:
            raise ConfigError(problems)
        if changes is not None:
            changes.trust(False)

    def __repr__(self) -> str:
        return f"<{self.name} {self._settings.mode}>"

    async def ask(self, *commands: tuple[str, ...]) -> list[Any]:
        """The replies in order, in one round trip (to each node of a cluster). Raises Undecided with the reason."""
        if self._listening is None and self._changes is not None:
            self._listening = self._tasks.start(self._listen(self._changes), f"{self.name} tells of changes")
        async with self._asking.taken():
            try:
                return await self._attempt(commands)
            except Undecided as error:
                if error.why not in ("timeout", "unreachable"):
                    raise
            await asyncio.sleep(_random.uniform(*RETRY_SECONDS))
            return await self._attempt(commands)

    def text(self, value: object) -> str | None:
        """A value as text; None if there is none. Raises Undecided for a value that is no text or too long."""
        if value is None:
            return None
        if not isinstance(value, bytes) or len(value) > VALUE_BYTES:
            raise Undecided(f"{self.name}: a value is no text of up to {VALUE_BYTES} bytes", "invalid")
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise Undecided(f"{self.name}: a value is not UTF-8", "invalid") from None

    async def close(self) -> None:
        self._closed = True
        await self._tasks.cancel()
        if self._password is not None:
            await self._password.close()
        await self._client.aclose()
        if self._sentinels is not None:
            await self._sentinels.aclose()

    async def _attempt(self, commands: tuple[tuple[str, ...], ...]) -> list[Any]:
        """The replies. redis-py's errors become Undecided here; their text never repeats the question."""
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                if len(commands) == 1:
                    return [await self._client.execute_command(*commands[0])]
                async with self._client.pipeline(transaction=False) as pipeline:
                    for command in commands:
                        pipeline.execute_command(*command)
                    return list(await pipeline.execute())
        except Exception as error:  # noqa: BLE001 - _undecided returns other errors unchanged
            raise self._undecided(error) from None

    def _undecided(self, error: Exception) -> Exception:
        if isinstance(error.__cause__, exceptions.AuthenticationError):  # redis-py wraps it in a ConnectionError
            error = error.__cause__
        what = f"{self.name}: {printable(error_text(error))}"
        match error:
            case TimeoutError() | exceptions.TimeoutError():
                return Undecided(f"{self.name}: no answer within {self._settings.timeout_seconds:g} s", "timeout")
            case exceptions.AuthenticationError() | exceptions.AuthorizationError() | exceptions.BusyLoadingError():
                return Undecided(what, "failed")
            case (
                exceptions.ConnectionError() | exceptions.RedisClusterException() | OSError()
            ):  # no node of the cluster, or none for the slot
                return Undecided(what, "unreachable")
            case exceptions.InvalidResponse() | UnicodeDecodeError():
                return Undecided(what, "invalid")
            case exceptions.RedisError():
                return Undecided(what, "failed")
        return error

    # -- changes ---------------------------------------------------------------------------------------------------------

    async def _listen(self, changes: Changes) -> None:
        while not self._closed:  # redis-py may swallow a cancellation
            try:
                if self._settings.mode == "cluster":
                    await self._client.initialize()  # finds the nodes to subscribe at
                async with self._client.pubsub() as channel:
                    await self._receive(channel, changes)
            except Exception as error:  # noqa: BLE001 - without this loop no change would be received again
                undecided = self._undecided(error)
                if not isinstance(undecided, Undecided):
                    _log.error("%s: the channel of changes failed", self.name, exc_info=error)
                if not self._lost:
                    self._lost = True
                    _log.warning("%s: not subscribed to changes (%s); no cached answer is used until it is", self.name, undecided)
            finally:
                changes.trust(False)
            await asyncio.sleep(_random.uniform(*RESUBSCRIBE_SECONDS))

    async def _receive(self, channel: Any, changes: Changes) -> None:
        """Receives changes until the channel is lost. redis-py may reconnect and miss messages, so each `subscribe` sets trust anew."""
        async with asyncio.timeout(self._settings.timeout_seconds):
            await channel.subscribe(f"{self.prefix}changes")
        asked = False
        while not self._closed:
            message = await channel.get_message(timeout=PING_SECONDS)
            if message is None:
                if asked:
                    raise TimeoutError
                asked = True
                async with asyncio.timeout(PING_SECONDS):
                    await channel.ping()
                continue
            asked = False
            if message["type"] == "subscribe":
                changes.trust(True)
                if self._lost:
                    self._lost = False
                    _log.warning("%s: subscribed to changes again", self.name)
            elif message["type"] == "message":
                self._changed(message["data"], changes)

    def _changed(self, data: bytes, changes: Changes) -> None:
        """Handles `keys`, `keys SHA256:...`, `access`, `access IDENTITY`, `routes`, `routes REPOSITORY`; anything else may mean any."""
        question, _, what = data[:VALUE_BYTES].decode(errors="replace").partition(" ")
        if question == self._about:
            changes.forget(what or None)
        elif question not in ("keys", "access", "routes"):
            _log.warning("%s: unknown message about a change, every cached answer is dropped: %s", self.name, printable(question, 80))
            changes.forget(None)


def patterns(repository: str) -> list[str]:
    """The patterns that match a repository, most specific first: a/b/c, a/b/**, a/**, **. Folders deeper than FOLDERS have none."""
    segments = repository.split("/")
    return [repository, *("/".join([*segments[:length], "**"]) for length in range(min(len(segments) - 1, FOLDERS), -1, -1))]


def patterns_for(repository: str, identity: str, *, folded: bool = False) -> list[str]:
    """As `patterns`, and behind each one those with {identity} in place of a segment that is the identity's name.

    Raises Denied for a repository whose own name has {identity} in it, since its key would be the one for everybody, and for one that has
    the identity's name in too many places.
    """
    if PLACEHOLDER in repository.split("/"):
        raise Denied(f"a segment of {repository} is {PLACEHOLDER}, which has a meaning in rules")
    found, segments, mine = patterns(repository), repository.split("/"), namespace(identity, folded=folded)
    places = [place for place, segment in enumerate(segments) if segment == mine]
    if len(places) > NAMED_MOST:
        raise Denied(f"{repository} has the name of the identity in more than {NAMED_MOST} places")
    if not places:
        return found
    others = [patterns("/".join([*segments[:place], PLACEHOLDER, *segments[place + 1 :]])) for place in places]
    return list(dict.fromkeys(one for several in zip(found, *others, strict=True) for one in several))


def _client(settings: config.RedisServerSettings, password: Token | None, ca_file: str | None) -> tuple[Any, Any]:
    """redis-py's client, and the one for sentinels if there are any; not connected yet.

    Raises ValueError or TypeError for URLs that it does not understand.
    """
    options: dict[str, Any] = {
        "socket_timeout": settings.timeout_seconds,
        "socket_connect_timeout": settings.timeout_seconds,
        "retry": Retry(NoBackoff(), 0),  # RedisClient.ask retries
        "protocol": 2,
    }
    if password is not None:
        options["credential_provider"] = _Credentials(settings.username, password)
    tls: dict[str, Any] = {"ssl_ca_certs": ca_file} if ca_file is not None and settings.urls[0].startswith("rediss://") else {}
    nodes = [(parsed.get("host", "localhost"), int(parsed.get("port", 6379))) for parsed in map(parse_url, settings.urls)]
    first = settings.urls[0]
    if first.startswith("rediss://") and "ssl_check_hostname" not in parse_url(first):
        tls["ssl_check_hostname"] = True  # redis-py before 6 does not check the host name
    if settings.mode == "cluster":
        more = [ClusterNode(host, port) for host, port in nodes[1:]]
        return RedisCluster.from_url(first, startup_nodes=more, max_connections=settings.connections + 1, **options, **tls), None
    if settings.mode == "single":
        if len(nodes) > 1:
            raise ValueError("several URLs need mode sentinel or cluster")
        alone: Any = Redis.from_url(first, max_connections=settings.connections + 1, **options, **tls)
        alone.connection_pool.make_connection()  # raises for unknown options now
        return alone, None
    sentinels: Any = Sentinel  # which has no types
    sentinel: dict[str, Any] = {**parse_url(first), "retry": options["retry"], "protocol": 2} | tls
    sentinel |= {name: options[name] for name in ("socket_timeout", "socket_connect_timeout")}
    if sentinel.pop("connection_class", None) is not None:
        sentinel["ssl"] = True
    data = {name: value for name, value in sentinel.items() if name not in ("host", "port", "username", "password")}
    for name in ("host", "port", "db"):
        sentinel.pop(name, None)
    manager = sentinels(nodes, sentinel_kwargs=sentinel, **(data | options))
    client = manager.master_for(settings.service, max_connections=settings.connections + 1)
    return client, manager


if INSTALLED:

    class _Credentials(CredentialProvider):
        """Reads user and password at each connect, so that a changed password needs no restart."""

        def __init__(self, username: str, password: Token) -> None:
            self._username = username
            self._password = password

        async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
            password = await self._password.secret()
            return (self._username, password) if self._username else (password,)
