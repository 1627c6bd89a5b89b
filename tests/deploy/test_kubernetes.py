"""The Kubernetes manifests: valid by the published schemas, restricted, and consistent with one another and with the relay."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest
import yaml

from relay import __version__
from relay.cli import main
from relay.config import PacksSettings
from relay.config.load import Loaded
from relay.errors import ConfigError
from relay.observe.metrics import Metrics
from relay.preflight import load_all
from relay.process.worker_handle import EXIT_SECONDS

FILE = Path(__file__).parents[2] / "deploy" / "kubernetes" / "relay.yaml"
VERSIONS = ["1.30", "1.34", "1.37"]  # the first with preStop.sleep without a feature gate, and the latest with published schemas
ALL: list[dict[str, Any]] = list(yaml.safe_load_all(FILE.read_text()))
BY_NAME = {(one["kind"], one["metadata"]["name"]): one for one in ALL}
POD: dict[str, Any] = BY_NAME["Deployment", "relay"]["spec"]["template"]["spec"]
CONTAINER: dict[str, Any] = POD["containers"][0]
LABELS = BY_NAME["Deployment", "relay"]["spec"]["template"]["metadata"]["labels"]
CONFIG: dict[str, str] = BY_NAME["ConfigMap", "relay-config"]["data"]


@pytest.fixture
def loaded(checked: Callable[..., Loaded]) -> Loaded:
    """The configuration in the ConfigMap, with all files that it names."""
    files = {name: text for name, text in CONFIG.items() if name != "relay.toml"}
    people = {f"elsewhere1/{name}": text for name, text in BY_NAME["ConfigMap", "relay-people"]["data"].items()}
    return checked(CONFIG["relay.toml"], files | people, ("/etc/relay-keys", "/etc/relay-people", "/run/relay"))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid_and_has_no_field_that_is_unknown(version: str) -> None:
    for one in ALL:
        kubernetes_validate.validate(one, version, strict=True)


def test_a_misspelt_field_would_be_seen() -> None:
    wrong = BY_NAME["PodDisruptionBudget", "relay"] | {"spec": {"maxUnavailible": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_what_the_restricted_pod_security_standard_asks_for() -> None:
    pod, container = POD["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] > 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["allowPrivilegeEscalation"] is False
    assert container["readOnlyRootFilesystem"] is True
    assert container["capabilities"] == {"drop": ["ALL"]}
    assert POD["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(POD)
    assert all(set(volume) & {"configMap", "secret", "emptyDir"} for volume in POD["volumes"])
    assert f"{pod['runAsUser']}:{pod['runAsGroup']}" in (FILE.parents[2] / "Dockerfile").read_text()


def test_every_selector_finds_the_pods() -> None:
    for kind, name, path in [
        ("Deployment", "relay", ("selector", "matchLabels")),
        ("PodDisruptionBudget", "relay", ("selector", "matchLabels")),
        ("NetworkPolicy", "relay", ("podSelector", "matchLabels")),
        ("Service", "relay", ("selector",)),
        ("Service", "relay-metrics", ("selector",)),
    ]:
        selector = BY_NAME[kind, name]["spec"]
        for step in path:
            selector = selector[step]
        assert selector == LABELS, (kind, name)
    target = BY_NAME["HorizontalPodAutoscaler", "relay"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) in BY_NAME


def test_there_is_time_to_drain_before_the_kill(loaded: Loaded) -> None:
    ahead = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert ahead > CONTAINER["readinessProbe"]["periodSeconds"]
    assert POD["terminationGracePeriodSeconds"] > ahead + loaded.config.limits.drain_seconds + EXIT_SECONDS


def test_ports_and_probes_are_the_relays(loaded: Loaded) -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert loaded.config.listen == [f"0.0.0.0:{ports['ssh']}"]
    assert loaded.config.admin.listen == f"0.0.0.0:{ports['admin']}"
    for probe, path in [("startupProbe", "/live"), ("livenessProbe", "/live"), ("readinessProbe", "/ready")]:
        assert CONTAINER[probe]["httpGet"] == {"path": path, "port": "admin"}
    assert BY_NAME["Service", "relay"]["spec"]["ports"][0]["targetPort"] in ports
    assert loaded.config.workers == int(CONTAINER["resources"]["limits"]["cpu"])
    assert CONTAINER["image"] == f"git-ssh-relay:{__version__}"


def test_what_is_mounted_is_what_the_relay_reads() -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in POD["volumes"]}
    assert mounts == {
        "config": "/etc/relay",
        "people": "/etc/relay-people",
        "keys": "/etc/relay-keys",
        "run": "/run/relay",
        "cache": "/var/cache/relay",
        "tmp": "/tmp",
    }
    for volume in POD["volumes"]:
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in BY_NAME
        if "secret" in volume:
            assert volume["secret"]["defaultMode"] == 0o440


def test_packs_lie_in_their_volume_and_fit_into_it() -> None:
    lines = CONFIG["relay.toml"].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("# [packs]"))
    shown = [line.removeprefix("# ") for line in lines[start : lines.index("", start)]]
    packs = msgspec.convert(tomllib.loads("\n".join(shown))["packs"], PacksSettings)
    [limit] = [volume["emptyDir"]["sizeLimit"] for volume in POD["volumes"] if volume["name"] == "cache"]
    assert packs.folder.startswith("/var/cache/relay/"), "the volume's own folder belongs to root"
    assert packs.max_bytes < int(limit.removesuffix("Gi")) << 30


def test_the_relay_refuses_what_was_left_in_place(tmp_path: Path) -> None:
    """As it is applied untouched, but for the name of the git host: each placeholder is one line, and no key or rule is ready-made."""
    assert main(["init", str(tmp_path / "new")]) == 0
    base = tmp_path / "new"
    for name, text in CONFIG.items():
        folders = {"/etc/relay-keys": base, "/etc/relay-people": base / "people", "/run/relay": base}
        for path, there in folders.items():
            text = text.replace(path, str(there))
        (base / name).write_text(text.replace("git.example.com", "git.internal"))
    (base / "people").mkdir()
    for name, text in BY_NAME["ConfigMap", "relay-people"]["data"].items():
        (base / "people" / name).write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_all(base / "relay.toml")
    told = [line for line in str(refused.value).splitlines() if "still has the placeholder REPLACE-ME" in line]
    assert [line.removeprefix(f"{base}/").partition(": ")[0] for line in told] == ["known_hosts:1", "people/alice.pub:1", "access.toml:3"]


def test_it_scales_by_a_metric_that_exists(loaded: Loaded) -> None:
    [metric] = BY_NAME["HorizontalPodAutoscaler", "relay"]["spec"]["metrics"]
    names = {family.name for family in Metrics(loaded.config, "none").snapshot().families}
    assert metric["pods"]["metric"]["name"] in names
