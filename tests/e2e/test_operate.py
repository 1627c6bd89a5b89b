"""`relay upstreams` with two workers and real clients at work: pause, resume and drain, also over reloads and killed workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.commands.test_upstreams import address, ask, look
from tests.e2e.helpers import audited
from tests.e2e.test_reload import old_ones_are_gone, reload, workers
from tests.support.gitrepo import fsck, git, make_repo
from tests.support.relay_process import RelayProcess, upstream
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]
CLIENTS = 6  # of a crowd: enough that SO_REUSEPORT mostly spreads them over both workers
WAIT = {"wait_seconds": 600, "notice_seconds": 0.2}


@pytest.fixture
def relay(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> RelayProcess:
    return make_relay(sshd, config={"workers": 2, "limits": {"drain_seconds": 600}, "upstreams": {"main": WAIT}})


@contextmanager
def running(relay: RelayProcess) -> Iterator[subprocess.Popen[bytes]]:
    """A session that has a connection to the git host and keeps it until its input ends, or for ever."""
    with relay.ssh().popen("git-receive-pack 'stub/half/100000'") as client:
        assert client.stdout is not None
        assert len(client.stdout.read(100_000)) == 100_000
        try:
            yield client
        finally:
            client.kill()
            client.communicate()


@contextmanager
def pausing(relay: RelayProcess, *, wait: str = "600") -> Iterator[subprocess.Popen[str]]:
    """A running `relay upstreams pause main --wait`."""
    command = [sys.executable, "-m", "relay", "upstreams", "pause", "main", "--wait", wait, "-c", str(relay.config_file)]
    # asyncio's debug mode tells on stderr of each step that took long
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONASYNCIODEBUG": "", "PYTHONDEVMODE": ""}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env, cwd="/") as process:
        try:
            yield process
        finally:
            process.kill()


def main(relay: RelayProcess) -> dict[str, Any]:
    return look(relay)["main"]


def paused(relay: RelayProcess) -> bool:
    return bool(main(relay)["states"] == ["paused"])


def crowd(relay: RelayProcess, stack: ExitStack, count: int = CLIENTS) -> list[subprocess.Popen[bytes]]:
    """Clients that all wait for the git host."""
    before = main(relay)["waiting"]
    clients = [stack.enter_context(relay.ssh().popen("git-upload-pack 'stub/emit/1000/37'")) for _ in range(count)]
    wait_until(lambda: main(relay)["waiting"] == before + count, message="all of them wait")
    return clients


def are_served(clients: list[subprocess.Popen[bytes]]) -> bool:
    ends = [(client.communicate(timeout=120)[0], client.returncode) for client in clients]
    return all((len(stdout), status) == (1000, 37) for stdout, status in ends)


def test_pause_waits_for_sessions_of_draining_workers_too(relay: RelayProcess) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(running(relay))
        process = stack.enter_context(pausing(relay))
        wait_until(lambda: paused(relay))
        reload(relay)  # the session stays with a worker that drains
        assert main(relay)["leased"] == 1 and paused(relay)
        assert process.poll() is None, "it still waits"
        client.kill()
        said, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
        assert said == "upstream main is paused\nno connection to it is leased; 0 sessions wait\n"
    old_ones_are_gone(relay, 2)
    assert paused(relay), "until somebody resumes it"
    assert ask(relay, "resume", "main").returncode == 0


def test_pause_gives_up_when_the_time_is_over_and_the_session_goes_on(relay: RelayProcess) -> None:
    with running(relay) as client, pausing(relay, wait="0.5") as process:
        said, errors = process.communicate(timeout=120)
        assert (process.returncode, said) == (1, "upstream main is paused\n")
        assert errors == "after 0.5 s 1 connection is still leased; upstream main stays paused, `relay sessions` lists who is on it\n"
        assert paused(relay) and client.poll() is None


def test_a_pause_that_somebody_ends_is_told_to_who_waits(relay: RelayProcess) -> None:
    with running(relay), pausing(relay) as process:
        wait_until(lambda: paused(relay))
        assert ask(relay, "resume", "main").returncode == 0
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (1, "upstream main was resumed, or is not configured any more\n")


def test_ctrl_c_leaves_it_paused(relay: RelayProcess) -> None:
    with running(relay), pausing(relay) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "upstream main is paused\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (130, "upstream main stays paused\n")
        assert paused(relay)


def test_who_comes_while_it_is_paused_waits_and_is_served_by_all_workers_once_it_is_resumed(relay: RelayProcess, sshd: Sshd) -> None:
    """With a reload and a killed worker in between."""
    with ExitStack() as stack:
        assert ask(relay, "pause", "main", "--wait", "60").returncode == 0
        logins = len(sshd.commands())
        early = crowd(relay, stack)
        reload(relay)  # the old workers keep the waiting sessions
        assert main(relay)["waiting"] == CLIENTS
        late = crowd(relay, stack)
        assert [client.poll() for client in (*early, *late)] == [None] * (2 * CLIENTS)
        assert len(sshd.commands()) == logins, "nobody got to the git host"
        assert relay.get("/ready") == (200, "ready; paused: main\n")
        assert ask(relay, "resume", "main").returncode == 0
        assert are_served(early) and are_served(late)
    old_ones_are_gone(relay, 2)


def test_a_worker_that_replaces_a_killed_one_is_paused_from_its_first_moment(relay: RelayProcess) -> None:
    with ExitStack() as stack:
        assert ask(relay, "pause", "main", "--wait", "60").returncode == 0
        dials = relay.metric("relay_upstream_dials_total")
        before = {worker.pid for worker in workers(relay)}
        for worker in workers(relay):
            worker.kill()
        wait_until(lambda: len({worker.pid for worker in workers(relay)} - before) == 2)
        wait_until(lambda: relay.metric("relay_workers") == 2, message="both are ready")
        clients = crowd(relay, stack)
        assert main(relay)["idle"] == main(relay)["leased"] == 0
        assert relay.metric("relay_upstream_dials_total") == dials
        assert ask(relay, "resume", "main").returncode == 0
        assert are_served(clients)


def test_a_reload_without_the_upstream_drops_its_pause(sshd: Sshd, relay: RelayProcess) -> None:
    relay.write_config({"upstreams": {"other": upstream(sshd)}})
    reload(relay)
    for name in ("main", "other"):
        assert ask(relay, "pause", name).returncode == 0
    config = relay.config
    del config["upstreams"]["other"]
    relay.write_config()
    reload(relay)
    relay.wait_for_log("the reload dropped an operator's switch: upstream other is not configured any more; it is no longer paused")
    assert paused(relay) and set(look(relay)) == {"main"}
    assert relay.get("/ready") == (200, "ready; paused: main\n")
    relay.write_config({"upstreams": {"other": upstream(sshd)}})
    reload(relay)
    assert look(relay)["other"]["states"] != ["paused"]


def test_a_drained_address_gets_no_new_sessions_and_loses_none(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    one, two = address(sshd), f"localhost:{sshd.port}"
    relay = make_relay(sshd, config={"workers": 2, "upstreams": {"main": {"addresses": [one, two]}}})
    with running(relay) as client:  # policy `first`
        assert main(relay)["addresses"][0]["leased"] == 1
        assert ask(relay, "drain", "main", one).returncode == 0
        since = len(relay.audit_lines())
        for _ in range(CLIENTS):
            assert relay.ssh().run("git-upload-pack 'stub/exit/0'").returncode == 0
        assert {line["host"] for line in audited(relay, since, CLIENTS, event="session")} == {two}
        assert client.poll() is None
    assert ask(relay, "ready", "main", one).returncode == 0
    since = len(relay.audit_lines())
    assert relay.ssh().run("git-upload-pack 'stub/exit/0'").returncode == 0
    assert audited(relay, since, event="session")[0]["host"] == one


def test_a_git_host_is_restarted_and_nobody_notices(
    make_sshd: Callable[..., Sshd], make_relay: Callable[..., RelayProcess], tmp_path: Path
) -> None:
    """docs/upstreams.md, step by step: pause --wait, restart, resume, while clones go on."""
    sshd = make_sshd()
    bare = make_repo(sshd.root / "team/app.git", commits=20)
    relay = make_relay(sshd, config={"workers": 2, "upstreams": {"main": WAIT}})
    env = relay.git_env(tmp_path / "home", protocol=2)
    with ExitStack() as stack:
        first = ask(relay, "pause", "main", "--wait", "60")
        assert first.returncode == 0, first.stderr
        errors = [tmp_path / f"errors-{number}" for number in range(CLIENTS)]
        clones = [
            stack.enter_context(
                subprocess.Popen(
                    ["git", "clone", "-q", relay.url("team/app"), str(tmp_path / f"{number}")],
                    env=env,
                    stderr=stack.enter_context(errors[number].open("wb")),
                )
            )
            for number in range(CLIENTS)
        ]
        wait_until(lambda: main(relay)["waiting"] == CLIENTS)
        wait_until(lambda: all("closed for maintenance" in one.read_text() for one in errors), message="each reads why it waits")
        sshd.stop()
        sshd.start()
        assert ask(relay, "resume", "main").returncode == 0
        assert [clone.wait(120) for clone in clones] == [0] * CLIENTS, [one.read_text() for one in errors]
    for number in range(CLIENTS):
        fsck(tmp_path / str(number), env)
    assert git("rev-parse", "HEAD", cwd=tmp_path / "0", env=env).stdout == git("rev-parse", "HEAD", cwd=bare, env=env).stdout
    lines = [line for line in relay.audit_lines() if line["event"] == "session"]
    assert {line["result"] for line in lines} == {"ok"}


def test_only_the_relays_user_may_switch(relay: RelayProcess) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    from tests.support.machine import python_for

    relay.folder.chmod(0o755)  # the folder allows everyone, so that only the socket can refuse
    relay.config_file.chmod(0o644)
    program = f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}; from relay.cli import main; sys.exit(main(sys.argv[1:]))"
    command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", python_for("nobody"), "-I", "-c", program]
    done = subprocess.run(
        [*command, "upstreams", "pause", "main", "-c", str(relay.config_file)], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 1 and "only the user that runs the relay may ask it" in done.stderr, done.stderr
    assert not paused(relay)
    assert psutil.Process(relay.pid).is_running()
