"""The compose file, read by the compose specification's loader; its files, read by their programs; its keys, in a real sshd and relay."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay import __version__
from relay.config.load import Loaded
from relay.config.placeholders import PLACEHOLDER
from relay.errors import ConfigError
from relay.preflight import load_all
from relay.process.worker_handle import EXIT_SECONDS
from tests.support.clients import Missing, go_program
from tests.support.gitrepo import commit, git, make_repo, rev_parse
from tests.support.keys import Key
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "compose"
SECONDS = 60.0
MOVED = ("Port", "HostKey", "AuthorizedKeysFile", "AllowUsers")  # the test's own sshd has others
TOML = (FOLDER / "relay" / "relay.toml").read_text()
FILES = {name: (FOLDER / "relay" / name).read_text() for name in ("access.toml", "routes.toml")}


def load(path: Path) -> subprocess.CompletedProcess[str]:
    try:
        program = go_program("compose")
    except Missing as missing:
        pytest.skip(str(missing))
    return subprocess.run([program, path], capture_output=True, text=True, timeout=SECONDS, check=False)


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    done = load(FOLDER / "compose.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


def test_the_specifications_loader_takes_it_and_every_file_is_there(services: dict[str, Any]) -> None:
    assert set(services) == {"prepare", "githost", "relay", "prometheus", "grafana"}
    for name, service in services.items():
        for mount in service["volumes"]:
            assert mount["type"] == "volume" or Path(mount["source"]).exists(), f"{name}: {mount['source']}"
        if "build" in service:
            context = Path(service["build"]["context"])
            assert (context / service["build"].get("dockerfile", "Dockerfile")).exists(), name
    relay = services["relay"]
    assert relay["image"] == f"git-ssh-relay:{__version__}"
    assert (relay["read_only"], relay["cap_drop"], relay["security_opt"]) == (True, ["ALL"], ["no-new-privileges:true"])


def test_only_the_relay_and_grafana_are_published_and_the_git_host_reaches_nothing(services: dict[str, Any]) -> None:
    ports = [(name, port) for name, service in services.items() for port in service.get("ports", [])]
    published = {(name, port.get("host_ip", ""), port["published"]) for name, port in ports}
    assert published == {("relay", "", "2222"), ("grafana", "127.0.0.1", "3000")}
    assert list(services["githost"]["networks"]) == list(services["prometheus"]["networks"]) == ["inner"]
    assert yaml.safe_load((FOLDER / "compose.yaml").read_text())["networks"]["inner"] == {"internal": True}
    for name in ("relay", "githost"):
        keys = [mount["source"] for mount in services[name]["volumes"] if mount["source"].endswith("-keys")]
        assert keys == [f"{name}-keys"], "neither has a private key of the other"


@pytest.mark.parametrize(("right", "wrong"), [("read_only: true", "readonly: true"), ("relay-keys: {}", "relay-key: {}")])
def test_a_misspelt_key_or_volume_would_be_seen(tmp_path: Path, right: str, wrong: str) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text((FOLDER / "compose.yaml").read_text().replace(f"  {right}", f"  {wrong}"))
    done = load(path)
    assert done.returncode == 1
    assert done.stderr


def test_the_relay_reads_its_files_and_has_time_to_drain(checked: Callable[..., Loaded], services: dict[str, Any]) -> None:
    text = TOML.replace("/etc/relay-keys/known_hosts", "known_hosts").replace("githost:22", "git.example.com:22")
    people = {"elsewhere1/alice.pub": (FOLDER / "people" / "alice.pub").read_text()}
    loaded = checked(text, FILES | people, ("/etc/relay-keys", "/etc/relay-people", "/run/relay"))
    assert services["relay"]["stop_grace_period"] == "1m15s"
    assert loaded.config.limits.drain_seconds + EXIT_SECONDS < 75
    [port] = services["relay"]["ports"]
    assert loaded.config.listen == [f"0.0.0.0:{port['target']}"]
    [scrape] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    port = loaded.config.admin.listen.rpartition(":")[2]
    assert (scrape["job_name"], scrape["static_configs"]) == ("relay", [{"targets": [f"relay:{port}"]}])


def prepared(folder: Path) -> tuple[Path, Path]:
    """The two volumes, after prepare.sh."""
    relay, githost = folder / "relay-keys", folder / "githost-keys"
    for each in (relay, githost):
        each.mkdir(exist_ok=True)
    subprocess.run([FOLDER / "prepare.sh", relay, githost], check=True, capture_output=True, timeout=SECONDS)
    for name in ("host_ed25519", "upstream_ed25519"):
        (relay / name).chmod(0o600)  # a test's relay is not in the container's group
    return relay, githost


def moved(keys: Path, people: Path, run: Path) -> str:
    """relay.toml with folders of the test."""
    return TOML.replace("/etc/relay-keys", str(keys)).replace("/etc/relay-people", str(people)).replace("/run/relay", str(run))


def test_a_clone_and_a_push_with_the_keys_that_are_made(tmp_path: Path, sshd_installed: None, key: Key) -> None:
    """Without containers: the relay and sshd of this machine with the files of compose.yaml, but for folders, address and port."""
    keys, githost = prepared(tmp_path)
    before = {path: path.read_bytes() for path in (*keys.iterdir(), *githost.iterdir())}
    prepared(tmp_path)
    assert {path: path.read_bytes() for path in (*keys.iterdir(), *githost.iterdir())} == before, "a second start keeps all keys"
    lines = [line for line in (FOLDER / "githost" / "sshd_config").read_text().splitlines() if line.split()[0] not in ("#", *MOVED)]
    host = Sshd(config=lines)
    host.host_key = Key(githost / "host_ed25519", (githost / "host_ed25519.pub").read_text().strip())
    host.forbid(host.key.line)
    host.authorize((githost / "authorized_keys").read_text())
    with host:
        make_repo(host.root / "team/app.git")
        folder = tmp_path / "relay"
        relay = RelayProcess(host, folder)
        place = f"{host.address}:{host.port}"
        (keys / "known_hosts").write_text((keys / "known_hosts").read_text().replace("githost", f"[{host.address}]:{host.port}"))
        relay.config_file.write_text(
            moved(keys, folder / "keys", folder)
            .replace('"githost:22"', f'"{place}"')
            .replace('user = "git"', f'user = "{host.user}"')
            .replace("0.0.0.0:2222", "127.0.0.1:0")
            .replace("0.0.0.0:9122", "127.0.0.1:0")
            .replace("host_keys =", "workers = 1\nhost_keys =")
        )
        for name, content in FILES.items():
            (folder / name).write_text(content.replace("/srv/git", str(host.root)))
        relay.host_key = Key(keys / "host_ed25519", (keys / "host_ed25519.pub").read_text().strip())
        with relay:
            env = relay.git_env(tmp_path / "home")
            git("clone", "-q", relay.url("team/app"), str(tmp_path / "work"), env=env)
            pushed = commit(tmp_path / "work", env)
            git("-C", str(tmp_path / "work"), "push", "-q", env=env)
            assert rev_parse(host.root / "team/app.git", env, "main") == pushed


def test_whose_key_is_not_there_the_relay_names(tmp_path: Path) -> None:
    keys, _ = prepared(tmp_path)
    (tmp_path / "relay.toml").write_text(moved(keys, FOLDER / "people", tmp_path))
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError) as refused:
        load_all(tmp_path / "relay.toml")
    [line] = str(refused.value).splitlines()
    assert "people/alice.pub:1: still has the placeholder" in line
    assert PLACEHOLDER in line


def test_prometheus_and_grafana_take_their_files(tmp_path: Path) -> None:
    (tmp_path / "rules").symlink_to(ROOT / "grafana" / "rules")
    (tmp_path / "prometheus.yml").write_text((FOLDER / "prometheus.yml").read_text())
    command = ["promtool", "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SUCCESS") >= 3, "the configuration and both files of rules"
    plain = yaml.safe_load((ROOT / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text())
    ours = yaml.safe_load((FOLDER / "grafana.yml").read_text())
    ours["datasources"][0]["url"] = plain["datasources"][0]["url"]
    assert ours == plain
