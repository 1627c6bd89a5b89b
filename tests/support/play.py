"""One server's logic behind asyncssh's own listener, with stand-ins for backends and git host, and a ledger of its observer's events.

play = Play()
play.access = raising(Denied("no"))
async with served(play) as port:
    async with logged_in(port) as connection:
        await run(connection, COMMAND)
play.ledger.ended[0]
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import asyncssh
from msgspec.structs import replace

from relay.admission.farewell import Farewells
from relay.admission.limits import Admission
from relay.admission.proxy_header import ProxyHeaderReader
from relay.admission.proxy_protocol import Trusted
from relay.config import Config, LimitsSettings, UpstreamSettings
from relay.connection import ConnectionHandler, ConnectionServices
from relay.events import AuthFailure, ConnectionOutcome, ConnectionRecord, Observer, Outcome, SessionRecord
from relay.keys.open import open_certificates, open_policy
from relay.model import Command, Grant, Identity, Route
from relay.session import Services, Session
from relay.splice import Splice
from relay.ssh.algorithms import SERVER_VERSION, server_options
from relay.ssh.backpressure import Budget
from relay.ssh.client_connection import connection_factory
from relay.ssh.plain import Handovers
from relay.tasks import Tasks
from relay.upstream.pool import Pool
from relay.upstream.replay_budget import ReplayBudget
from tests.support.wait import wait_until_async

HOST_KEY = asyncssh.generate_private_key("ssh-ed25519")
KEY = asyncssh.generate_private_key("ssh-ed25519")
FINGERPRINT = KEY.get_fingerprint()
COMMAND = "git-upload-pack 'team/app'"
ROUTE = Route(upstream="main", path="/srv/git/team/app.git")


class Ledger(Observer):
    """Every connection and every session, and how each ended."""

    def __init__(self) -> None:
        self.opened: list[ConnectionRecord] = []
        self.closed: list[tuple[ConnectionRecord, ConnectionOutcome, str]] = []
        self.refused: list[tuple[str, str]] = []
        self.failures: list[tuple[str, str, str]] = []  # reason, fingerprint, detail
        self.successes: list[Identity] = []
        self.steps: Counter[str] = Counter()
        self.started: list[SessionRecord] = []
        self.ended: list[tuple[SessionRecord, Outcome]] = []
        self.rejected: list[tuple[SessionRecord, str]] = []
        self.replays: list[str] = []  # their results

    def session_replayed(self, session: SessionRecord, result: str) -> None:
        self.replays.append(result)

    def session_started(self, session: SessionRecord) -> None:
        self.started.append(session)

    def session_ended(self, session: SessionRecord, outcome: Outcome) -> None:
        self.ended.append((session, outcome))

    def command_rejected(self, session: SessionRecord, reason: str, detail: str) -> None:
        self.rejected.append((session, reason))

    def connection_opened(self, connection: ConnectionRecord) -> None:
        self.opened.append(connection)

    def connection_closed(self, connection: ConnectionRecord, outcome: ConnectionOutcome, detail: str = "") -> None:
        self.closed.append((connection, outcome, detail))

    def connection_refused(self, address: str, reason: ConnectionOutcome, detail: str) -> None:
        self.refused.append((reason, detail))

    def auth_failed(self, connection: ConnectionRecord, reason: AuthFailure, fingerprint: str = "", detail: str = "") -> None:
        self.failures.append((reason, fingerprint, detail))

    def auth_succeeded(self, connection: ConnectionRecord, identity: Identity) -> None:
        self.successes.append(identity)

    def step_took(self, step: str, seconds: float) -> None:
        assert seconds >= 0
        self.steps[step] += 1

    async def how_closed(self) -> tuple[str, str]:
        """Outcome and detail of the only connection."""
        await wait_until_async(lambda: bool(self.closed), message="the connection is closed")
        [(_, outcome, detail)] = self.closed
        return outcome, detail

    async def outcome(self) -> Outcome:
        """The outcome of the only session."""
        await wait_until_async(lambda: self.ended, message="the session ends")
        [(_, outcome)] = self.ended
        return outcome


class GitHost:
    """One upstream connection in memory."""

    def __init__(self) -> None:
        self.address = "192.0.2.1:22"
        self.received = b""
        self.eof = self.aborted = False
        self.pending = 0
        self.peer: Splice | None = None
        self.attached = asyncio.Event()

    def attach(self, peer: Splice) -> None:
        self.peer = peer
        self.attached.set()

    def send(self, data: bytes) -> None:
        self.received += data

    def send_eof(self) -> None:
        self.eof = True

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


class Lent:
    """As relay.upstream.pool.Lease; `failed` gets whether its session failed, once it has ended."""

    def __init__(self, connection: Any, begins: Callable[[], Awaitable[None]] | None, failed: list[bool]) -> None:
        self.connection = connection
        self._begins = begins
        self._failed = failed

    async def begin(self) -> None:
        if self._begins is not None:
            await self._begins()

    def end(self, *, failed: bool = False) -> None:
        self._failed.append(failed)


class Play:
    """Keys, access, routes and the pool of one git host; a test replaces the parts it needs."""

    source = "test"

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.host = GitHost()
        self.members: tuple[GitHost, ...] = (self.host,)
        self.wait_seconds = 0.0
        self.replays = ReplayBudget(20)
        self.without: list[list[str]] = []  # of each lease, the addresses to avoid
        self.leased: list[tuple[str, list[tuple[str, str]]]] = []
        self.asked: Counter[str] = Counter()
        self.keys: Callable[[str], Awaitable[str | None]] | None = None
        self.access: Callable[[Command], Awaitable[Grant]] | None = None
        self.routes: Callable[[Command], Awaitable[Route]] | None = None
        self.pool: Callable[[], Awaitable[None]] | None = None
        self.failed: list[bool] = []  # of each lease that has ended
        self.servers: set[ConnectionHandler] = set()
        self.doors: set[ProxyHeaderReader] = set()
        self.farewells = Farewells(SERVER_VERSION)

    @property
    def session(self) -> Session:
        """The only live session."""
        [server] = self.servers
        [session] = server.sessions.values()
        return session

    async def owner(self, fingerprint: str, public_key: str) -> str | None:
        self.asked["keys"] += 1
        assert asyncssh.import_public_key(public_key).get_fingerprint() == fingerprint
        return await self.keys(fingerprint) if self.keys is not None else "alice" if fingerprint == FINGERPRINT else None

    async def check(self, identity: Identity, command: Command, client_address: str, session_id: str) -> Grant:
        self.asked["access"] += 1
        assert (identity, client_address) == (Identity(name="alice", fingerprint=FINGERPRINT), "127.0.0.1")
        return await self.access(command) if self.access is not None else Grant(access="read")

    async def find(self, command: Command, identity: Identity) -> Route:
        self.asked["routes"] += 1
        return await self.routes(command) if self.routes is not None else ROUTE

    def of(self, identity: str, tell: object, waited: object) -> Play:
        return self

    def lease(
        self,
        command: str,
        environment: list[tuple[str, str]],
        repository: str,
        without: Collection[str],
        *,
        again: bool,
        patient: bool,
        spent_seconds: float,
        lost_at: str,
    ) -> Lent:
        self.leased.append((command, environment))
        self.without.append([*without])
        return Lent(self.host, self.pool, self.failed)

    async def close(self) -> None:
        pass

    async def played(self) -> Splice:
        """The splice, once the session has a git host."""
        async with asyncio.timeout(60):
            await self.host.attached.wait()
        assert self.host.peer is not None
        return self.host.peer


@asynccontextmanager
async def served(play: Play, *, own_transport: bool = False, limits: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[int]:
    """The port of a server that asks `play`; at the end asserts that each connection and session ended once, and nothing is held."""
    upstream = UpstreamSettings(addresses=["192.0.2.1:22"], send_identity=settings.pop("send_identity", True))
    names: tuple[str, ...] = settings.pop("upstreams", ("main",))
    ignoring: tuple[str, ...] = settings.pop("ignore_case", ())
    begins: Callable[[SessionRecord], str] | None = settings.pop("begins", None)
    config = Config(
        upstreams={name: replace(upstream, ignore_case=name in ignoring) for name in names},
        limits=LimitsSettings(**{"stall_seconds": 30, "penalty_seconds": 0, **(limits or {})}),
        **settings,
    )
    tasks = Tasks()
    services = Services(
        config=config,
        access=play,
        routes=play,
        pools=dict.fromkeys(names, cast(Pool, play)),
        observer=play.ledger,
        tasks=tasks,
        budget=Budget(1 << 30),
        begins=begins,
    )
    certificates = open_certificates(config.certificates, Path(), config.user)
    door = ConnectionServices(
        keys=play,
        certificates=certificates,
        policy=open_policy(config.policy, None),
        gate=Admission(config.limits),
        services=services,
        live=play.servers,
        farewells=play.farewells,
    )
    given = server_options(config, [HOST_KEY])
    listener: Any
    if own_transport:
        loop = asyncio.get_running_loop()
        options = await asyncssh.SSHServerConnectionOptions.construct(server_factory=lambda: ConnectionHandler(door), config=None, **given)
        options.proxy_command = None
        make = connection_factory(options, loop, config.limits.auth_attempts)
        trusted = Trusted(config.proxy_protocol.trusted)

        def accept() -> asyncio.Protocol:
            if config.proxy_protocol.mode == "off":
                return make(None, 0.0)
            return ProxyHeaderReader(config, trusted, make, play.ledger, play.doors, play.farewells)

        listener = await loop.create_server(accept, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
    else:
        listener = await asyncssh.create_server(
            Handovers(lambda: ConnectionHandler(door), config.limits.auth_attempts), "127.0.0.1", 0, config=None, **given
        )
        port = listener.get_port()
    try:
        yield port
    finally:
        for server in list(play.servers):
            server.abort()
        play.farewells.close()
        async with asyncio.timeout(60):
            await tasks.finish()
        listener.close()
        await listener.wait_closed()
    # the contract of relay.events
    ledger = play.ledger
    await wait_until_async(lambda: len(ledger.closed) == len(ledger.opened), message="every connection is closed")
    assert sorted(id(record) for record in ledger.opened) == sorted(id(record) for record, _, _ in ledger.closed)
    assert sorted(id(record) for record in ledger.started) == sorted(id(record) for record, _ in ledger.ended)
    assert (services.budget.used, play.servers, play.doors) == (0, set(), set())
    assert (door.gate.connections, door.gate.unauthenticated, door.gate.by_source) == (0, 0, {})


def logged_in(
    port: int, key: asyncssh.SSHKey | asyncssh.SSHKeyPair = KEY, **options: Any
) -> AbstractAsyncContextManager[asyncssh.SSHClientConnection]:
    """A connection as alice, unless another key is given."""
    given: dict[str, Any] = {"username": "git", "client_keys": [key], "known_hosts": None, "config": None, "agent_path": None, **options}
    return asyncssh.connect("127.0.0.1", port, **given)


async def forever(*_: object) -> Any:
    await asyncio.Event().wait()


def raising(error: BaseException) -> Callable[..., Awaitable[Any]]:
    async def raises(*_: object) -> Any:
        raise error

    return raises
