"""git-lfs at its own defaults (eight transfers at once, beside a push) through a relay with user_certificate, at its own defaults."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.e2e.helpers import audited
from tests.support.gitrepo import git, make_repo, ssh_command
from tests.support.keys import Key, make_key
from tests.support.lfs_host import LfsHost
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd

FILES = 24
FILE_BYTES = 1_000_000

pytestmark = [
    pytest.mark.skipif(shutil.which("git-lfs") is None, reason="git-lfs is not installed (Debian's package git-lfs)"),
    pytest.mark.xdist_group("lfs"),
]


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("ca"), "relay_ca")


@pytest.fixture(scope="module")
def trusting(sshd_installed: None, ca: Key, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    folder = tmp_path_factory.mktemp("principals")
    (folder / "principals").write_text("alice\nrelay-check\n")
    folder.chmod(0o755)
    config = [f"TrustedUserCAKeys {ca.public}", f"AuthorizedPrincipalsFile {folder}/principals", "AuthorizedKeysFile none"]
    with Sshd(config=config) as sshd, LfsHost(sshd) as host:
        host.only("transfer")
        yield sshd


@pytest.mark.parametrize("master", [False, True], ids=["a connection each", "one ControlMaster"])
def test_a_push_and_a_clone_of_many_files(
    master: bool, trusting: Sshd, ca: Key, make_relay: Callable[..., RelayProcess], tmp_path: Path
) -> None:
    certificate = {"user_certificate": {"ca_key": str(ca.private)}}
    relay = make_relay(trusting, config={"workers": 1, "upstreams": {"main": certificate}})
    name, env = f"lfs/{tmp_path.name}", relay.git_env(tmp_path / "home")
    make_repo(trusting.root / f"{name}.git")
    with relay.ssh().control_master() if master else nullcontext() as ssh:
        if ssh is not None:
            command = " ".join(ssh_command(ssh.key, ssh.known_hosts, *ssh.options, "ProxyCommand=false")).replace('"', "")
            env = env | {"GIT_SSH_COMMAND": command}
        git("lfs", "install", "--skip-repo", env=env)
        work, copy = tmp_path / "work", tmp_path / "copy"
        git("clone", "-q", relay.url(name), work, env=env)
        git("lfs", "track", "*.bin", cwd=work, env=env)
        for number in range(FILES):
            (work / f"{number}.bin").write_bytes(os.urandom(FILE_BYTES))
        git("add", "-A", cwd=work, env=env)
        git("commit", "-q", "-m", "large files", cwd=work, env=env)
        git("push", "-q", "origin", "main", cwd=work, env=env)
        git("clone", "-q", relay.url(name), copy, env=env)
    assert {path.name: path.read_bytes() for path in copy.glob("*.bin")} == {path.name: path.read_bytes() for path in work.glob("*.bin")}
    lines = audited(relay, 0, 12)
    assert {line["result"] for line in lines} <= {"ok", "exit"}, [line for line in lines if line["result"] not in ("ok", "exit")]
