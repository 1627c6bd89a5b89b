"""The Helm chart: linted and rendered by the real helm, valid by the published schemas, and the same as the plain manifest."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from grafana.build import CHART, chart_files
from relay import __version__
from relay.config.load import Loaded
from relay.process.worker_handle import EXIT_SECONDS
from tests.deploy.test_kubernetes import BY_NAME as PLAIN
from tests.deploy.test_kubernetes import VERSIONS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "helm"
HELM = ROOT / "build" / "peers" / "helm"
SECONDS = 60.0

Manifests = dict[tuple[str, str], dict[str, Any]]

PEOPLE = {"alice": "ssh-ed25519 REPLACE-ME alice"}
CONFIG = {
    "toml": PLAIN["ConfigMap", "relay-config"]["data"]["relay.toml"].partition("[upstreams.main]")[2],
    "knownHosts": PLAIN["ConfigMap", "relay-config"]["data"]["known_hosts"],
    "access": PLAIN["ConfigMap", "relay-config"]["data"]["access.toml"],
    "routes": PLAIN["ConfigMap", "relay-config"]["data"]["routes.toml"],
}
CONFIG["toml"] = "[upstreams.main]" + CONFIG["toml"]
LEAST: dict[str, Any] = {"keys": {"existingSecret": "relay-keys"}, "config": CONFIG, "people": {"keys": PEOPLE}}
ALL: dict[str, Any] = LEAST | {
    "proxyProtocol": {"mode": "require", "trusted": ["10.0.0.0/8"]},
    "shared": {"urls": ["rediss://redis.internal:6379/0"], "username": "relay", "existingSecret": "relay-shared", "secretFile": True},
    "packs": {"enabled": True, "sizeGi": 24},
    "autoscaling": {"enabled": True},
    "networkPolicy": {"redis": {"app.kubernetes.io/name": "redis"}, "egress": [{"ports": [{"protocol": "TCP", "port": 443}]}]},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True},
    "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Relay"}},
    "podAnnotations": {"team": "git"},
    "tolerations": [{"key": "git", "operator": "Exists"}],
    "nodeSelector": {"disk": "ssd"},
    "imagePullSecrets": [{"name": "registry"}],
}
CUSTOM = {"monitoring.coreos.com/v1"}  # of the Prometheus Operator: not among Kubernetes' published schemas


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if not HELM.exists():
        pytest.skip("helm is not built (scripts/peers, with Go 1.26 or later: four minutes of CPU time)")
    command = [str(HELM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL)


@pytest.fixture
def rendered(tmp_path: Path) -> Callable[[dict[str, Any]], Manifests]:
    def render(values: dict[str, Any]) -> Manifests:
        done = template(tmp_path, values)
        assert done.returncode == 0, done.stderr
        return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout) if one}

    return render


def template(folder: Path, values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    return helm("template", "relay", FOLDER, "-n", "git", "-f", folder / "values.yaml")


@pytest.mark.parametrize("values", [LEAST, ALL], ids=["least", "all"])
def test_lint_is_clean_and_every_manifest_is_valid(
    rendered: Callable[[dict[str, Any]], Manifests], tmp_path: Path, values: dict[str, Any]
) -> None:
    manifests = rendered(values)
    linted = helm("lint", "--strict", FOLDER, "-f", tmp_path / "values.yaml")
    assert (linted.returncode, linted.stdout.count("[WARNING]"), linted.stdout.count("[ERROR]")) == (0, 0, 0), linted.stdout
    kinds = {kind for kind, _ in manifests}
    assert kinds >= {"Deployment", "Service", "ConfigMap", "PodDisruptionBudget", "NetworkPolicy"}
    for one in manifests.values():
        if one["apiVersion"] not in CUSTOM:
            for version in VERSIONS:
                kubernetes_validate.validate(one, version, strict=True)


def test_the_relay_reads_what_the_chart_writes(rendered: Callable[[dict[str, Any]], Manifests], checked: Callable[..., Loaded]) -> None:
    """Each value of the chart arrives at the setting that it is about."""
    manifests = rendered(ALL)
    files = dict(manifests["ConfigMap", "relay-config"]["data"])
    text = files.pop("relay.toml").replace("/var/cache/relay/packs", "/run/relay/packs")
    people = {f"elsewhere1/{name}": key for name, key in manifests["ConfigMap", "relay-people"]["data"].items()}
    secrets = {"elsewhere2/redis.password": "secret", "elsewhere2/shared.secret": "s" * 43}
    # answers about keys are shared only where keys come by http or exec
    text = text.replace('secret_file = "/etc/relay-shared/shared.secret"\n', "")
    loaded = checked(text, files | people | secrets, ("/etc/relay-keys", "/etc/relay-people", "/etc/relay-shared", "/run/relay"))
    config, pod = loaded.config, manifests["Deployment", "relay"]["spec"]["template"]["spec"]
    assert (config.listen, config.admin.listen, config.workers) == (["0.0.0.0:2222"], "0.0.0.0:9122", 2)
    assert (config.proxy_protocol.mode, config.proxy_protocol.trusted) == ("require", ["10.0.0.0/8"])
    assert (config.shared.urls, config.shared.username) == (["rediss://redis.internal:6379/0"], "relay")
    [cache] = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "cache"]
    assert config.packs is not None
    assert config.packs.max_bytes < int(cache["sizeLimit"].removesuffix("Gi")) << 30, "the kubelet evicts a pod that uses more"
    ahead = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > ahead + config.limits.drain_seconds + EXIT_SECONDS
    assert pod["containers"][0]["image"] == f"git-ssh-relay:{__version__}"
    assert config.workers == int(pod["containers"][0]["resources"]["limits"]["cpu"])


@pytest.mark.parametrize("values", [LEAST, ALL], ids=["least", "all"])
def test_what_is_mounted_is_there_and_selectors_find_the_pods(
    rendered: Callable[[dict[str, Any]], Manifests], values: dict[str, Any]
) -> None:
    manifests = rendered(values)
    spec = manifests["Deployment", "relay"]["spec"]
    labels, pod = spec["template"]["metadata"]["labels"], spec["template"]["spec"]
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    for volume in pod["volumes"]:
        assert "configMap" not in volume or ("ConfigMap", volume["configMap"]["name"]) in manifests
        assert "secret" not in volume or volume["secret"]["defaultMode"] == 0o440
    selectors = [spec["selector"]["matchLabels"], manifests["PodDisruptionBudget", "relay"]["spec"]["selector"]["matchLabels"]]
    selectors += [manifests["NetworkPolicy", "relay"]["spec"]["podSelector"]["matchLabels"]]
    selectors += [manifests["Service", name]["spec"]["selector"] for name in ("relay", "relay-metrics")]
    assert all(selector == labels for selector in selectors)
    plain = PLAIN["Deployment", "relay"]["spec"]["template"]["spec"]
    for name in ("automountServiceAccountToken", "enableServiceLinks", "securityContext", "terminationGracePeriodSeconds"):
        assert pod[name] == plain[name], name
    for name in ("ports", "securityContext", "resources", "startupProbe", "livenessProbe", "readinessProbe", "lifecycle"):
        assert pod["containers"][0][name] == plain["containers"][0][name], name


def test_prometheus_and_grafana_get_what_grafana_has(rendered: Callable[[dict[str, Any]], Manifests]) -> None:
    manifests = rendered(ALL)
    files = [yaml.safe_load((ROOT / "grafana" / "rules" / f"{name}.yml").read_text()) for name in ("recording", "alerts")]
    assert manifests["PrometheusRule", "relay"]["spec"]["groups"] == [group for file in files for group in file["groups"]]
    for name in ("overview", "upstreams"):
        [text] = manifests["ConfigMap", f"relay-{name}"]["data"].values()
        assert yaml.safe_load(text) == yaml.safe_load((ROOT / f"grafana/dashboards/{name}.json").read_text())
        assert manifests["ConfigMap", f"relay-{name}"]["metadata"]["labels"]["grafana_dashboard"] == "1"
    monitor = manifests["ServiceMonitor", "relay"]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= manifests["Service", "relay-metrics"]["metadata"]["labels"].items()
    assert not monitor["selector"]["matchLabels"].items() <= manifests["Service", "relay"]["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["relabelings"] == [{"targetLabel": "job", "replacement": "relay"}], "the alerts name this job"
    assert ("PodMonitor", "relay") in rendered(ALL | {"serviceMonitor": {"enabled": False}, "podMonitor": {"enabled": True}})


def test_the_copies_in_the_chart_are_those_of_grafana() -> None:
    there = {path: path.read_text() for path in sorted(CHART.rglob("*")) if path.is_file()}
    assert there == chart_files(), "run: python -m grafana.build"


def test_only_what_needs_a_restart_changes_the_pods(rendered: Callable[[dict[str, Any]], Manifests]) -> None:
    def pods(**changes: str) -> Any:
        return rendered(LEAST | {"config": CONFIG | changes})["Deployment", "relay"]["spec"]["template"]

    before = pods()
    more = {name: CONFIG[name] + "# changed\n" for name in ("access", "routes")}
    assert pods(**more) == before, "the relay reads these again by itself"
    assert pods(knownHosts=CONFIG["knownHosts"] + "# changed\n") != before
    assert pods(limits="sessions_per_connection = 20") != before


def test_a_configuration_of_ones_own_is_mounted_as_it_is(rendered: Callable[[dict[str, Any]], Manifests]) -> None:
    manifests = rendered({"keys": LEAST["keys"], "config": {"existingConfigMap": "mine"}, "people": {"existingConfigMap": "ours"}})
    volumes = {volume["name"]: volume for volume in manifests["Deployment", "relay"]["spec"]["template"]["spec"]["volumes"]}
    assert (volumes["config"]["configMap"]["name"], volumes["people"]["configMap"]["name"]) == ("mine", "ours")
    assert not any(kind == "ConfigMap" for kind, _ in manifests)


def test_a_volume_of_a_storage_class(rendered: Callable[[dict[str, Any]], Manifests]) -> None:
    manifests = rendered(LEAST | {"packs": {"enabled": True, "sizeGi": 100, "storageClass": "fast"}})
    kubernetes_validate.validate(manifests["Deployment", "relay"], VERSIONS[-1], strict=True)
    volumes = {volume["name"]: volume for volume in manifests["Deployment", "relay"]["spec"]["template"]["spec"]["volumes"]}
    claim = volumes["cache"]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]["storage"]) == ("fast", "100Gi")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"keys": {}}, "keys.existingSecret is empty, must name the Secret"),
        ({"config": {}}, "config.toml has no [upstreams.NAME]"),
        ({"config": CONFIG | {"toml": CONFIG["toml"] + "[packs]\n"}}, "config.toml has a table [packs], which the chart writes"),
        ({"people": {}}, "people.keys is empty, must have a public key"),
        ({"people": {"keys": PEOPLE, "existingConfigMap": "x"}}, "people.keys is set beside people.existingConfigMap"),
        ({"config": CONFIG | {"toml": CONFIG["toml"] + "[keys]\n"}}, "people is set though config.toml has [keys]"),
        ({"proxyProtocol": {"mode": "require"}}, "proxyProtocol.trusted is empty"),
        ({"shared": {"urls": ["redis://r:6379/0"]}}, "shared.existingSecret is empty"),
        ({"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}, "both enabled"),
        ({"worker": 2}, "additional properties 'worker' not allowed"),
        ({"workers": "two"}, "'/workers': got string, want integer"),
        ({"proxyProtocol": {"mode": "on"}}, "'/proxyProtocol/mode'"),
        ({"packs": {"sizeGi": 0}}, "'/packs/sizeGi': minimum"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_values_are_one_clear_line(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    done = template(tmp_path, LEAST | wrong)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len([line for line in done.stderr.splitlines() if said in line]) == 1, done.stderr
