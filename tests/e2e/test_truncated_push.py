"""A real push whose client dies during the pack: the git host's ref does not move, its repository is intact, the next push succeeds."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.helpers import audited
from tests.support.faultproxy import FaultProxy
from tests.support.gitrepo import commit, fsck, git, make_repo, refs
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until_async

PUSHED_BYTES = 12_000_000  # half of it is more than the window that the relay grants: a client killed there is killed before the end
MAIN = "refs/heads/main"


@pytest.mark.parametrize(("percent", "way"), [(1, "killed"), (50, "killed"), (1, "machine"), (50, "machine"), (99, "machine")])
async def test_a_push_whose_client_dies_moves_nothing(percent: int, way: str, sshd: Sshd, relay: RelayProcess, tmp_path: Path) -> None:
    """`killed`: the kernel sends the rest of its buffer, then FIN; `machine`: no further byte, then RST."""
    repository = f"{way}/at-{percent}"
    upstream = make_repo(sshd.root / f"{repository}.git")
    make_repo(sshd.root / f"rehearsal/{repository}.git")
    async with FaultProxy("127.0.0.1", relay.port) as link:
        env = relay.git_env(tmp_path / "home")
        with relay.known_hosts.open("a") as known:
            known.write(f"[127.0.0.1]:{link.port} {relay.host_key_line}\n")
        work = tmp_path / "work"
        git("clone", "-q", upstream, work, env=env)
        before = refs(upstream, env)[MAIN]
        after = commit(work, env, "large", os.urandom(PUSHED_BYTES))
        url = f"ssh://{relay.user}@127.0.0.1:{link.port}"
        assert await _ended(["git", "push", "-q", f"{url}/rehearsal/{repository}", "+HEAD:main"], env, work) == 0
        whole = link.bytes_up
        assert whole > PUSHED_BYTES

        since = len(relay.audit_lines())
        link.at(whole * percent // 100, "stall", "up", scope="new")
        process = await asyncio.create_subprocess_exec(
            *["git", "push", "-q", f"{url}/{repository}", "HEAD:main"], env=env, cwd=work, start_new_session=True, stderr=subprocess.DEVNULL
        )
        await wait_until_async(lambda: any(one.up is not None and one.up.faults.stalled for one in link.links), 60, "the push is so far")
        os.killpg(process.pid, signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
        if way == "machine":
            link.reset()
        link.heal()

        [line] = await asyncio.to_thread(audited, relay, since, 1, event="session")
        assert (line["result"], line["reason"], line["service"]) == ("client", "client_gone", "git-receive-pack")
        await wait_until_async(lambda: sshd.signal_commands(0) == 0, message="the git host's receive-pack has ended")
        assert refs(upstream, env) == {MAIN: before}
        fsck(upstream, env)

        assert await _ended(["git", "push", "-q", f"{url}/{repository}", "HEAD:main"], env, work) == 0
        assert refs(upstream, env) == {MAIN: after}
        fsck(upstream, env)


async def _ended(arguments: list[str], env: dict[str, str], work: Path) -> int:
    process = await asyncio.create_subprocess_exec(*arguments, env=env, cwd=work)
    async with asyncio.timeout(120):
        return await process.wait()
