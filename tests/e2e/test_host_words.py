"""Real git, git-shell and shells that refuse: one answer for every missing repository, and no path of the git host in any."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable

import pytest

from relay.errors import Denied, HostLacks, HostRefused
from tests.e2e.helpers import audited
from tests.support.gitrepo import make_repo
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd

LOCALE = "bash: warning: setlocale: LC_ALL: cannot change locale (de_DE.UTF-8)"
SERVICES = ("git-upload-pack", "git-receive-pack", "git-upload-archive")


def forced(make_sshd: Callable[..., Sshd], first: str) -> Sshd:
    """A git host whose shell runs this before git."""
    host = make_sshd()
    host.configure(f"ForceCommand {first}; exec /bin/sh {shlex.quote(str(host.folder / 'state' / 'services.sh'))}")
    host.restart()
    return host


def refused(relay: RelayProcess, line: str, stderr: str, status: int, reason: str, said: str) -> None:
    since = len(relay.audit_lines())
    done = relay.ssh().run(line)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (status, b"", stderr + "\n")
    [audit] = [one for one in audited(relay, since) if one["event"] in ("session", "command_rejected")]
    assert audit["reason"] == reason
    assert said in audit["detail"] and "/" in audit["detail"], "whoever runs the relay reads it as it was said"


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("where", ["", ">&2"], ids=["stdout", "stderr"])
def test_what_is_not_there_behind_a_shell_that_warns(
    make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd], service: str, where: str
) -> None:
    relay = make_relay(forced(make_sshd, f"echo {shlex.quote(LOCALE)} {where}"))
    refused(relay, f"{service} 'team/nowhere'", Denied.message, 128, "denied", "nowhere.git")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a repository to another user")
def test_a_repository_of_another_user(make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd]) -> None:
    host = forced(make_sshd, "export HOME=/nonexistent")
    repository = make_repo(host.root / "team/app.git")
    for path in (repository, *repository.rglob("*")):
        shutil.chown(path, "nobody")
    relay = make_relay(host)
    refused(relay, "git-upload-pack 'team/app'", HostRefused.message, 128, "host_refused", "dubious ownership")


@pytest.mark.parametrize(
    "script",
    [
        '#!/bin/sh\nexec git-shell -c "$SSH_ORIGINAL_COMMAND"\n',
        "#!/bin/sh\nexec git-lfs-transfer-is-not-here\n",
        '#!/bin/sh\necho "bash: line 1: git-lfs-transfer: command not found: $1" >&2\nexit 127\n',
    ],
    ids=["git-shell", "sh", "bash"],
)
def test_a_git_host_without_lfs(make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd], script: str) -> None:
    host = make_sshd()
    host.lfs_script("git-lfs-transfer", script)
    refused(make_relay(host), "git-lfs-transfer team/app.git download", HostLacks.message, 128, "host_lacks", "git-lfs-transfer")


@pytest.mark.parametrize("status", [0, 3])
def test_other_words_arrive_without_paths(make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd], status: int) -> None:
    host = make_sshd()
    host.lfs_script("git-lfs-authenticate", f'#!/bin/sh\necho "cannot read $1 in {host.root}" >&2\necho done\nexit {status}\n')
    done = make_relay(host).ssh().run("git-lfs-authenticate team/app.git download")
    assert (done.returncode, done.stdout, done.stderr) == (status, b"done\n", b"cannot read team/app in (path)\n")


def test_a_shells_lines_on_stdout_arrive_without_paths_whatever_the_service(
    make_relay: Callable[..., RelayProcess], make_sshd: Callable[..., Sshd]
) -> None:
    host = make_sshd()
    host.lfs_script("git-lfs-authenticate", f'#!/bin/sh\necho "{host.root}: oops"\necho \'{{"href": "/srv"}}\'\n')
    done = make_relay(host).ssh().run("git-lfs-authenticate team/app.git download")
    assert done.stdout == b'(path): oops\n{"href": "/srv"}\n'
