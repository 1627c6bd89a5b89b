"""The podman quadlet: its keys are those that podman knows, and what systemd reads of it systemd understands."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from relay import __version__
from relay.config.load import Loaded
from relay.process.worker_handle import EXIT_SECONDS
from tests.deploy.test_systemd import Unit

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "podman" / "git-ssh-relay.container"

# podman-systemd.unit(5) of podman 4.4, the first with quadlets, and of 4.5
KNOWN = {
    "AddCapability", "AddDevice", "Annotation", "ContainerName", "DropCapability", "Environment", "EnvironmentFile",
    "EnvironmentHost", "Exec", "ExposeHostPort", "Group", "HealthCmd", "HealthInterval", "HealthOnFailure", "HealthRetries",
    "HealthStartPeriod", "HealthStartupCmd", "HealthStartupInterval", "HealthStartupRetries", "HealthStartupSuccess",
    "HealthStartupTimeout", "HealthTimeout", "IP", "IP6", "Image", "Label", "LogDriver", "Mount", "Network", "NoNewPrivileges",
    "Notify", "PodmanArgs", "PublishPort", "ReadOnly", "RunInit", "SeccompProfile", "Secret", "SecurityLabelDisable",
    "SecurityLabelFileType", "SecurityLabelLevel", "SecurityLabelType", "Timezone", "Tmpfs", "User", "UserNS", "VolatileTmp",
    "Volume",
}  # fmt: skip


def test_podman_knows_every_key() -> None:
    unit = Unit(FILE)
    assert set(unit) == {"Unit", "Container", "Service", "Install"}
    assert set(unit["Container"]) <= KNOWN


def test_systemd_understands_the_rest(tmp_path: Path) -> None:
    """Quadlet copies the other sections into the service that it makes, and adds the command."""
    text = re.sub(r"^\[Container\]\n.*?(?=^\[)", "", FILE.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = text.replace("[Service]\n", "[Service]\nExecStart=/bin/true\n").replace("/usr/bin/podman", "/bin/true")
    (tmp_path / "git-ssh-relay.service").write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "git-ssh-relay.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_runs_the_image_as_the_other_examples_do(checked: Callable[..., Loaded]) -> None:
    unit = Unit(FILE)
    container, service = unit["Container"], unit["Service"]
    text = (ROOT / "deploy" / "compose" / "relay" / "relay.toml").read_text()
    text = text.replace("/etc/relay-keys/known_hosts", "known_hosts").replace("githost:22", "git.example.com:22")
    people = {"elsewhere1/alice.pub": "ssh-ed25519 REPLACE-ME alice"}
    loaded = checked(text, people, ("/etc/relay-keys", "/etc/relay-people", "/run/relay"))
    [stop] = [int(argument.rpartition("=")[2]) for argument in container["PodmanArgs"]]
    assert loaded.config.limits.drain_seconds + EXIT_SECONDS < stop < int(service["TimeoutStopSec"][0])
    assert container["Image"] == [f"localhost/git-ssh-relay:{__version__}"]
    assert (container["ReadOnly"], container["DropCapability"], container["NoNewPrivileges"]) == (["true"], ["all"], ["true"])
    assert "EXPOSE 2222 9122" in (ROOT / "Dockerfile").read_text()
    assert [port.rpartition(":")[2] for port in container["PublishPort"]] == ["2222", "9122"]
    assert container["ContainerName"][0] in service["ExecReload"][0]
