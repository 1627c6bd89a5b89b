"""The units of deploy/systemd under a real systemd, booted in a container, with the relay of the image: their restrictions are in force.

RELAY_MACHINE_ROOT is the root of a Debian with systemd and /opt/relay. Run by `make image-test`, as root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.gitrepo import commit, git, git_env, make_repo, refs
from tests.support.keys import Key, make_key
from tests.support.machine import free_port
from tests.support.sshd import Sshd
from tests.support.toml import toml_text
from tests.support.wait import wait_until

ROOT = Path(os.environ["RELAY_MACHINE_ROOT"])
UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
SERVICE = "git-ssh-relay.service"
BOOT_SECONDS = 120.0


class Machine:
    """A container with the host's network, so the relay uses a free port of this machine."""

    def __init__(self, sshd: Sshd, folder: Path) -> None:
        self.port = free_port()
        self.key: Key = make_key(folder, "alice")
        self.known_hosts = folder / "known_hosts"
        self._log = folder / "boot.log"
        self._install(sshd)
        with self._log.open("wb") as log:
            arguments = ["systemd-nspawn", "-D", str(ROOT), "--boot", "--register=no", "--keep-unit", "--machine=git-ssh-relay-test"]
            self._process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _install(self, sshd: Sshd) -> None:
        etc, units = ROOT / "etc" / "relay", ROOT / "etc" / "systemd" / "system"
        subprocess.run(["chroot", ROOT, "/opt/relay/bin/relay", "init", "/etc/relay"], check=True, stdout=subprocess.DEVNULL)
        config = (UNITS / "relay.toml").read_text()
        changes = [("git.example.com:22", f"{sshd.address}:{sshd.port}"), ('user = "git"', f'user = "{sshd.user}"')]
        for written, meant in [*changes, ("127.0.0.1:9122", f"127.0.0.1:{free_port()}")]:
            assert config.count(written) == 1, written
            config = config.replace(written, meant)
        (etc / "relay.toml").write_text(config)
        (etc / "known_hosts").write_text(f"[{sshd.address}]:{sshd.port} {sshd.host_key_line}\n")
        (etc / "routes.toml").write_text(
            toml_text({"route": [{"repositories": "**", "upstream": "main", "path": f"{sshd.root}/{{repository}}.git"}]})
        )
        (etc / "access.toml").write_text(toml_text({"rule": [{"repositories": "**", "who": ["alice"], "allow": "write"}]}))
        (etc / "keys" / "alice.pub").write_text(self.key.line + "\n")
        shutil.copy(sshd.key.private, etc / "upstream_ed25519")  # copies the mode too
        line = " ".join((etc / "host_ed25519.pub").read_text().split()[:2])
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {line}\n")
        for unit in UNITS.glob("git-ssh-relay.*"):
            text = unit.read_text().replace("ListenStream=0.0.0.0:2222", f"ListenStream=127.0.0.1:{self.port}")
            (units / unit.name).write_text(text.replace("ListenStream=[::]:2222\n", ""))
        subprocess.run(["systemctl", f"--root={ROOT}", "enable", "--quiet", SERVICE], check=True)

    def run(self, *command: str) -> str:
        """Runs a command in the container; raises CalledProcessError."""
        [leader] = [child.pid for child in psutil.Process(self._process.pid).children() if child.name().startswith("systemd")]
        done = subprocess.run(["nsenter", "-t", str(leader), "-a", *command], check=True, capture_output=True, text=True, timeout=120)
        return done.stdout

    def state(self, name: str) -> str:
        return self.run("systemctl", "show", SERVICE, "--value", "-p", name).strip()

    def journal(self) -> str:
        return self.run("journalctl", "-u", "git-ssh-relay", "--no-pager", "-o", "cat")

    def active(self) -> bool:
        assert self._process.poll() is None, self._log.read_text(errors="replace")
        try:
            return self.state("ActiveState") == "active"
        except (subprocess.CalledProcessError, ValueError):
            return False  # not booted far enough yet

    def close(self) -> None:
        self._process.terminate()  # a clean shutdown
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(60)


@pytest.fixture(scope="module")
def machine(sshd: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(sshd, tmp_path_factory.mktemp("machine"))
    try:
        wait_until(machine.active, BOOT_SECONDS, "the service is active")
        yield machine
    finally:
        machine.close()


def test_clones_and_pushes_under_all_that_is_forbidden(machine: Machine, sshd: Sshd, tmp_path: Path) -> None:
    make_repo(sshd.root / "team" / "app.git")
    env = git_env(tmp_path / "home", key=machine.key.private, known_hosts=machine.known_hosts)
    url, work = f"ssh://git@127.0.0.1:{machine.port}/team/app", tmp_path / "work"
    git("clone", url, work, env=env)
    pushed = commit(work, env)
    git("push", "origin", "HEAD:refs/heads/pushed", cwd=work, env=env)
    assert refs(sshd.root / "team" / "app.git", env)["refs/heads/pushed"] == pushed
    wait_until(lambda: '"git-receive-pack"' in machine.journal(), message="the audit is in the journal")

    machine.run("systemctl", "reload", SERVICE)
    wait_until(lambda: "reloaded /etc/relay/relay.toml" in machine.journal(), 30, "it has reloaded")
    git("ls-remote", url, env=env)
    before = machine.state("MainPID")
    machine.run("systemctl", "restart", SERVICE)
    git("ls-remote", url, env=env)
    assert machine.state("MainPID") != before
    assert machine.state("NRestarts") == "0", "it never died"
    assert "Traceback" not in machine.journal()


def test_runs_as_a_user_that_owns_nothing(machine: Machine) -> None:
    uid = machine.run("stat", "-c", "%u", f"/proc/{machine.state('MainPID')}").strip()
    assert int(uid) >= 61184, "of systemd's dynamic users"
    status = machine.run("cat", f"/proc/{machine.state('MainPID')}/status")
    assert "NoNewPrivs:\t1" in status
    assert "CapBnd:\t0000000000000000" in status
    assert "Seccomp:\t2" in status
    keys = f"/run/credentials/{SERVICE}"
    assert machine.run("stat", "-c", "%a", f"{keys}/host_ed25519", f"{keys}/upstream_ed25519").split() in (["400"] * 2, ["440"] * 2)
