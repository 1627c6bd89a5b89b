"""One worker's server: it listens, accepts connections, and drains.

States: starting (backends and pools open), serving, draining (no new connection; sessions run on), stopped.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import asyncssh

from relay.access import Access
from relay.admission.farewell import Farewells
from relay.admission.limits import Admission
from relay.admission.proxy_header import ProxyHeaderReader
from relay.admission.proxy_protocol import Trusted
from relay.backends.watched import Watching
from relay.config import Config
from relay.connection import ConnectionHandler, ConnectionServices
from relay.errors import Ended
from relay.events import Observer, SessionRecord
from relay.keys import Certificates, HostCertificate, Keys, Policing
from relay.keys.open import AskedKeys
from relay.packs.desk import Packs
from relay.packs.fill import Fills
from relay.packs.store import Store
from relay.routes import Routes
from relay.session import Services
from relay.shared import Shared
from relay.ssh.algorithms import SERVER_VERSION, server_options
from relay.ssh.backpressure import Budget
from relay.ssh.client_connection import ClientConnection, connection_factory
from relay.ssh.packets import inherited
from relay.ssh.plain import Handover, Handovers
from relay.tasks import Tasks
from relay.text import counted
from relay.upstream.identities import IdentityPools
from relay.upstream.pool import Pool
from relay.upstream.switches import NONE, Switched

BACKLOG = 1024
LISTEN_TRIES = 10  # for one address, while another process begins to listen on it
LISTEN_AGAIN_SECONDS = 0.01  # at most, between two tries
DRAIN_LOOK_SECONDS = 0.05
DRAIN_IDLE_SECONDS = 3.0  # the longest that a connection without a session is kept, see ConnectionHandler.leave
FAREWELL_SECONDS = 5.0  # for clients to read the message of sessions that the drain ended
FAREWELL_HURRIED_SECONDS = 0.5  # the same in a drain of 0 s

ServerState = Literal["starting", "serving", "draining", "stopped"]

_log = logging.getLogger("relay.server")


class Server:
    """Serves on sockets that the caller has bound; owns the pools and backends that it is given, and closes them."""

    def __init__(
        self,
        config: Config,
        host_keys: list[asyncssh.SSHKey],
        keys: Keys,
        certificates: Certificates,
        policy: Policing,
        access: Access,
        routes: Routes,
        pools: Mapping[str, Pool | IdentityPools],
        observer: Observer,
        shared: Shared | None = None,
        packs: Store | None = None,
        begins: Callable[[SessionRecord], str] | None = None,
        host_certificates: Sequence[HostCertificate] = (),
    ) -> None:
        self.state: ServerState = "starting"
        self.unaudited: Callable[[], bool] = lambda: False  # whether sessions are refused since the audit cannot be written
        self.config = config
        self.pools = pools
        self.live: set[ConnectionHandler] = set()
        self._host_keys = host_keys
        self._host_certificates = host_certificates
        self._keys, self._certificates, self._access, self._routes = keys, certificates, access, routes
        self._observer = observer
        self._tasks = Tasks()
        self._watching = Tasks()
        self._header_readers: set[ProxyHeaderReader] = set()  # connections whose PROXY header has not arrived
        self._farewells = Farewells(SERVER_VERSION)
        self._budget = Budget(config.limits.buffer_bytes)
        self._trusted = Trusted(config.proxy_protocol.trusted)
        # a load balancer's own connections are health checks; clients behind it are counted by their own addresses
        exempt = self._trusted.believes if config.proxy_protocol.mode != "off" else lambda address: False
        self._shared = shared
        self._store = packs
        self._fills = Fills(observer, self._budget.share)
        self._admission = Admission(config.limits, exempt=exempt, neighbours=shared.neighbours if shared is not None else None)
        self._services = services = Services(
            config=config,
            access=access,
            routes=routes,
            pools=pools,
            observer=observer,
            tasks=self._tasks,
            budget=self._budget,
            packs=Packs(packs, self._fills, observer) if packs is not None else None,
            begins=begins,
        )
        self._connection_services = ConnectionServices(
            keys=keys,
            certificates=certificates,
            policy=policy,
            gate=self._admission,
            services=services,
            live=self.live,
            farewells=self._farewells,
            draining=self._is_draining,
        )
        self._connection_class = connection_class(config)
        self._handovers = Handovers(self._handler, config.limits.auth_attempts, self._connection_class)
        self._listeners: list[asyncio.AbstractServer] = []
        self._deadline = math.inf  # of the drain
        self._farewell_seconds = FAREWELL_SECONDS

    @property
    def options(self) -> dict[str, Any]:
        """For asyncssh.create_server with `git_server`: algorithms, host keys, timeouts, and nothing but keys."""
        now = time.time()
        return server_options(self.config, self._host_keys, [one for one in self._host_certificates if one.fault(now) is None])

    def host_certificates_end(self) -> dict[str, float]:
        """By type of key, when the certificate of a host key runs out, in seconds since the epoch; those that do not are left out."""
        return {one.key_type: float(one.valid_before) for one in self._host_certificates if one.valid_before is not None}

    def git_server(self) -> Handover:
        """The server logic of one connection: a server_factory for asyncssh.create_server."""
        return self._handovers()

    def _handler(self) -> ConnectionHandler:
        return ConnectionHandler(self._connection_services)

    def warm(self) -> None:
        """Starts to dial warm connections to the git hosts and to look after what is shared and kept; the loop must be running."""
        if self._store is not None:
            self._store.start()
        if self._shared is not None:
            self._shared.start()
        for pool in self.pools.values():
            pool.start()

    async def start(self, sockets: list[socket.socket]) -> None:
        """Warms the pools and listens. The sockets are closed with the server."""
        loop = asyncio.get_running_loop()
        options = await asyncssh.SSHServerConnectionOptions.construct(server_factory=self._handler, config=None, **self.options)
        options.proxy_command = None
        make = connection_factory(options, loop, self.config.limits.auth_attempts, self._connection_class)
        self.warm()

        def accept() -> asyncio.Protocol:
            if self.config.proxy_protocol.mode == "off":
                return make(None, 0.0)
            return ProxyHeaderReader(self.config, self._trusted, make, self._observer, self._header_readers, self._farewells)

        for sock in sockets:
            sock.setblocking(False)
            inherited(sock)
            self._listeners.append(await loop.create_server(accept, sock=sock, backlog=BACKLOG))
        self._watching.start(self._end_idle_connections(), "watch readers")
        for part in (self._keys, self._certificates, self._access, self._routes):
            if isinstance(part, Watching):
                part.watch(self._observer.change_reported)
        self.state = "serving"

    async def _end_idle_connections(self) -> None:
        """Ends connections that are stalled or without a session for too long; a running session detects a stall itself."""
        seconds, idle_seconds = self.config.limits.stall_seconds, self.config.limits.connection_idle_seconds
        while True:
            await asyncio.sleep(min(seconds, idle_seconds) / 4)
            for connection in list(self.live):
                if connection.idle_since is not None and time.monotonic() - connection.idle_since >= idle_seconds:
                    connection.end("idle", "The connection had no session for too long")
                    continue
                if connection.is_stalled(seconds) and all(session.over for session in connection.sessions.values()):
                    connection.abort_as_lost(f"the client read nothing for {seconds:g} s though bytes waited")

    def ready(self) -> tuple[bool, str]:
        """For /ready: (ready, why). Not ready when no git host answers, unless an operator has paused one: its sessions wait; nor
        while audit_required is set and the audit cannot be written."""
        if self.state != "serving":
            return False, self.state
        if self.pools and all(pool.up is False and not pool.paused for pool in self.pools.values()):
            return False, "no_upstream"
        if self.unaudited():
            return False, "unaudited"
        return True, "ready"

    def set_switches(self, switches: Switched) -> None:
        """Applies the operator's switches; these are all that are on. Those of upstreams that are not configured here are ignored."""
        for name, pool in self.pools.items():
            switch = switches.get(name, NONE)
            pool.set_switches(switch.paused, frozenset(switch.drained))
        self._services.frozen.clear()
        self._services.frozen.update({name: switch.frozen for name, switch in switches.items() if switch.frozen})

    def packs_state(self) -> tuple[int, bool]:
        """Bytes of all answers that are kept, and whether nothing can be kept."""
        return (0, False) if self._store is None else (self._store.disk_bytes, bool(self._store.trouble))

    def keys_left_out(self) -> int:
        """Lines of files of keys that are left out."""
        return self._keys.left_out if isinstance(self._keys, AskedKeys) else 0

    def pool_states(self) -> dict[str, dict[str, int]]:
        return {name: pool.states for name, pool in self.pools.items()}

    def stop_listening(self) -> None:
        """Connections in the backlog stay there for other processes that listen on the same socket."""
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    async def drain(self, seconds: float) -> int:
        """Lets sessions end within `seconds`, then ends them with a message; returns how many were cut.

        Fills go on as well, as long as a session of any worker reads along.
        """
        loop = asyncio.get_running_loop()
        self.state = "draining"
        self.stop_listening()
        self.hurry(seconds)
        while True:
            await asyncio.sleep(DRAIN_LOOK_SECONDS)  # at least once: a connection accepted just now is in `live` only after this
            if not (self.live or self._header_readers or self._services.left or self._fills) or loop.time() >= self._deadline:
                break
            for connection in list(self.live):
                connection.leave(DRAIN_IDLE_SECONDS)
        cut = await self._end_sessions()
        for connection in list(self.live):
            connection.end("drained", "The service is restarting, connect again")
        for reader in list(self._header_readers):
            reader.abort()
        return cut

    def hurry(self, seconds: float) -> None:
        """Shortens a drain that is under way or about to begin (two signals may arrive together)."""
        self._deadline = min(self._deadline, asyncio.get_running_loop().time() + seconds)
        if not seconds:
            self._farewell_seconds = FAREWELL_HURRIED_SECONDS

    def _is_draining(self) -> bool:
        return self.state == "draining"

    async def _end_sessions(self) -> int:
        """Ends all sessions with a message and returns their number; gives each client FAREWELL_SECONDS to close its channel."""
        loop = asyncio.get_running_loop()
        error = Ended("the drain time is over")
        left = [(one, session) for one in self.live for session in list(one.sessions.values()) if session.end(error)]
        cut = len(left)
        if cut:
            _log.warning("drain: the time is over, %s cut", counted(cut, "session", "are"))
        started = loop.time()
        while left and loop.time() < started + self._farewell_seconds:
            await asyncio.sleep(DRAIN_LOOK_SECONDS)
            left = [(one, session) for one, session in left if session in one.sessions.values()]
        return cut

    async def stop(self) -> None:
        """Ends all connections and sessions at once; closes pools and backends."""
        self.stop_listening()
        await self._watching.cancel()
        for connection in list(self.live):
            for session in list(connection.sessions.values()):
                session.kill()
            connection.abort()
        self._farewells.close()
        for session in list(self._services.left):
            session.kill()
        await self._tasks.finish()
        await self._fills.close()
        if self._store is not None:
            self._store.close()
        for pool in self.pools.values():
            await pool.close()
        for backend in (self._keys, self._certificates, self._access, self._routes):
            await backend.close()
        if self._shared is not None:
            await self._shared.close()
        self.state = "stopped"


def connection_class(config: Config) -> type[ClientConnection]:
    """Chosen once, so that a trace that is off costs nothing."""
    if config.log.level != "debug":
        return ClientConnection
    from relay.ssh.trace import TracedConnection

    return TracedConnection


def _bound(host: str, port: int, reuse_port: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except BaseException:  # whatever happens, the socket is closed
        sock.close()
        raise
    return sock
