"""SIGHUP and dying workers, with real clients at work: refused reloads, changed settings, and no lost connection."""

from __future__ import annotations

import hashlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil
import pytest

from tests.e2e.helpers import audited
from tests.support.gitrepo import git, make_big_repo, make_repo, rev_list
from tests.support.keys import make_key
from tests.support.pattern import stub_bytes
from tests.support.problems import unplaced
from tests.support.processes import alive
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

RELOADS = 6  # with one, two and three workers, twice
LIMITS = {"connections_per_source": 1000, "unauthenticated_connections": 1000, "drain_seconds": 120}
CLONE_BYTES = 200_000_000
RELOAD_SECONDS = 60.0


def reload(relay: RelayProcess) -> None:
    """Sends SIGHUP, and waits until the new workers serve."""
    before = relay.log_text().count("reloaded /")
    relay.signal(signal.SIGHUP)
    wait_until(lambda: relay.log_text().count("reloaded /") > before, RELOAD_SECONDS, "the reload took effect")


def workers(relay: RelayProcess) -> list[psutil.Process]:
    return relay.processes()[1:]


def old_ones_are_gone(relay: RelayProcess, count: int) -> None:
    wait_until(lambda: len(workers(relay)) == count, RELOAD_SECONDS, f"{count} workers are left")


# -- what a reload changes


def test_a_bad_configuration_is_told_line_by_line_and_the_old_one_serves_on(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"workers": 1})
    (worker,) = workers(relay)
    good = relay.config_file.read_text()
    relay.config_file.write_text(good.replace('user = "git"', 'user = "bad user"').replace("workers = 1", "workers = -1"))
    relay.signal(signal.SIGHUP)
    relay.wait_for_log("2 problems; the old configuration stays in force")
    for key in ("user", "workers"):
        assert unplaced(relay.log_text()).count(f"reload refused: {relay.config_file}: {key}: ") == 1
    assert workers(relay) == [worker]
    assert (relay.metric("relay_reloads_total", result="ok"), relay.metric("relay_reloads_total", result="refused")) == (0, 1)
    assert relay.ssh().run("git-upload-pack 'stub/exit/0'").returncode == 0

    # also for a worker that is replaced after the refused reload
    worker.kill()
    wait_until(lambda: relay.metric("relay_worker_restarts_total") == 1)
    assert relay.ssh().run("git-upload-pack 'stub/exit/7'").returncode == 7
    assert "did not start" not in relay.log_text()


def test_keys_access_and_limits_are_read_anew_and_a_running_session_keeps_its_worker(
    sshd: Sshd, make_relay: Callable[..., RelayProcess], tmp_path: Path
) -> None:
    relay = make_relay(sshd, config={"workers": 1, "greeting": "before {identity}", "limits": LIMITS})
    bob = make_key(tmp_path, "bob")
    (old,) = workers(relay)
    with relay.ssh().popen("git-receive-pack 'stub/checksum'") as client:
        wait_until(lambda: relay.metric("relay_sessions_open") == 1)
        relay.add_key("bob", bob.line)
        relay.write_config({"greeting": "after {identity}"})
        (relay.folder / "audit.jsonl").rename(relay.folder / "audit.old")
        reload(relay)
        wait_until(lambda: relay.ssh(key=bob).run(None).stdout == b"after bob\n")  # the old worker may still accept for a moment
        assert len(workers(relay)) == 2 and old in workers(relay)
        said, _ = client.communicate(b"x", timeout=60)
        assert (client.returncode, said.split()[0]) == (0, hashlib.sha256(b"x").hexdigest().encode())
    old_ones_are_gone(relay, 1)
    assert not alive(old)
    lines = wait_until(lambda: [line for line in relay.audit_lines() if line["event"] == "session" and line["service"]])
    assert [line["bytes_in"] for line in lines] == [1], "the worker that drains opened the audit file again, too"
    assert relay.metric("relay_reloads_total", result="ok") == 1
    assert relay.metric("relay_sessions_total", result="ok", service="git-receive-pack") == 1, "totals of a worker that went are kept"


def test_a_session_longer_than_its_drain_time_is_told_and_the_end_is_clean(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"limits": {"drain_seconds": 0.5}})
    with relay.ssh().popen("git-upload-pack 'stub/hang'") as client:
        wait_until(lambda: relay.metric("relay_sessions_open") == 1)
        relay.write_config({"limits": {"drain_seconds": 60}})
        reload(relay)
        _, errors = client.communicate(timeout=60)
        assert client.returncode == 255
        assert b"relay: the service is restarting, try again in a moment" in errors
    old_ones_are_gone(relay, 1)
    relay.stop(status=0)  # the stop cut no session


