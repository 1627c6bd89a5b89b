"""The container image that scripts/image-test has built: its content, and a relay in it between the real git and a real sshd.

RELAY_IMAGE_ROOT is its root file system, RELAY_IMAGE_JSON its configuration. Run by `make image-test`.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.gitrepo import commit, git, make_repo, refs
from tests.support.machine import free_port
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

SIZE_LIMIT = 150_000_000  # bytes of all files, Debian's included
ENTER = Path(__file__).with_name("enter.py")
ROOT = Path(os.environ["RELAY_IMAGE_ROOT"])
IMAGE_FILE = os.environ["RELAY_IMAGE_JSON"]
CONFIG: dict[str, Any] = json.loads(Path(IMAGE_FILE).read_text())["Docker"]["config"]
UID, GID = map(int, CONFIG["User"].split(":"))

IMPORT_ALL = """
import importlib, pkgutil, ssl, relay
print(len(ssl.create_default_context().get_ca_certs()))
for module in pkgutil.walk_packages(relay.__path__, "relay."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from relay.backends.redis import INSTALLED
from relay.upstream.libssh2 import loaded_library
from relay.ssh import gcm
assert INSTALLED and gcm.ACCELERATED
print(loaded_library())
"""


def inside(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in the image, with `folder` as /etc/relay."""
    return subprocess.run([sys.executable, ENTER, ROOT, IMAGE_FILE, folder, *command], capture_output=True, text=True, timeout=120)


def files() -> Iterator[tuple[Path, os.stat_result]]:
    for folder, folders, names in os.walk(ROOT):
        for name in (*names, *folders):
            path = Path(folder, name)
            yield path, path.lstat()


@pytest.fixture(scope="module")
def image_relay(sshd: Sshd) -> Iterator[RelayProcess]:
    """The image's own command. Its configuration is root's, readable by the image's group, as Kubernetes mounts it."""
    settings = {
        "admin": {"listen": f"127.0.0.1:{free_port()}", "sessions_socket": "/run/relay/relay.sock"},
        "log": {"audit": "-"},
        "workers": 2,
    }
    relay = RelayProcess(sshd, config=settings)
    relay._program = (sys.executable, str(ENTER), str(ROOT), IMAGE_FILE, str(relay.folder), "--")
    try:
        for path in (relay.folder, *relay.folder.glob("keys/**"), *relay.folder.glob("*")):
            if path.name != "client":
                os.chown(path, 0, GID)
                path.chmod(0o750 if path.is_dir() else 0o440)
    except BaseException:
        relay.close()
        raise
    with relay:
        yield relay


def test_its_size_counts_every_file() -> None:
    seen: set[int] = set()
    by_folder: dict[str, int] = {}
    for path, status in files():
        if stat.S_ISREG(status.st_mode) and status.st_ino not in seen:
            seen.add(status.st_ino)
            top = "/".join(path.relative_to(ROOT).parts[:2])
            by_folder[top] = by_folder.get(top, 0) + status.st_size
    total = sum(by_folder.values())
    largest = sorted(by_folder.items(), key=lambda item: -item[1])[:6]
    print(f"\nimage: {total / 1e6:.1f} MB in {len(seen)} files; " + ", ".join(f"{name} {size / 1e6:.1f}" for name, size in largest))
    assert total < SIZE_LIMIT


def test_nothing_in_it_gains_privileges_installs_or_may_be_written() -> None:
    gains, writable, tools = [], [], []
    for path, status in files():
        name = "/" + str(path.relative_to(ROOT))
        if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_ISUID | stat.S_ISGID):
            gains.append(name)
        may_write = status.st_uid == UID or status.st_mode & stat.S_IWOTH or (status.st_gid == GID and status.st_mode & stat.S_IWGRP)
        if may_write and not stat.S_ISLNK(status.st_mode) and not name.startswith(("/dev/", "/proc/")):
            writable.append(name)
        if path.name in ("apt", "apt-get", "pip", "pip3", "perl", "gcc", "cmake") and path.parent.name in ("bin", "sbin"):
            tools.append(name)
    assert not gains
    assert sorted(writable) == ["/run/lock", "/run/relay", "/tmp", "/var/cache/relay", "/var/lib/relay", "/var/tmp"]
    assert not tools


def test_everything_that_the_relay_may_import_is_there(tmp_path: Path) -> None:
    done = inside(tmp_path, "/opt/relay/bin/python", "-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    authorities, library = done.stdout.splitlines()
    assert int(authorities) > 50
    assert "relay" in library, "the hardened libssh2"
    assert not list(ROOT.glob("opt/relay/lib/python*/site-packages/ssh2*")), "and no other one"


def test_clones_and_pushes_through_it(image_relay: RelayProcess, sshd: Sshd, tmp_path: Path) -> None:
    make_repo(sshd.root / "team" / "app.git")
    env = image_relay.git_env(tmp_path / "home")
    work = tmp_path / "work"
    git("clone", image_relay.url("team/app"), work, env=env)
    pushed = commit(work, env)
    git("push", "origin", "HEAD:refs/heads/pushed", cwd=work, env=env)
    assert refs(sshd.root / "team" / "app.git", env)["refs/heads/pushed"] == pushed
    assert pushed in git("ls-remote", image_relay.url("team/app"), env=env).stdout.decode()
    wait_until(lambda: '"git-receive-pack"' in image_relay.stdout_text(), message="the audit line of the push is on stdout")


def test_runs_read_only_and_as_nobody_in_particular(image_relay: RelayProcess) -> None:
    processes: list[psutil.Process] = image_relay.processes()
    assert len(processes) == 3
    assert {process.uids().effective for process in processes} == {UID}
    mounts = [line.split() for line in Path(f"/proc/{image_relay.pid}/mounts").read_text().splitlines()]
    options = {where: set(how.split(",")) for _, where, _, how, *_ in mounts}
    assert "ro" in options["/"]
    assert "ro" in options["/etc/relay"]


def test_its_health_check_follows_it(image_relay: RelayProcess) -> None:
    """The last test, because it stops the relay."""
    kind, *check = CONFIG["Healthcheck"]["Test"]
    assert kind == "CMD"
    healthy = inside(image_relay.folder, *check)
    assert (healthy.returncode, healthy.stdout) == (0, "live\n"), healthy.stderr
    ready = inside(image_relay.folder, "relay", "health", "-c", "/etc/relay/relay.toml")
    assert (ready.returncode, ready.stdout) == (0, "ready\n"), ready.stderr
    image_relay.stop()
    gone = inside(image_relay.folder, *check)
    assert gone.returncode == 1
    assert gone.stderr.startswith("no relay answers on ")
