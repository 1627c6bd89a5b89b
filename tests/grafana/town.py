"""A small town around relays: git hosts, an authority that knows people, and one method for each thing that people do to a relay.

with Town() as town:
    await town.clone(100_000)
    await town.stranger()
"""

from __future__ import annotations

import asyncio
import random
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import asyncssh

from benchmarks.fetch_v2 import Fetched, fetch
from tests.commands.test_upstreams import ask
from tests.e2e.helpers import alice
from tests.support.authority import Authority
from tests.support.collector import Collector
from tests.support.faultproxy import FaultProxy, ThreadedFaultProxy
from tests.support.gitrepo import make_repo
from tests.support.keys import Key, make_key
from tests.support.redis import RedisServer
from tests.support.relay_process import RelayProcess, upstream
from tests.support.sshclient import Result, run
from tests.support.sshd import Sshd

SIZES = (1000, 100_000, 1_000_000, 4_000_000, 16_000_000)  # bytes of a clone
WAITS = ("0.1", "0.5", "2", "20")  # seconds until the archive answers
CACHE = {"ttl_seconds": 0.5, "negative_seconds": 0.5, "stale_seconds": 3600}

# The first part of a stub's name selects its git host: routes have no wildcard but the repository's name.
MIRROR, ARCHIVE, MAIN = "stub/mixed/**", "stub/slowstart/**", "**"

PROJECT = "team/project"  # a real repository, of which packs are kept

_REPOSITORIES = (
    *(f"stub/emit/{size}" for size in SIZES),
    *(f"stub/mixed/{size}" for size in SIZES),
    *(f"stub/slowstart/{wait}/1000" for wait in WAITS),
    PROJECT,
    *("stub/checksum", "stub/emit/10/3", "stub/signal/KILL", "stub/half/1000", "stub/exit/0", "team/app"),
)


