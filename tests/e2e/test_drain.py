"""How a relay ends: sessions run on for drain_seconds, then the relay sends them a message; and workers whose supervisor was killed."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.e2e.helpers import alice, audited
from tests.support.faultproxy import ThreadedFaultProxy
from tests.support.gitrepo import fsck, git, make_big_repo, refs
from tests.support.processes import alive
from tests.support.relay_process import RelayProcess
from tests.support.sshclient import SshClient, run
from tests.support.sshd import Sshd
from tests.support.wait import wait_until, wait_until_async

RESTARTING = b"relay: the service is restarting, try again in a moment"
LONG = 3600.0  # seconds; a test that waits for it fails


@contextmanager
def session(client: SshClient, command: str, first: bytes = b"", limit: float = 60.0) -> Iterator[subprocess.Popen[bytes]]:
    """A running ssh that has sent `first`; killed at the end if it still runs."""
    with client.popen(command) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(first)
            process.stdin.flush()
            yield process
        finally:
            process.kill()
            process.communicate(timeout=limit)


def running(relay: RelayProcess, count: int) -> None:
    wait_until(lambda: relay.metric("relay_sessions_open") == count, message=f"{count} sessions run")


def refused(relay: RelayProcess) -> bool:
    """Whether no relay listens any more. A connection in the backlog of a closed socket is reset: that does not count as refused."""
    try:
        socket.create_connection(("127.0.0.1", relay.port), timeout=10).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_ends_by_itself_and_nobody_else_comes_in(number: int, sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"workers": 2, "limits": {"drain_seconds": LONG}})
    assert relay.get("/ready") == (200, "ready\n") or wait_until(lambda: relay.get("/ready")[0] == 200)
    with session(relay.ssh(), "git-receive-pack 'stub/checksum'", b"before ") as client:
        running(relay, 1)
        relay.signal(number)
        wait_until(lambda: relay.get("/ready") == (503, "draining\n"))
        wait_until(lambda: refused(relay), message="the listeners are closed")
        assert relay.get("/live")[0] == 200
        said, errors = client.communicate(b"and after", timeout=60)
    assert (client.returncode, errors) == (0, b"")
    assert said.split() == [hashlib.sha256(b"before and after").hexdigest().encode(), b"16"]
    assert relay.wait() == 0
    assert "stopped; 0 sessions were cut" in relay.log_text()
    (line,) = audited(relay, 0, event="session")
    assert (line["result"], line["bytes_in"]) == ("ok", 16)


def test_what_does_not_end_in_time_is_told_and_counted(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"workers": 1, "limits": {"drain_seconds": 0.5}})
    with ExitStack() as stack:
        hanging = stack.enter_context(session(relay.ssh(), "git-upload-pack 'stub/hang'"))
        pushing = stack.enter_context(session(relay.ssh(), "git-receive-pack 'stub/hang'", bytes(3 << 20)))  # more than the window
        talking = stack.enter_context(session(relay.ssh(), "git-receive-pack 'stub/half/300000'", b"x"))
        running(relay, 3)
        relay.signal(signal.SIGTERM)
        for client in (hanging, pushing, talking):
            out, errors = client.communicate(timeout=60)
            assert client.returncode == 255
            assert errors.count(RESTARTING) == 1, errors
            assert len(out) == (300_000 if client is talking else 0), "what the git host had said is delivered"
    assert relay.wait() == 1
    assert "stopped; 3 sessions were cut" in relay.log_text()
    lines = audited(relay, 0, 3, event="session")
    assert {(line["result"], line["reason"], line["exit_status"]) for line in lines} == {("relay", "drained", 255)}
    wait_until(lambda: not sshd.session_count(), message="nothing runs on the git host any more")


@pytest.mark.parametrize("stopped", [False, True])
def test_a_second_signal_ends_at_once(stopped: bool, sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"limits": {"drain_seconds": LONG}})
    with session(relay.ssh(), "git-upload-pack 'stub/hang'") as client:
        running(relay, 1)
        if stopped:  # a client that does not read the relay's message must not delay the end
            client.send_signal(signal.SIGSTOP)
        relay.signal(signal.SIGTERM)
        relay.wait_for_log("draining for at most 3600 s")
        relay.signal(signal.SIGTERM)
        assert relay.wait() == 1
        client.send_signal(signal.SIGCONT)
        _, errors = client.communicate(timeout=60)
        assert client.returncode == 255
        assert (b"The service is restarting" if stopped else RESTARTING) in errors  # ssh obeys a disconnect before it prints
    assert "stopped; 1 session was cut" in relay.log_text()


def test_a_second_signal_right_behind_the_first_ends_at_once(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    """A worker receives both at once, before it has begun to drain."""
    relay = make_relay(sshd, config={"workers": 1, "limits": {"drain_seconds": LONG}})
    with session(relay.ssh(), "git-upload-pack 'stub/hang'") as client:
        running(relay, 1)
        (worker,) = relay.processes()[1:]
        worker.suspend()
        relay.signal(signal.SIGTERM)
        relay.wait_for_log("draining for at most 3600 s")
        relay.signal(signal.SIGTERM)
        relay.wait_for_log("stopping at once")
        worker.resume()
        _, errors = client.communicate(timeout=60)
        assert client.returncode == 255
        assert RESTARTING in errors
    assert relay.wait() == 1
    assert "ended, 1 session was cut" in relay.log_text(), "it was not killed"


def test_a_connection_without_a_session_is_told_and_does_not_hold_up_the_end(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"limits": {"drain_seconds": LONG}})
    with relay.ssh().popen(None, "-N", "-v") as client:
        wait_until(lambda: relay.metric("relay_auth_successes_total") == 1)
        relay.signal(signal.SIGTERM)
        _, errors = client.communicate(timeout=60)
        assert b"The service is restarting" in errors
    assert relay.wait() == 0


async def test_a_client_that_is_about_to_open_its_session_may_do_so(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"limits": {"drain_seconds": LONG}})
    async with alice(relay) as connection:
        relay.signal(signal.SIGTERM)
        await wait_until_async(lambda: "draining for at most" in relay.log_text())
        await asyncio.sleep(0.5)  # a client on a slow network
        result = await run(connection, "git-upload-pack 'stub/emit/1000/3'")
        assert (len(result.stdout), result.exit_status) == (1000, 3)
    assert relay.wait() == 0


def test_a_client_that_is_still_logging_in_may_go_on(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"limits": {"drain_seconds": LONG}})
    with ThreadedFaultProxy("127.0.0.1", relay.port) as proxy:
        proxy.do(lambda p: p.at(500, "stall", "up"))  # in the middle of the key exchange
        relay.known_hosts.write_text(f"[127.0.0.1]:{proxy.port} {relay.host_key_line}\n")
        client = SshClient(proxy.port, relay.key.private, relay.known_hosts, relay.user)
        with session(client, "git-upload-pack 'stub/emit/1000'") as process:
            wait_until(lambda: proxy.do(lambda p: p.bytes_up) == 500)
            wait_until(lambda: relay.metric("relay_connections_open") == 1)
            relay.signal(signal.SIGTERM)
            wait_until(lambda: refused(relay))
            proxy.do(lambda p: p.heal())
            out, errors = process.communicate(timeout=60)
        assert (process.returncode, len(out), errors) == (0, 1000, b"")
    assert relay.wait() == 0


def test_one_that_never_logs_in_is_gone_with_its_grace(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"limits": {"drain_seconds": LONG, "login_grace_seconds": 1}})
    with socket.create_connection(("127.0.0.1", relay.port)) as stranger:
        assert stranger.recv(100).startswith(b"SSH-2.0-")
        relay.signal(signal.SIGTERM)
        assert relay.wait() == 0


def test_a_push_under_way_arrives_whole(sshd: Sshd, make_relay: Callable[..., RelayProcess], tmp_path: Path) -> None:
    relay = make_relay(sshd, config={"limits": {"drain_seconds": LONG}})
    env = relay.git_env(tmp_path / "home")
    source = make_big_repo(tmp_path / "source.git", 20)
    target = sshd.root / "team" / "drained.git"
    target.parent.mkdir(exist_ok=True)
    git("init", "-q", "--bare", target, env=env)
    with subprocess.Popen(
        ["git", "push", "-q", relay.url("team/drained"), "main"], cwd=source, env=env, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as push:
        wait_until(lambda: relay.metric("relay_bytes_total", direction="in") > 0)
        relay.signal(signal.SIGTERM)
        _, errors = push.communicate(timeout=60)
        assert push.returncode == 0, errors
    assert relay.wait() == 0
    assert refs(target, env) == refs(source, env)
    fsck(target, env)


def test_workers_whose_supervisor_was_killed_drain_and_go(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"workers": 2, "limits": {"drain_seconds": LONG}})
    with session(relay.ssh(), "git-receive-pack 'stub/checksum'", b"before ") as client:
        running(relay, 1)
        processes = relay.processes()
        relay.signal(signal.SIGKILL)
        assert relay.wait() == -signal.SIGKILL
        wait_until(lambda: refused(relay), message="nobody listens any more")
        wait_until(lambda: sum(map(alive, processes)) == 1, message="the worker without a session is gone")
        said, _ = client.communicate(b"and after", timeout=60)
        assert client.returncode == 0
        assert said.split()[0] == hashlib.sha256(b"before and after").hexdigest().encode()
    wait_until(lambda: not any(map(alive, processes)), message="the worker with a session went after it")
