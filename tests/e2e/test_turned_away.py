"""The text that a person reads when the relay refuses the connection before the login, with common clients; and what a flood of such
connections costs."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from relay.admission.farewell import FAREWELLS_MOST, TEXTS, Why
from tests.e2e.faults import descriptors
from tests.e2e.helpers import comes_in
from tests.support.keys import Key
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

COMMAND = "git-upload-pack 'stub/exit/5'"
FLOOD = 400
SOURCES = 100  # 127.0.1.1 and so on

FULL: dict[Why, dict[str, Any]] = {  # limits that one open connection exhausts
    "source": {"connections_per_source": 1},
    "connections": {"connections": 1},
    "unauthenticated": {"unauthenticated_connections": 1},
}


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(relay: RelayProcess, clients: ExitStack, source: str = "127.0.0.1") -> socket.socket:
    return clients.enter_context(socket.create_connection(("127.0.0.1", relay.port), timeout=30, source_address=(source, 0)))


def reads_why(relay: RelayProcess, why: Why, env: dict[str, str]) -> None:
    """Asserts that both ssh and git, which passes on its ssh's stderr, print the reason."""
    done = relay.ssh().run(COMMAND)
    assert done.returncode == 255 and TEXTS[why][1] in done.stderr.decode(), done.stderr
    listed = subprocess.run(["git", "ls-remote", relay.url("team/app")], env=env, capture_output=True, timeout=60, check=False)
    assert listed.returncode == 128 and TEXTS[why][1] in listed.stderr.decode(), listed.stderr


@pytest.mark.parametrize("why", list(FULL))
def test_beyond_a_limit(why: Why, sshd: Sshd, make_relay: Callable[..., RelayProcess], clients: ExitStack, tmp_path: Path) -> None:
    relay = make_relay(sshd, config={"workers": 1, "limits": FULL[why]})
    inside = opened(relay, clients)
    assert comes_in(inside)
    reads_why(relay, why, relay.git_env(tmp_path))
    assert relay.metric("relay_connections_total", outcome="limited") == 2, "each is counted once"
    relay.wait_for_log("a connection from 127.0.0.1 was turned away")
    inside.close()
    wait_until(lambda: relay.metric("relay_connections_open") == 0)
    assert relay.ssh().run(COMMAND).returncode == 5


@pytest.fixture
def penalised(sshd: Sshd, make_relay: Callable[..., RelayProcess], key: Key) -> RelayProcess:
    """A relay that penalises 127.0.0.1 after one failed login."""
    relay = make_relay(sshd, config={"workers": 1, "limits": {"penalty_seconds": 500, "penalty_max_seconds": 600}})
    assert relay.ssh(key=key).run(COMMAND).returncode == 255
    wait_until(lambda: relay.metric("relay_connections_total", outcome="auth_failed") == 1)
    return relay


def test_behind_the_address_of_somebody_who_failed(penalised: RelayProcess, tmp_path: Path) -> None:
    """The reader may be another person, so the text has neither number nor duration of the penalty; the log has both."""
    reads_why(penalised, "penalty", penalised.git_env(tmp_path))
    penalised.wait_for_log(r"127\.0\.0\.1 failed too often, it is kept out for \d+ s more")


def test_by_putty(penalised: RelayProcess) -> None:
    plink = [
        "plink",
        "-batch",
        "-hostkey",
        penalised.host_key.fingerprint,
        "-P",
        str(penalised.port),
        f"{penalised.user}@127.0.0.1",
        COMMAND,
    ]
    done = subprocess.run(plink, capture_output=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 1 and TEXTS["penalty"][1] in done.stderr.decode(), done.stderr


def test_by_dropbear(penalised: RelayProcess, tmp_path: Path) -> None:
    """Dropbear does not print the text, but that the relay ended the connection, instead of reporting a broken one."""
    dbclient = ["dbclient", "-y", "-p", str(penalised.port), f"{penalised.user}@127.0.0.1", COMMAND]
    done = subprocess.run(
        dbclient,
        capture_output=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert "Disconnect received" in done.stderr.decode(), done.stderr


def test_past_the_load_balancer(sshd: Sshd, make_relay: Callable[..., RelayProcess], tmp_path: Path) -> None:
    relay = make_relay(sshd, config={"proxy_protocol": {"mode": "require", "trusted": ["192.0.2.1"]}})
    reads_why(relay, "proxy", relay.git_env(tmp_path))
    assert relay.metric("relay_connections_total", outcome="proxy") == 2


def test_a_balancer_that_sends_no_header(sshd: Sshd, make_relay: Callable[..., RelayProcess], tmp_path: Path) -> None:
    relay = make_relay(sshd, config={"proxy_protocol": {"mode": "require", "trusted": ["127.0.0.1"]}})
    reads_why(relay, "proxy", relay.git_env(tmp_path))


def test_a_flood_of_them_stays_cheap(sshd: Sshd, make_relay: Callable[..., RelayProcess], clients: ExitStack) -> None:
    """Clients from many sources that read the reason and stay connected: descriptors stay below the limit, and none leaks."""
    relay = make_relay(sshd, config={"workers": 1, "limits": {"connections": 1}})
    assert comes_in(opened(relay, clients))
    before = descriptors(relay)
    flood = [opened(relay, clients, f"127.0.1.{1 + number % SOURCES}") for number in range(FLOOD)]
    wait_until(lambda: relay.metric("relay_connections_total", outcome="limited") == FLOOD, message="all are refused, and counted once")
    assert descriptors(relay) <= before + FAREWELLS_MOST + 2, "besides the connection that asked for the metrics"
    assert not any(comes_in(client) for client in flood)
    wait_until(lambda: descriptors(relay) <= before, message="none is left behind, though no client closes")
    assert relay.metric("relay_connections_open") == 1
    assert '"level":"error"' not in relay.log_text()
