"""Bare repositories made fast, and the real git in an environment without any setting of this machine.

make_repo(sshd.root / "team/app.git", commits=3)
env = git_env(home, key=sshd.key.private, known_hosts=sshd.known_hosts)
git("clone", sshd.url("team/app.git"), "work", cwd=home, env=env)
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.packwriter import random_blocks, write_blob_pack

GIT_TIMEOUT = 120.0  # seconds
BLOB_BYTES = 1 << 20
FIRST_COMMIT_TIME = 1_700_000_000

_IDENTITY = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "Test"), ("EMAIL", "test@example.com"), ("DATE", f"{FIRST_COMMIT_TIME} +0000"))
}

GIT_CONFIG = """\
[init]
    defaultBranch = main
[gc]
    auto = 0
[maintenance]
    auto = false
[core]
    compression = 0
    bigFileThreshold = 512k
[pack]
    compression = 0
[protocol "file"]
    allow = always
[safe]
    directory = *
[advice]
    detachedHead = false
"""


class GitError(AssertionError):
    """git exited with a status other than 0; the text has its output."""


def ssh_command(key: Path, known_hosts: Path, *options: str) -> list[str]:
    """The real ssh, hermetic: one key, one known_hosts, no configuration, agent or prompt; `options` are `-o` values."""
    settings = [
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        f'UserKnownHostsFile="{known_hosts}"',
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=yes",
        "BatchMode=yes",
        "ConnectTimeout=30",
    ]
    flags = [flag for setting in [*options, *settings] for flag in ("-o", setting)]  # ssh takes the first value given
    return ["ssh", "-F", "/dev/null", "-i", str(key), *flags]


def git_env(
    home: Path,
    *,
    key: Path | None = None,
    known_hosts: Path | None = None,
    ssh_options: tuple[str, ...] = (),
    protocol: int | None = None,
) -> dict[str, str]:
    """A whole environment for git: `home` is made and gets a .gitconfig; `protocol` is git's wire version 0, 1 or 2.

    With `key` and `known_hosts` GIT_SSH_COMMAND is the hermetic ssh; without, git can't reach any network.
    """
    home.mkdir(parents=True, exist_ok=True)
    config = GIT_CONFIG
    if protocol is not None:
        config = config.replace('[protocol "file"]', f'[protocol]\n    version = {protocol}\n[protocol "file"]')
    (home / ".gitconfig").write_text(config)
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "false",
        "GIT_SSH_COMMAND": "false",
        "LC_ALL": "C",
        **_IDENTITY,
    }
    if key is not None and known_hosts is not None:
        env["GIT_SSH_COMMAND"] = shlex.join(ssh_command(key, known_hosts, *ssh_options))
    return env


def git(
    *args: str | Path,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stdin: bytes = b"",
    check: bool = True,
    timeout: float = GIT_TIMEOUT,
) -> subprocess.CompletedProcess[bytes]:
    """Run the real git; with `check` raises GitError unless it ends with status 0. `cwd` is by default env's HOME."""
    command = ["git", *map(str, args)]
    done = subprocess.run(command, env=dict(env), cwd=cwd or env["HOME"], input=stdin, capture_output=True, timeout=timeout, check=False)
    if check and done.returncode != 0:
        said = (done.stdout[-2000:] + done.stderr[-4000:]).decode(errors="replace")
        raise GitError(f"{shlex.join(command)} ended with {done.returncode}:\n{said}")
    return done


def make_repo(path: Path, commits: int = 3, branch: str = "main") -> Path:
    """A bare repository with `commits` commits, each of which changes README and adds a file; returns `path`."""
    _init(path, branch)
    _fast_import(path, _commits(branch, commits))
    return path


def make_big_repo(path: Path, megabytes: int, branch: str = "main") -> Path:
    """A bare repository whose one commit holds `megabytes` (at most 2,000) incompressible blobs of 1 MiB."""
    _init(path, branch)
    blobs = write_blob_pack(path, random_blocks(megabytes, BLOB_BYTES), megabytes)
    files = "".join(f"M 100644 {blob} blob-{number:06d}\n" for number, blob in enumerate(blobs))
    _fast_import(path, _commit_head(branch, 0) + files.encode())
    return path


def commit(work: Path, env: Mapping[str, str], name: str = "new", data: bytes | None = None) -> str:
    """Commit one file into a working copy (200 random bytes by default); returns the commit's id."""
    (work / name).write_bytes(os.urandom(200) if data is None else data)
    git("add", name, cwd=work, env=env)
    git("commit", "-q", "-m", f"add {name}", cwd=work, env=env)
    return rev_parse(work, env)


def fsck(path: Path, env: Mapping[str, str]) -> None:
    """Raises GitError unless the repository is intact (`git fsck --full --strict`)."""
    git("fsck", "--full", "--strict", "--no-dangling", cwd=path, env=env)


def rev_list(path: Path, env: Mapping[str, str], *args: str) -> list[str]:
    """Every object reachable from every ref, sorted: equal lists mean equal repositories."""
    return sorted(git("rev-list", "--objects", *(args or ("--all",)), cwd=path, env=env).stdout.decode().splitlines())


def refs(path: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Ref name to object id."""
    lines = git("for-each-ref", "--format=%(refname) %(objectname)", cwd=path, env=env).stdout.decode().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def rev_parse(path: Path, env: Mapping[str, str], revision: str = "HEAD") -> str:
    return git("rev-parse", "--verify", revision, cwd=path, env=env).stdout.decode().strip()


def _init(path: Path, branch: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    git("init", "-q", "--bare", f"--initial-branch={branch}", path, env=_local_env(path))
    with (path / "config").open("a") as file:
        file.write("[core]\n\tcompression = 0\n\tbigFileThreshold = 512k\n[pack]\n\tcompression = 0\n[gc]\n\tauto = 0\n")


def _fast_import(path: Path, stream: bytes) -> None:
    git("fast-import", "--quiet", cwd=path, env=_local_env(path), stdin=stream)


def _local_env(path: Path) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(path.parent), "GIT_CONFIG_NOSYSTEM": "1", **_IDENTITY}


def _commits(branch: str, count: int) -> bytes:
    parts = []
    for number in range(count):
        readme, name, data = f"commit {number}\n", f"file-{number}", os.urandom(200).hex()
        files = f"M 100644 inline README\ndata {len(readme)}\n{readme}\nM 100644 inline {name}\ndata {len(data)}\n{data}\n"
        parts.append(_commit_head(branch, number) + files.encode())
    return b"".join(parts)


def _commit_head(branch: str, number: int) -> bytes:
    message = f"commit {number}"
    head = f"commit refs/heads/{branch}\ncommitter Test <test@example.com> {FIRST_COMMIT_TIME + number} +0000\n"
    return f"{head}data {len(message)}\n{message}\n".encode()
