"""At the limit of file descriptors the relay refuses and logs new connections, serves the open ones, and recovers."""

from __future__ import annotations

import resource
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psutil
import pytest

from relay.process.resources import OWN_DESCRIPTORS
from tests.e2e.helpers import comes_in
from tests.support.pattern import stub_bytes
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

LIMIT = 120
GIT_HOST_CONNECTIONS = 8
ROOM = LIMIT - OWN_DESCRIPTORS - GIT_HOST_CONNECTIONS
LIMITED = f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT}))
os.execv(sys.executable, [sys.executable, "-m", "relay", *sys.argv[1:]])
"""
MANY = {"connections_per_source": 10_000, "unauthenticated_connections": 10_000}
CLIENTS = 300


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(relay: RelayProcess, clients: ExitStack, count: int) -> list[socket.socket]:
    return [clients.enter_context(socket.create_connection(("127.0.0.1", relay.port), timeout=30)) for _ in range(count)]


def worker_of(relay: RelayProcess) -> psutil.Process:
    [worker] = relay.processes()[1:]
    return worker


def test_a_relay_started_with_a_low_limit_refuses_before_it_is_reached(
    sshd: Sshd, make_relay: Callable[..., RelayProcess], clients: ExitStack
) -> None:
    upstream = {"main": {"connections_max": GIT_HOST_CONNECTIONS}}
    relay = make_relay(sshd, config={"limits": MANY, "upstreams": upstream}, program=(sys.executable, "-c", LIMITED))
    worker = worker_of(relay)
    assert f"{ROOM} connections at most, not 20000: no more than {LIMIT} file descriptors may be open" in relay.log_text()
    with relay.ssh().popen("git-upload-pack 'stub/cat'") as inside:
        assert inside.stdin is not None and inside.stdout is not None
        wait_until(lambda: relay.metric("relay_sessions_open") == 1, message="one is in")
        came_in = [comes_in(client) for client in opened(relay, clients, CLIENTS)]
        assert came_in.count(True) == ROOM - 1
        assert relay.metric("relay_connections_total", outcome="limited") == CLIENTS - (ROOM - 1), "each that was refused is counted"
        relay.wait_for_log(rf"turned away: {ROOM} connections are open")
        assert relay.log_text().count("turned away") < CLIENTS / 2, "a flood is summed up"
        assert worker.num_fds() < LIMIT - GIT_HOST_CONNECTIONS
        inside.stdin.write(stub_bytes(100_000))
        inside.stdin.close()
        assert inside.stdout.read() == stub_bytes(100_000)
        assert inside.wait(60) == 0
    clients.close()
    wait_until(lambda: relay.metric("relay_connections_open") == 0, message="they are gone")
    assert relay.ssh().run("git-upload-pack 'stub/exit/3'").returncode == 3
    assert worker_of(relay) == worker, "the same worker still"


def test_a_worker_that_runs_dry_all_the_same_lives_and_recovers(
    sshd: Sshd, make_relay: Callable[..., RelayProcess], clients: ExitStack
) -> None:
    """The test lowers the limit of the running worker."""
    relay = make_relay(sshd, config={"limits": MANY})
    worker = worker_of(relay)
    before = worker.rlimit(psutil.RLIMIT_NOFILE)
    wait_until(lambda: relay.metric("relay_upstream_connections", state="idle") == 4, message="the pool is warm")
    with relay.ssh().popen("git-upload-pack 'stub/cat'") as inside:
        assert inside.stdin is not None and inside.stdout is not None
        wait_until(lambda: relay.metric("relay_sessions_open") == 1, message="one is in")
        lowest = worker.num_fds() + 20
        worker.rlimit(psutil.RLIMIT_NOFILE, (lowest, before[1]))
        came_in = [comes_in(client) for client in opened(relay, clients, 100)]
        assert 0 < came_in.count(True) <= 20
        inside.stdin.write(stub_bytes(100_000))
        inside.stdin.close()
        assert inside.stdout.read() == stub_bytes(100_000)
        assert inside.wait(60) == 0
    clients.close()
    wait_until(lambda: relay.metric("relay_connections_open") == 0, message="they are gone")
    assert relay.ssh().run("git-upload-pack 'stub/exit/3'").returncode == 3, "at the low limit still"
    worker.rlimit(psutil.RLIMIT_NOFILE, before)
    assert all(map(comes_in, opened(relay, clients, 100)))
    assert worker_of(relay) == worker, "the same worker still"


def test_a_session_for_which_no_descriptor_is_left_is_told_so_and_the_next_is_served(
    sshd: Sshd, make_relay: Callable[..., RelayProcess]
) -> None:
    relay = make_relay(sshd, config={"upstreams": {"main": {"idle_connections": 0}}})
    worker = worker_of(relay)
    before = worker.rlimit(psutil.RLIMIT_NOFILE)
    with relay.ssh().control_master() as master:
        worker.rlimit(psutil.RLIMIT_NOFILE, (worker.num_fds(), before[1]))
        done = master.run("git-upload-pack 'stub/exit/0'")
        assert (done.returncode, done.stderr) == (255, b"relay: the git host is unavailable, try again in a moment\n")
        relay.wait_for_log("Too many open files")
        worker.rlimit(psutil.RLIMIT_NOFILE, before)
        assert master.run("git-upload-pack 'stub/exit/3'").returncode == 3
    assert worker_of(relay) == worker, "the same worker still"


def test_a_worker_raises_its_limit_as_far_as_it_may(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    program = LIMITED.replace(f"({LIMIT}, {LIMIT})", f"({LIMIT}, {hard})")
    relay = make_relay(sshd, program=(sys.executable, "-c", program))
    assert worker_of(relay).rlimit(psutil.RLIMIT_NOFILE) == (hard, hard)
