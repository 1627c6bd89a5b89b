"""Two relays behind the real HAProxy, as deploy/ configures it, with a real Redis: limits hold for both together, the Redis stops and
starts again, and one relay is killed under load while new sessions succeed. The order of the tests matters: the last one kills.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
import pytest

from tests.e2e.helpers import comes_in
from tests.support.gitrepo import git, git_env, make_repo
from tests.support.haproxy import Haproxy
from tests.support.processes import alive
from tests.support.redis import RedisServer
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import connect, run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

pytestmark = pytest.mark.xdist_group("shared")

LIMIT = 6  # connections of a source
CLIENTS = 3  # that load the relays, from an address of their own, because the balancer's is not limited
CLIENT_ADDRESS = "127.0.0.2"
SESSIONS = 15  # that the test waits for after each event


@dataclass
class Site:
    """The relays, the balancer and the Redis; `held` are the connections that a test keeps open."""

    redis: RedisServer
    relays: list[RelayProcess]
    balancer: Haproxy
    held: list[socket.socket] = field(default_factory=list)

    def knock(self, relay: RelayProcess, source: str) -> bool:
        """Whether this relay accepts a connection from `source`; an accepted one stays open."""
        sock = socket.create_connection(("127.0.0.1", relay.port), timeout=30)
        sock.sendall(f"PROXY TCP4 {source} 127.0.0.1 40000 22\r\n".encode())
        if comes_in(sock):
            self.held.append(sock)
            return True
        sock.close()
        return False

    def refused(self, relay: RelayProcess, source: str, why: str) -> bool:
        return not self.knock(relay, source) and f"{source} {why}" in relay.log_text()

    def heard(self, relay: RelayProcess, source: str, connections: int) -> None:
        """Waits, without a connection of its own, until the relay has learned that a source has so many connections."""
        wait_until(lambda: self.redis.run("ZSCORE", "{relay:shared:}counts", source) == str(connections))
        name = "relay_shared_exchanges_total"
        before = relay.metric(name, result="ok")
        wait_until(lambda: relay.metric(name, result="ok") >= before + 2, message="one exchange began and ended")

    def let_go(self) -> None:
        for sock in self.held:
            sock.close()
        self.held.clear()


@pytest.fixture(scope="module")
def site(sshd: Sshd) -> Iterator[Site]:
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        settings = {
            "proxy_protocol": {"mode": "require", "trusted": ["127.0.0.1"]},
            "limits": {"connections_per_source": LIMIT, "penalty_seconds": 100},
            "shared": {"urls": [redis.url]},
        }
        relays = [RelayProcess(sshd, config=settings) for _ in range(2)]
        for relay in relays[1:]:
            shutil.copy(relays[0].host_key.private, relay.host_key.private)
            relay.host_key = relays[0].host_key
            relay.add_key("alice", relays[0].key.line)
        for relay in relays:
            stack.enter_context(relay)
        ports = [(relay.port, int(relay.admin_url.rpartition(":")[2])) for relay in relays]
        site = Site(redis, relays, stack.enter_context(Haproxy.deployed(ports)))
        for number in (1, 2):
            wait_until(lambda number=number: site.balancer.server_state(f"relay{number}") == "UP")  # type: ignore[misc]
        yield site
        site.let_go()


async def logged(relay: RelayProcess, text: str) -> None:
    await wait_until_async(lambda: text in relay.log_text(), message=f"{relay!r} logs {text!r}")


@dataclass
class Session:
    """The result of one session of a client."""

    began: float
    ended: float | None = None
    fault: str = ""


class Load:
    """Clients that connect, run one session and leave, again and again, through the balancer."""

    def __init__(self, site: Site) -> None:
        self.sessions: list[Session] = []
        self._site = site
        self._stop = False

    async def client(self) -> None:
        relay = self._site.relays[0]
        while not self._stop:
            session = Session(time.monotonic())
            self.sessions.append(session)
            try:
                port = self._site.balancer.port
                async with connect(port, [relay.key], relay.host_key_line, relay.user, local_addr=(CLIENT_ADDRESS, 0)) as connection:
                    done = await run(connection, "git-upload-pack 'stub/emit/100000/37'")
                assert (done.exit_status, len(done.stdout)) == (37, 100_000), done
            except (OSError, asyncssh.Error, AssertionError) as error:
                session.fault = f"{type(error).__name__}: {error}"
            session.ended = time.monotonic()

    def since(self, moment: float) -> list[Session]:
        """The sessions that began after this time and have ended."""
        return [session for session in self.sessions if session.began >= moment and session.ended is not None]

    async def goes_on(self) -> None:
        """Waits until so many more sessions have ended."""
        moment = time.monotonic()
        await wait_until_async(lambda: len(self.since(moment)) >= SESSIONS, 120, "sessions go on")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self.client())
            try:
                await self.goes_on()
                yield
            finally:
                self._stop = True


def test_connections_of_a_source_are_counted_by_both_together(site: Site) -> None:
    one, other = site.relays
    for _ in range(LIMIT):
        assert site.knock(one, "192.0.2.3")
    assert site.refused(one, "192.0.2.3", f"has {LIMIT} connections open")
    site.heard(other, "192.0.2.3", LIMIT)
    assert site.refused(other, "192.0.2.3", f"has {LIMIT} connections open"), "though it has none itself"
    assert site.knock(other, "192.0.2.33")
    site.let_go()


def test_penalties_that_were_earned_at_one_hold_at_the_other(site: Site) -> None:
    one, other = site.relays
    before = one.metric("relay_connections_total", outcome="no_auth")
    assert site.knock(one, "192.0.2.4")
    site.held[-1].sendall(b"SSH-2.0-scanner\r\n")  # a connection that sends nothing counts as a check of the port, which has no penalty
    site.let_go()  # the connection leaves without a login attempt
    wait_until(lambda: one.metric("relay_connections_total", outcome="no_auth") > before, message="it was seen to leave")
    wait_until(lambda: site.refused(one, "192.0.2.4", "failed too often"))
    began = time.monotonic()
    wait_until(lambda: site.refused(other, "192.0.2.4", "failed too often"), message="the penalty holds at the other")
    print(f"\nshared: a penalty held at the other relay after {time.monotonic() - began:.2f} s")


async def test_a_redis_that_stops_and_starts_costs_no_session(site: Site) -> None:
    load = Load(site)
    async with load.running():
        site.redis.kill()
        for relay in site.relays:
            await logged(relay, "nothing can be shared")
        await load.goes_on()
        site.redis.start()
        for relay in site.relays:
            await logged(relay, "limits are shared again")
        await load.goes_on()
    assert [session.fault for session in load.sessions if session.fault] == []
    for relay in site.relays:
        assert relay.metric("relay_shared_exchanges_total", result="unreachable") > 0
        assert relay.metric("relay_sessions_total", result="exit") > 0, "both served"
        told = re.findall("nothing can be shared|limits are shared again", relay.log_text())
        assert told == ["nothing can be shared", "limits are shared again"] * (len(told) // 2), "each outage once, and its end"


async def test_one_is_killed_under_load_and_no_new_session_fails(site: Site, sshd: Sshd, tmp_path: Path) -> None:
    one, other = site.relays
    make_repo(sshd.root / "team" / "app.git")
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{site.balancer.port} {one.host_key_line}\n")
    env = git_env(tmp_path / "home", key=one.key.private, known_hosts=known_hosts)
    for _ in range(LIMIT):
        assert site.knock(one, "192.0.2.5")
    site.heard(other, "192.0.2.5", LIMIT)
    assert site.refused(other, "192.0.2.5", f"has {LIMIT} connections open")

    load = Load(site)
    async with load.running():
        processes = one.processes()
        for process in processes:  # the supervisor and its workers, each in a process group of its own
            process.send_signal(signal.SIGKILL)
        one.wait()
        await wait_until_async(lambda: not any(map(alive, processes)))
        killed = time.monotonic()
        url = f"ssh://git@127.0.0.1:{site.balancer.port}/team/app"
        await asyncio.to_thread(git, "clone", url, tmp_path / "work", env=env)
        await load.goes_on()
        await wait_until_async(lambda: site.knock(other, "192.0.2.5"), message="what the killed one had counts no more")
        print(f"\nshared: its connections were forgotten {time.monotonic() - killed:.1f} s after it was killed")
        await wait_until_async(lambda: site.balancer.server_state("relay1") == "DOWN")
        await load.goes_on()
    new = load.since(killed)
    assert len(new) >= 2 * SESSIONS
    assert [session.fault for session in new if session.fault] == []
    dead = site.balancer.statistics("relay1")
    print(f"shared: {len(new)} sessions after the kill, none failed; {dead['wredis']} of them were sent to the dead one first")
