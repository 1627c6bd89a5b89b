"""The relay under a service manager: passed sockets, which outlive the relay, and its notifications at start, reload and stop."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.e2e.helpers import audited, comes_in
from tests.support.keys import Key
from tests.support.problems import unplaced
from tests.support.relay_process import RelayProcess
from tests.support.sshd import Sshd
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]

# does what systemd does between fork and exec; the sockets come from the test, which keeps them open
LAUNCHER = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as test:
    test.connect(os.environ.pop("TEST_SOCKETS"))
    _, fds, _, _ = socket.recv_fds(test, 1, 8)
for number, fd in enumerate(fds):
    os.dup2(fd, 100 + number)
for number in range(len(fds)):
    os.dup2(100 + number, 3 + number)
os.closerange(3 + len(fds), 200)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)))
os.execv(sys.executable, [sys.executable, "-m", "relay", *sys.argv[1:]])
"""


class Manager:
    """The service manager's side: the listening sockets, and the socket that receives notifications."""

    def __init__(self, folder: Path, listening: list[socket.socket]) -> None:
        self.listening = listening
        self._hand = socket.socket(socket.AF_UNIX)
        self._hand.bind(str(folder / "hand"))
        self._hand.listen()
        self._heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._heard.bind(str(folder / "notify"))
        self._heard.settimeout(30)
        self.env = {"TEST_SOCKETS": str(folder / "hand"), "NOTIFY_SOCKET": str(folder / "notify")}
        launcher = folder / "launcher.py"
        launcher.write_text(LAUNCHER)
        self.program = (sys.executable, str(launcher))

    @contextmanager
    def handing_over(self) -> Iterator[None]:
        thread = threading.Thread(target=self._hand_over)
        thread.start()
        yield
        thread.join(30)

    def _hand_over(self) -> None:
        launcher, _ = self._hand.accept()
        with launcher:
            socket.send_fds(launcher, [b"x"], [sock.fileno() for sock in self.listening])

    def hears(self) -> str:
        return self._heard.recv(1000).decode()

    def close(self) -> None:
        for sock in (self._hand, self._heard, *self.listening):
            sock.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path, [socket.create_server(("127.0.0.1", 0), backlog=64) for _ in range(2)])
    yield manager
    manager.close()


def test_starts_reloads_and_stops_with_sockets_that_outlive_it(
    sshd: Sshd, manager: Manager, make_relay: Callable[..., RelayProcess]
) -> None:
    addresses = [sock.getsockname() for sock in manager.listening]
    early = [socket.create_connection(address, timeout=30) for address in addresses]
    with manager.handing_over():
        relay = make_relay(sshd, config={"listen": ["systemd"], "workers": 2}, env=manager.env, program=manager.program)
    assert manager.hears() == "READY=1"
    for client in early:
        with client:
            assert client.recv(100).startswith(b"SSH-2.0-"), "what came before the start waited"
    assert sorted(re.findall(r"listening on 127\.0\.0\.1:(\d+)", relay.log_text())) == sorted(str(port) for _, port in addresses)
    for _, port in addresses:
        relay.port = port
        relay.known_hosts.write_text(f"[127.0.0.1]:{port} {relay.host_key_line}\n")
        assert relay.ssh().run("git-upload-pack 'stub/exit/5'").returncode == 5

    for workers in (3, 1):
        relay.write_config({"workers": workers})
        relay.signal(signal.SIGHUP)
        reloading, usec = manager.hears().splitlines()
        assert (reloading, usec.partition("=")[0]) == ("RELOADING=1", "MONOTONIC_USEC")
        assert manager.hears() == "READY=1"
        wait_until(lambda count=workers: len(relay.processes()) == 1 + count)  # type: ignore[misc]
        assert relay.ssh().run("git-upload-pack 'stub/exit/6'").returncode == 6

    relay.write_config({"user": "not a user"})
    relay.signal(signal.SIGHUP)
    assert manager.hears().startswith("RELOADING=1")
    assert manager.hears() == "READY=1", "a reload that was refused is over, too"
    relay.write_config({"user": "git"})

    relay.stop()
    assert manager.hears() == "STOPPING=1\nEXTEND_TIMEOUT_USEC=70000000"
    late = [socket.create_connection(address, timeout=30) for address in addresses]
    with manager.handing_over():
        relay.start()
    assert manager.hears() == "READY=1"
    for client in late:
        with client:
            assert client.recv(100).startswith(b"SSH-2.0-"), "what came between stop and start waited"


def test_a_client_has_one_address_behind_a_socket_of_both_families(
    sshd: Sshd, tmp_path: Path, make_relay: Callable[..., RelayProcess], key: Key
) -> None:
    """systemd binds [::] without IPV6_V6ONLY, and the kernel calls a client of IPv4 ::ffff:127.0.0.1 there."""
    manager = Manager(tmp_path, [socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)])
    port = manager.listening[0].getsockname()[1]
    with closing(manager):
        limits = {"connections_per_source": 1, "penalty_seconds": 0}
        config = {"listen": ["systemd"], "workers": 1, "limits": limits}
        with manager.handing_over():
            relay = make_relay(sshd, config=config, env=manager.env, program=manager.program)
        assert relay.port == port
        relay.add_key("alice@office", f'from="127.0.0.1" {key.line}')
        wait_until(lambda: relay.ssh(key=key).run("git-upload-pack 'stub/exit/5'").returncode == 5, message="from= knows the client")
        wait_until(lambda: relay.metric("relay_connections_open") == 0)
        since = len(relay.audit_lines())
        with relay.ssh(key=key).popen("git-upload-pack 'stub/cat'") as session:
            assert session.stdin is not None
            wait_until(lambda: relay.metric("relay_sessions_open") == 1, message="it runs")
            command = [sys.executable, "-m", "relay", "sessions", "--json", "-c", str(relay.config_file)]
            done = subprocess.run(command, capture_output=True, timeout=60, check=True, cwd=ROOT)
            assert json.loads(done.stdout)["address"].startswith("127.0.0.1:")
            with socket.create_connection(("127.0.0.1", port), timeout=30) as second:
                assert not comes_in(second)
            relay.wait_for_log("a connection from 127.0.0.1 was turned away: 127.0.0.1 has 1 connection open")
            with socket.create_connection(("::1", port), timeout=30) as other:
                assert comes_in(other), "::1 is another source"
            session.stdin.close()
            assert session.wait(60) == 0
        [line] = audited(relay, since, event="session")
        assert line["address"] == "127.0.0.1"
        assert "::ffff:" not in relay.log_text() + "".join(map(str, relay.audit_lines()))


def test_without_the_sockets_it_says_so_in_one_line(sshd: Sshd, tmp_path: Path) -> None:
    relay = RelayProcess(sshd, tmp_path / "relay", config={"listen": ["systemd"]})
    with pytest.raises(AssertionError, match="ended with 1 before it listened") as raised:
        relay.start()
    said = str(raised.value).splitlines()[1:]
    listen = f"{relay.config_file}: listen"
    assert [unplaced(line) for line in said] == [f"{listen}: systemd handed over no socket (LISTEN_FDS is not set for this process)"]
