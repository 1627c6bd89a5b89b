"""Workers that start together: one logs in to a git host, and the others wait for its result."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.keys import make_key
from tests.support.relay_process import RelayProcess, upstream
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

WORKERS = 4


@pytest.mark.parametrize("at", ["start", "reload"])
def test_a_key_that_the_host_refuses_costs_one_login_of_all_workers(
    make_sshd: Callable[..., Sshd], make_relay: Callable[..., RelayProcess], tmp_path: Path, at: str
) -> None:
    host = make_sshd()
    right = upstream(host) | {"idle_connections": 2, "refused_seconds": 3600.0, "health_seconds": 0}
    wrong = right | {"private_key": str(make_key(tmp_path, "strange").private)}
    mark = host.log_mark()
    relay = make_relay(host, config={"workers": WORKERS, "upstreams": {"main": wrong if at == "start" else right}})
    if at == "reload":
        wait_for_warm_connections(relay)
        mark = host.log_mark()
        relay.write_config({"upstreams": {"main": wrong}})
        relay.signal(signal.SIGHUP)
    wait_until(lambda: relay.get("/ready") == (503, "no_upstream\n"), message="all workers know that the login was refused")
    assert b"the git host is unavailable" in relay.ssh().run("git-upload-pack 'stub/exit/7'").stderr
    assert host.connections(mark) == 1

    relay.write_config({"upstreams": {"main": right}})
    relay.signal(signal.SIGHUP)
    wait_for_warm_connections(relay)
    assert relay.ssh().run("git-upload-pack 'stub/exit/7'").returncode == 7


def wait_for_warm_connections(relay: RelayProcess) -> None:
    wait_until(lambda: relay.metric("relay_upstream_connections", state="idle") == 2 * WORKERS, message="warm connections of all workers")