def test_reloads_leave_no_descriptor_and_no_process(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"workers": 2})
    supervisor = psutil.Process(relay.pid)

    def settled() -> int:
        old_ones_are_gone(relay, 2)
        return supervisor.num_fds()

    reload(relay)
    before = settled()
    for _ in range(3):
        reload(relay)
    old_ones_are_gone(relay, 2)
    workers(relay)[0].kill()
    wait_until(lambda: relay.metric("relay_worker_restarts_total") == 1)
    wait_until(lambda: relay.metric("relay_workers") == 2)
    wait_until(lambda: settled() <= before, message="as many descriptors as before")
    assert not [child for child in supervisor.children() if child.status() == psutil.STATUS_ZOMBIE]


def test_addresses_and_workers_change_and_what_waits_in_a_backlog_does_not_notice(
    sshd: Sshd, make_relay: Callable[..., RelayProcess]
) -> None:
    relay = make_relay(sshd, config={"workers": 3, "limits": LIMITS})
    first = ("127.0.0.1", relay.port)

    def listens(address: tuple[str, int]) -> bool:
        try:
            with socket.create_connection(address, timeout=30) as client:
                return client.recv(100).startswith(b"SSH-2.0-")
        except ConnectionRefusedError:
            return False

    relay.write_config({"listen": ["127.0.0.1:0", "127.0.0.2:0"], "workers": 1})
    stopped = workers(relay)
    for worker in stopped:
        worker.send_signal(signal.SIGSTOP)  # so that connections wait in all three backlogs
    waiting = [socket.create_connection(first, timeout=30) for _ in range(60)]
    reload(relay)
    for client in waiting:
        with client:
            assert client.recv(100).startswith(b"SSH-2.0-"), "whoever holds the socket now accepts it"
    for worker in stopped:
        worker.send_signal(signal.SIGCONT)
    old_ones_are_gone(relay, 1)
    port = int(relay.wait_for_log(r"listening on 127\.0\.0\.2:(\d+)")[1])
    assert listens(first) and listens(("127.0.0.2", port))

    relay.write_config({"listen": ["127.0.0.2:0"], "workers": 2})
    reload(relay)
    old_ones_are_gone(relay, 2)
    assert not listens(first)
    assert listens(("127.0.0.2", port))


# -- nothing is lost


