"""OpenSSH's ControlMaster over reloads: masters that are never idle move to the new workers, and no command notices.

`python -m tests.e2e.test_masters 2000` runs 2000 `git ls-remote`, and exits 1 when one failed.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import asyncssh
import pytest

from tests.e2e.helpers import alice, audited
from tests.e2e.test_reload import LIMITS, Load, old_ones_are_gone, reload, steady, workers
from tests.support.gitrepo import git, make_repo, ssh_command
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

MASTERS = 4
THREADS = 4  # threads on each master, so that no master is without a session for long
DRAIN_SECONDS = 3
CONFIG = {"workers": 2, "limits": LIMITS | {"drain_seconds": DRAIN_SECONDS}}
CAT = "git-upload-pack 'stub/cat'"


@contextmanager
def persistent(relay: RelayProcess) -> Iterator[Callable[[int], str]]:
    """GIT_SSH_COMMAND with ControlMaster auto and ControlPersist, one for each of several masters."""
    folder = Path(tempfile.mkdtemp(prefix="ssh-"))

    def command(number: int) -> str:
        options = (f"ControlPath={folder / str(number)}", "ControlMaster=auto", "ControlPersist=60")
        return " ".join(ssh_command(relay.key.private, relay.known_hosts, *options)).replace('"', "")

    try:
        yield command
    finally:
        for path in folder.iterdir():
            subprocess.run(["ssh", "-o", f"ControlPath={path}", "-O", "exit", "relay"], capture_output=True, timeout=30, check=False)
        shutil.rmtree(folder)


def through_masters(relay: RelayProcess, count: int, home: Path) -> list[Load]:
    """Runs at least so many `git ls-remote` during one reload after another; returns the results of each thread."""
    env = relay.git_env(home)
    expected = git("ls-remote", relay.url("team/app"), env=env).stdout
    with persistent(relay) as command:

        def through(number: int) -> Callable[[], str | None]:
            def once() -> str | None:
                done = subprocess.run(
                    ["git", "ls-remote", relay.url("team/app")],
                    env=env | {"GIT_SSH_COMMAND": command(number)},
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=120,
                    check=False,
                )
                return None if done.returncode == 0 and done.stdout == expected else f"{done.returncode} {done.stderr!r}"

            return once

        with ExitStack() as stack:
            loads = [stack.enter_context(steady(through(number), THREADS)) for number in range(MASTERS)]
            while sum(load.done for load in loads) < count:
                reload(relay)
                old_ones_are_gone(relay, 2)
        return loads


def test_no_command_fails_through_masters_that_are_never_idle(sshd: Sshd, make_relay: Callable[..., RelayProcess], tmp_path: Path) -> None:
    relay = make_relay(sshd, config=CONFIG)
    make_repo(sshd.root / "team" / "app.git")
    loads = through_masters(relay, 150, tmp_path / "home")
    assert [failure for load in loads for failure in load.failures] == []
    assert relay.metric("relay_reloads_total") > 0
    assert "the time is over" not in relay.log_text()


def test_a_master_with_a_long_session_keeps_it_and_other_commands_dial_afresh(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"workers": 1, "limits": LIMITS})
    (old,) = workers(relay)
    with relay.ssh().control_master() as ssh, ssh.popen(CAT) as long:
        wait_until(lambda: relay.metric("relay_sessions_open") == 1)
        reload(relay)
        wait_until(
            lambda: relay.metric("relay_channels_refused_total") > 0 or ssh.run(CAT, b"x").stdout != b"x", message="a channel is refused"
        )
        done = ssh.run(CAT, b"anew")
        assert (done.returncode, done.stdout) == (0, b"anew")
        assert long.poll() is None and old in workers(relay)
        out, errors = long.communicate(b"carried to its end", timeout=60)
        assert (long.returncode, out, errors) == (0, b"carried to its end", b"")
        old_ones_are_gone(relay, 1)  # the connection ends without waiting for drain_seconds
        assert ssh.run(CAT, b"without a master").stdout == b"without a master"
    lines = audited(relay, 0, 3, event="session")
    assert {(line["result"], line["exit_status"]) for line in lines} == {("ok", 0)}


async def test_a_second_channel_is_refused_with_a_reason_and_the_first_goes_on(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"workers": 1, "limits": LIMITS})
    async with alice(relay) as connection:
        first = await connection.create_process(CAT, encoding=None)
        relay.signal(signal.SIGTERM)
        await wait_until_async(lambda: "draining for at most" in relay.log_text())
        await wait_until_async(lambda: relay.get("/ready")[0] == 503)
        with pytest.raises(asyncssh.ChannelOpenError, match="The service is restarting, connect again"):
            while True:  # the supervisor answers 503 before the worker has read that it is to drain: until then channels are opened
                early = await connection.create_process(CAT, encoding=None)
                early.stdin.write_eof()
                await early.wait_closed()
        first.stdin.write(b"to its end")
        first.stdin.write_eof()
        assert await first.stdout.read() == b"to its end"
        await first.wait_closed()
        assert first.exit_status == 0
        with pytest.raises((asyncssh.DisconnectError, asyncssh.ChannelOpenError)):  # unanswered: the relay ends the connection
            await run(connection, CAT)
        await connection.wait_closed()
    assert relay.wait() == 0


def main(count: int) -> int:
    with Sshd() as sshd, RelayProcess(sshd, config=CONFIG) as relay, tempfile.TemporaryDirectory() as home:
        make_repo(sshd.root / "team" / "app.git")
        loads = through_masters(relay, count, Path(home))
        failures = [failure for load in loads for failure in load.failures]
        reloads = relay.metric("relay_reloads_total")
        print(f"{sum(load.done for load in loads)} times ls-remote in {reloads:g} reloads, {len(failures)} failed")
        print(*failures, sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
