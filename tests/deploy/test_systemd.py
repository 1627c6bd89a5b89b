"""The systemd units: valid for systemd without a warning, hardened below a score, and consistent with the relay's timeouts."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.config.load import Loaded
from relay.process.worker_handle import EXIT_SECONDS, START_SECONDS

DEPLOY = Path(__file__).parents[2] / "deploy" / "systemd"
SERVICE, SOCKET = DEPLOY / "git-ssh-relay.service", DEPLOY / "git-ssh-relay.socket"
RELAY = "/opt/relay/bin/relay"
EXPOSURE = 20  # tenths; systemd rates values below 2.0 as OK, from 5.0 as medium


class Unit(dict[str, dict[str, list[str]]]):
    def __init__(self, path: Path) -> None:
        super().__init__()
        section: dict[str, list[str]] = {}
        for line in path.read_text().splitlines():
            if line.startswith("["):
                section = self.setdefault(line.strip("[]"), {})
            elif line and not line.startswith("#"):
                name, _, value = line.partition("=")
                section.setdefault(name, []).append(value)


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    assert shutil.which("systemd-analyze"), "systemd-analyze is missing: install the package systemd (make test does)"
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=60)


@pytest.fixture
def installed(tmp_path: Path) -> list[Path]:
    """The units, with the program that they start."""
    program = tmp_path / "relay"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for path in (SERVICE, SOCKET):
        (tmp_path / path.name).write_text(path.read_text().replace(RELAY, str(program)))
    return [tmp_path / SERVICE.name, tmp_path / SOCKET.name]


def test_systemd_understands_every_line(installed: list[Path]) -> None:
    done = analyze("verify", "--man=no", *installed)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_misspelt_line_would_be_seen(installed: list[Path]) -> None:
    installed[0].write_text(installed[0].read_text().replace("ProtectClock=", "ProtectClocks="))
    assert "ProtectClocks" in analyze("verify", "--man=no", *installed).stderr


def test_it_is_exposed_to_little(installed: list[Path]) -> None:
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}", installed[0])
    assert done.returncode == 0, done.stdout
    found = re.search(r"exposure level for git-ssh-relay\.service: ([0-9.]+)", done.stdout)
    assert found is not None
    assert float(found[1]) < EXPOSURE / 10


def test_its_times_are_longer_than_the_relays_and_its_names_the_same(checked: Callable[..., Loaded]) -> None:
    service = Unit(SERVICE)["Service"]
    name = SERVICE.name
    loaded = checked((DEPLOY / "relay.toml").read_text(), {}, (f"/run/credentials/{name}", "/run/relay"))
    assert loaded.config.listen == ["systemd"]
    assert int(service["TimeoutStopSec"][0]) > loaded.config.limits.drain_seconds + EXIT_SECONDS
    assert int(service["TimeoutStartSec"][0]) > START_SECONDS
    handed = [line.partition(":")[0] for line in service["LoadCredential"]]
    assert sorted(handed) == sorted(Path(path).name for path in (*loaded.config.host_keys, loaded.config.upstreams["main"].private_key))
    assert service["RuntimeDirectory"] == ["relay"]
    assert service["CacheDirectory"] == ["relay"]
    assert '# folder = "/var/cache/relay/' in (DEPLOY / "relay.toml").read_text(), "with DynamicUser /var/cache/relay is a symbolic link"
    assert service["ExecStart"] == [f"{RELAY} serve -c /etc/relay/relay.toml"]


def test_the_socket_is_taken_for_both_families() -> None:
    assert Unit(SOCKET)["Socket"]["ListenStream"] == ["0.0.0.0:2222", "[::]:2222"]
    assert Unit(SERVICE)["Unit"]["Requires"] == [SOCKET.name]