def test_what_waits_in_the_backlog_of_a_worker_that_dies_is_served_by_the_next(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    relay = make_relay(sshd, config={"workers": 2, "limits": LIMITS})
    victim, other = workers(relay)
    victim.send_signal(signal.SIGSTOP)
    clients = [socket.create_connection(("127.0.0.1", relay.port), timeout=30) for _ in range(40)]
    victim.kill()
    for client in clients:
        with client:
            assert client.recv(100).startswith(b"SSH-2.0-")
    relay.wait_for_log(f"worker {victim.pid} died by signal SIGKILL after")
    (line,) = audited(relay, 0, event="worker_lost")
    assert (line["pid"], line["how"]) == (victim.pid, "signal SIGKILL")
    assert relay.metric("relay_worker_restarts_total") == 1
    wait_until(lambda: relay.metric("relay_workers") == 2)
    assert other in workers(relay)


@dataclass
class Load:
    """The results of several threads that repeat an action until `stop`."""

    stopping: threading.Event = field(default_factory=threading.Event)
    done: int = 0
    failures: list[str] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def run(self, once: Callable[[], str | None]) -> None:
        try:
            while not self.stopping.is_set():
                failure = once()
                self.done += 1
                if failure is not None:
                    self.failures.append(failure)
        except BaseException as error:  # noqa: BLE001 - `steady` raises it again, in the test's own thread
            self.errors.append(error)


@contextmanager
def steady(once: Callable[[], str | None], threads: int) -> Iterator[Load]:
    """Repeats `once` in so many threads; `once` returns what went wrong."""
    load = Load()
    started = [threading.Thread(target=load.run, args=(once,)) for _ in range(threads)]
    for thread in started:
        thread.start()
    try:
        yield load
    finally:
        load.stopping.set()
        for thread in started:
            thread.join(120)
    if load.errors:
        raise load.errors[0]


@pytest.mark.slow
def test_no_connection_that_the_kernel_accepted_is_lost_in_reloads(sshd: Sshd, make_relay: Callable[..., RelayProcess]) -> None:
    """Many more connections than git would make: each must read the version line, whichever worker held its socket."""
    relay = make_relay(sshd, config={"workers": 2, "limits": LIMITS})

    def once() -> str | None:
        try:
            with socket.create_connection(("127.0.0.1", relay.port), timeout=30) as client:
                said = client.recv(100)
        except OSError as error:
            return repr(error)
        return None if said.startswith(b"SSH-2.0-") else repr(said)

    with steady(once, 3) as load:
        for number in range(RELOADS):
            relay.write_config({"workers": 1 + number % 3})
            reload(relay)
    print(f"{load.done} connections in {RELOADS} reloads")
    assert load.done > 20 * RELOADS
    assert load.failures == []


@dataclass
class Reader:
    """Reads a stream in a thread, slowly until `hurry` is set."""

    stream: IO[bytes]
    rate: float  # bytes a second
    hurry: threading.Event = field(default_factory=threading.Event)
    length: int = 0
    sha256: str = ""

    def run(self) -> None:
        digest, started = hashlib.sha256(), time.monotonic()
        while chunk := self.stream.read(1 << 20):
            digest.update(chunk)
            self.length += len(chunk)
            self.hurry.wait(max(0.0, started + self.length / self.rate - time.monotonic()))
        self.sha256 = digest.hexdigest()


@pytest.mark.slow
def test_reloads_and_a_killed_worker_lose_no_connection_but_the_killed_workers_own(
    sshd: Sshd, make_relay: Callable[..., RelayProcess], tmp_path: Path
) -> None:
    """A steady load of `git ls-remote`, a long stream and a real clone beside it."""
    relay = make_relay(sshd, config={"workers": 2, "limits": LIMITS})
    env = relay.git_env(tmp_path / "home")
    make_repo(sshd.root / "team" / "app.git")
    big = make_big_repo(sshd.root / "team" / "big.git", 60)
    expected = git("ls-remote", sshd.root / "team" / "app.git", env=env).stdout
    under_way: dict[subprocess.Popen[bytes], None] = {}

    def ls_remote() -> str | None:
        with subprocess.Popen(
            ["git", "ls-remote", relay.url("team/app")], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            under_way[process] = None
            out, errors = process.communicate(timeout=120)
            del under_way[process]
            if process.returncode == 0 and out == expected:
                return None
            return f"{process.pid}: {process.returncode} {out!r} {errors!r}"

    with ExitStack() as stack:
        stream = stack.enter_context(relay.ssh().popen(f"git-upload-pack 'stub/emit/{CLONE_BYTES}'"))
        assert stream.stdout is not None
        reader = Reader(stream.stdout, rate=2_000_000)
        reading = threading.Thread(target=reader.run)
        reading.start()
        wait_until(lambda: reader.length > 0)
        clone = stack.enter_context(
            subprocess.Popen(
                ["git", "clone", "-q", "--bare", relay.url("team/big"), tmp_path / "big"],
                env=env,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        )
        with steady(ls_remote, 2) as load:
            wait_until(lambda: load.done >= 5, 60)
            for _ in range(RELOADS):
                reload(relay)
            assert not reader.hurry.is_set() and reading.is_alive(), "the stream runs on"
            reader.hurry.set()
            reading.join(120)
            _, errors = clone.communicate(timeout=120)
            old_ones_are_gone(relay, 2)
            reloaded, so_far = load.done, list(load.failures)

            # the test stops one worker, so that it knows which connections belong to it, and then kills it
            victim = _with_a_connection(relay)
            victim.send_signal(signal.SIGSTOP)
            own = {connection.raddr.port for connection in victim.net_connections("tcp") if connection.raddr}
            doomed = {process.pid for process in list(under_way) if _ports(process.pid) & own}
            victim.kill()
            wait_until(lambda: relay.metric("relay_worker_restarts_total") == 1)
            wait_until(lambda: load.done >= reloaded + 10, 60)
    print(f"{reloaded} times ls-remote in {RELOADS} reloads, {load.done - reloaded} after; {len(load.failures)} failed, {len(doomed)} may")
    assert stream.wait(60) == 0
    assert (reader.length, reader.sha256) == (CLONE_BYTES, hashlib.sha256(stub_bytes(CLONE_BYTES)).hexdigest())
    assert clone.returncode == 0, errors
    assert rev_list(tmp_path / "big", env) == rev_list(big, env)
    assert so_far == []
    failed = {int(failure.partition(":")[0]) for failure in load.failures}
    assert failed <= doomed, load.failures
    assert "died by signal SIGKILL" in relay.log_text()


def _with_a_connection(relay: RelayProcess) -> psutil.Process:
    """A worker that has a client connection right now."""

    def busy() -> psutil.Process | None:
        for worker in workers(relay):
            for connection in worker.net_connections("tcp"):
                if connection.laddr.port == relay.port and connection.status == psutil.CONN_ESTABLISHED:
                    return worker
        return None

    return wait_until(busy, 60, "a worker has a client")


def _ports(git_pid: int) -> set[int]:
    """The local ports of the ssh that this git started."""
    with suppress(psutil.NoSuchProcess):
        return {
            connection.laddr.port
            for child in psutil.Process(git_pid).children(recursive=True)
            for connection in child.net_connections("tcp")
        }
    return set()
