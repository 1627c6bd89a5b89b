"""The demo's git host, with the real git: it serves the repositories in its folder to one key, and ends the processes it started."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import psutil
import pytest

from relay.demo.git_host import GitHost
from tests.support.gitrepo import commit, git, make_repo, rev_parse
from tests.support.keys import Key, make_key
from tests.support.sshclient import connect, run
from tests.support.wait import wait_until_async


@pytest.fixture
def trusted(tmp_path: Path) -> Key:
    return make_key(tmp_path / "keys", "relay")


@pytest.fixture
async def host(tmp_path: Path, trusted: Key) -> AsyncIterator[GitHost]:
    made = GitHost(tmp_path / "repositories", trusted.load())
    make_repo(tmp_path / "repositories/team/app.git")
    await made.start()
    yield made
    await made.close()


def line_of(host: GitHost) -> str:
    return " ".join(host.host_key.export_public_key("openssh").decode().split()[:2])


async def test_the_real_git_clones_and_pushes(host: GitHost, trusted: Key, tmp_path: Path, git_env: dict[str, str]) -> None:
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{host.port} {line_of(host)}\n")
    ssh = f"ssh -F /dev/null -i {shlex.quote(str(trusted.private))} -o UserKnownHostsFile={shlex.quote(str(known_hosts))} -o BatchMode=yes"
    env = {**git_env, "GIT_SSH_COMMAND": ssh}
    work, url = tmp_path / "work", f"ssh://git@127.0.0.1:{host.port}/team/app.git"
    await asyncio.to_thread(git, "clone", "-q", url, work, env=env)
    pushed = await asyncio.to_thread(commit, work, env)
    await asyncio.to_thread(git, "push", "-q", "origin", "HEAD", cwd=work, env=env)
    assert rev_parse(tmp_path / "repositories/team/app.git", env) == pushed


async def test_another_key_is_refused(host: GitHost, key: Key) -> None:
    with pytest.raises(asyncssh.PermissionDenied):
        async with connect(host.port, [key], line_of(host), user="git"):
            pass


@pytest.mark.parametrize("command", ["ls /", "git-upload-pack '../outside.git'", "git-upload-pack", "git-upload-pack 'unclosed", None])
async def test_nothing_but_git_within_its_folder(host: GitHost, trusted: Key, command: str | None) -> None:
    async with connect(host.port, [trusted], line_of(host), user="git") as connection:
        done = await run(connection, command)
    assert (done.exit_status, done.stdout, done.stderr) == (128, b"", b"demo git host: git only\n")


async def test_git_is_killed_when_its_client_disconnects(host: GitHost, trusted: Key) -> None:
    def children() -> list[psutil.Process]:
        return [child for child in psutil.Process(os.getpid()).children() if child.status() != psutil.STATUS_ZOMBIE]

    before = len(children())
    async with connect(host.port, [trusted], line_of(host), user="git") as connection:
        process = await connection.create_process("git-upload-pack '/team/app.git'", encoding=None)
        assert await process.stdout.read(4)  # git has sent its first output and waits for the client's wants
        assert len(children()) == before + 1
    await wait_until_async(lambda: len(children()) == before)