class Town:
    """Upstreams main (at two addresses, one behind a proxy), mirror (which may be stopped) and archive (two connections a worker).

    Keys and access come by HTTP, routes from a file; a collector takes traces.
    """

    def __init__(self, relays: int = 1, *, archive_connections: int = 2, workers: int = 2) -> None:
        self._stack = ExitStack()
        self._relays = relays
        self._archive_connections = archive_connections
        self._workers = workers

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def _build(self) -> None:
        enter = self._stack.enter_context
        self.main = enter(Sshd())
        make_repo(self.main.root / f"{PROJECT}.git")
        self.mirror = enter(Sshd(authorized=[self.main.key.line]))
        self.proxy = enter(ThreadedFaultProxy(self.main.address, self.main.port))
        self._stranger = make_key(self.main.folder / "people", "stranger")
        self._newcomers: list[Key] = []
        self.redis = enter(RedisServer())
        secret = self.main.folder / "shared.secret"
        secret.write_bytes(random.randbytes(32))
        secret.chmod(0o600)
        self.authority = enter(Authority(self.main.folder / "authority"))
        self.collector = enter(Collector())
        both = [f"{self.main.address}:{port}" for port in (self.main.port, self.proxy.port)]
        archive = {"connections_max": self._archive_connections, "idle_connections": 1, "connect_seconds": 3}
        config = {
            "workers": self._workers,
            "limits": {"connections_per_source": 10_000},
            "upstreams": {
                "main": {"addresses": both, "policy": "least_sessions", "health_seconds": 2},
                "mirror": {**upstream(self.mirror), "user": self.main.user, "connect_seconds": 2, "health_seconds": 2},
                "archive": {**upstream(self.main), **archive},
            },
            "packs": {"folder": "packs", "first": True, "free_bytes": 0},
            "shared": {"urls": [self.redis.url], "secret_file": str(secret)},
            "tracing": {"url": self.collector.traces_url},
            "keys": {"source": "http", "path": None, "url": self.authority.url, "timeout_seconds": 1, "cache": CACHE},
            "access": {"source": "http", "path": None, "url": self.authority.url, "timeout_seconds": 1, "cache": CACHE},
        }
        here, there = f"{self.main.root}/{{repository}}.git", f"{self.mirror.root}/{{repository}}.git"
        routes = [
            {"repositories": MIRROR, "upstream": "mirror", "path": there},
            {"repositories": ARCHIVE, "upstream": "archive", "path": here},
            {"repositories": MAIN, "upstream": "main", "path": here},
        ]
        self.relays = [RelayProcess(self.main, config=config, routes={"route": routes}) for _ in range(self._relays)]
        self._tell_authority()  # before the relays' first request
        for relay in self.relays:
            enter(relay)

    @property
    def relay(self) -> RelayProcess:
        """The next relay, as a load balancer would choose it."""
        return random.choice(self.relays)

    def _tell_authority(self) -> None:
        keys = {relay.key.fingerprint: "alice" for relay in self.relays} | {key.fingerprint: "alice" for key in self._newcomers}
        self.authority.write(keys=keys, access={name: {"alice": "write"} for name in _REPOSITORIES})

    def newcomer(self) -> Key:
        """A key that the authority knows and that is in no cache."""
        key = make_key(self.main.folder / "people", f"newcomer{len(self._newcomers)}")
        self._newcomers.append(key)
        self._tell_authority()
        return key

    def address_goes(self) -> None:
        """Breaks one of main's two addresses."""

        def break_off(proxy: FaultProxy) -> None:
            proxy.accept("refuse")
            proxy.reset()

        self.proxy.do(break_off)

    def address_comes(self) -> None:
        self.proxy.do(lambda proxy: proxy.accept("forward"))

    def switch(self, *order: str) -> None:
        """`relay upstreams` with this order, on every relay."""
        for relay in self.relays:
            done = ask(relay, *order)
            assert done.returncode == 0, done.stderr

    # -- actions of people

    async def ask(self, command: str | None, stdin: bytes = b"", key: Key | None = None, **options: Any) -> Result | None:
        """One connection with one session; None if the login was refused or the connection was lost."""
        relay = self.relay
        try:
            async with alice(relay, key, preferred_auth="publickey", **options) as connection:
                return await run(connection, command, stdin)
        except (asyncssh.Error, OSError):
            return None

    async def clone(self, size: int) -> Result | None:
        return await self.ask(f"git-upload-pack 'stub/emit/{size}'")

    async def clone_project(self) -> Fetched | None:
        """A whole fetch, which packs may answer; None as of `ask`."""
        try:
            async with alice(self.relay, preferred_auth="publickey") as connection:
                return await fetch(connection, f"git-upload-pack '{PROJECT}'")
        except (asyncssh.Error, OSError, ValueError):
            return None

    async def clone_mirror(self, size: int) -> Result | None:
        return await self.ask(f"git-upload-pack 'stub/mixed/{size}'")

    async def clone_archive(self, wait: str) -> Result | None:
        return await self.ask(f"git-upload-pack 'stub/slowstart/{wait}/1000'")

    async def push(self, size: int) -> Result | None:
        return await self.ask("git-receive-pack 'stub/checksum'", bytes(size))

    async def export(self) -> Result | None:
        return await self.ask("git-upload-archive 'stub/exit/0'")

    async def large_files(self) -> Result | None:
        return await self.ask("git-lfs-authenticate 'team/app' download")

    async def fails_there(self) -> Result | None:
        return await self.ask("git-upload-pack 'stub/emit/10/3'")

    async def dies_there(self) -> Result | None:
        return await self.ask("git-upload-pack 'stub/signal/KILL'")

    async def not_git(self) -> Result | None:
        return await self.ask("ls")

    async def malformed(self) -> Result | None:
        return await self.ask("git-upload-pack '../x'")

    async def denied(self) -> Result | None:
        return await self.ask("git-upload-pack 'no/such'")

    async def greeting(self) -> Result | None:
        return await self.ask(None)

    async def stranger(self) -> Result | None:
        return await self.ask(None, key=self._stranger)

    async def wrong_user(self) -> Result | None:
        return await self.ask(None, user="root")

    async def leaves(self) -> None:
        """A client that disconnects in the middle of its transfer, if that starts."""
        async with alice(self.relay) as connection:
            process = await connection.create_process("git-receive-pack 'stub/half/1000'", encoding=None)
            try:
                await process.stdout.readexactly(1000)
            except asyncio.IncompleteReadError:
                pass  # refused: the authority is down
            process.channel.abort()
            await process.channel.wait_closed()

    async def probe(self) -> None:
        """Connects as a port scanner does, and then as a browser."""
        relay = self.relay
        _, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.close()
        await writer.wait_closed()
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        try:
            writer.write(b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n")
            while await reader.read(4096):
                pass
        except ConnectionError:
            pass  # refused, with a message
        finally:
            writer.transport.abort()

    async def every_kind(self) -> None:
        """Every kind of session once, at the same time."""
        await asyncio.gather(
            self.clone_project(), self.clone_project(),
            self.clone(1000), self.clone(1_000_000), self.clone_mirror(1000), self.clone_archive("0.1"), self.push(200_000), self.export(),
            self.large_files(), self.fails_there(), self.dies_there(), self.not_git(), self.malformed(), self.denied(), self.greeting(),
            self.stranger(), self.wrong_user(), self.leaves(), self.probe(),
        )  # fmt: skip
