"""`relay health` as a container's probe runs it: a relay that is ready, drains or has ended, and addresses that do not answer."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.cli import main
from relay.commands import health
from relay.errors import ConfigError
from tests.support.machine import free_port
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until


def config(folder: Path, listen: str) -> Path:
    path = folder / "relay.toml"
    path.write_text(f'[admin]\nlisten = "{listen}"\n[upstreams.main]\naddresses = ["127.0.0.1:22"]\n')
    return path


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_ready_until_it_drains_and_live_until_it_is_gone(
    sshd: Sshd, make_relay: Callable[..., RelayProcess], capsys: pytest.CaptureFixture[str], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = make_relay(sshd, config={"admin": {"listen": f"127.0.0.1:{free_port()}"}})
    asked = relay.folder / "asked"
    asked.mkdir()
    path = str(config(asked, relay.admin_url.removeprefix("http://").replace("127.0.0.1", host)))
    wait_until(lambda: main(["health", "-c", path]) == 0, message="it is ready")
    assert capsys.readouterr().out == "ready\n"
    with relay.ssh().popen("git-receive-pack 'stub/half/1000'") as client:
        assert client.stdout is not None and client.stdin is not None
        assert len(client.stdout.read(1000)) == 1000
        relay.signal(signal.SIGTERM)
        wait_until(lambda: main(["health", "-c", path]) == 1, message="it drains")
        assert capsys.readouterr().err.endswith("draining\n")
        assert main(["health", "--live", "-c", path]) == 0
        assert capsys.readouterr().out == "live\n"
        client.stdin.close()
        client.wait(60)
    assert relay.wait() == 0
    assert main(["health", "--live", "-c", path]) == 1
    assert capsys.readouterr().err.startswith("no relay answers on ")


def test_a_server_that_does_not_answer_is_unhealthy_after_a_timeout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert health.health(config(tmp_path, f"127.0.0.1:{silent.getsockname()[1]}"), live=False) == 1
    assert capsys.readouterr().err.endswith(": timed out\n")


def test_a_port_that_the_system_chose_cannot_be_asked(tmp_path: Path) -> None:
    path = config(tmp_path, "127.0.0.1:0")
    with pytest.raises(ConfigError) as raised:
        health.health(path, live=False)
    assert raised.value.problems == [f"{path}:2: admin.listen: 127.0.0.1:0 must end with a port from 1 to 65535, so that it can be asked"]


def test_the_probe_follows_a_reload_that_changes_the_admin_address(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"admin": {"listen": f"127.0.0.1:{free_port()}"}})
    path = str(relay.config_file)
    wait_until(lambda: main(["health", "-c", path]) == 0, message="it is ready")
    port = free_port()
    relay.write_config({"admin": {"listen": f"127.0.0.1:{port}"}})
    relay.signal(signal.SIGHUP)
    relay.wait_for_log(f"admin on http://127.0.0.1:{port}")
    wait_until(lambda: main(["health", "-c", path]) == 0, message="it is ready at the new address")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        relay.write_config({"admin": {"listen": f"127.0.0.1:{taken.getsockname()[1]}"}})
        relay.signal(signal.SIGHUP)
        relay.wait_for_log("reload refused for 1 problem; the old configuration stays in force")
        assert relay.wait_for_log(r"reload refused: \S+relay\.toml:\d+: admin\.listen: \S+ Address already in use")
    relay.write_config({"admin": {"listen": f"127.0.0.1:{port}"}})
    assert main(["health", "-c", path]) == 0
