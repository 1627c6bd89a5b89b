"""The relay under systemd: the sockets that systemd passes, and the relay's notifications. Tests start a child as systemd does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from relay.process import systemd

ROOT = Path(__file__).parents[2]

# as systemd does: descriptors from 3 on, and the pid of the executed program
AS_SYSTEMD = """
import os, socket, sys
kinds, pid = sys.argv[1].split(","), sys.argv[2]
for number, kind in enumerate(kinds):
    sock = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    sock.bind("\\0relay-test-%d" % os.getpid() if kind == "unix" else ("127.0.0.1", 0))
    if kind in ("tcp", "unix"):
        sock.listen()
    os.dup2(sock.fileno(), 100 + number)
for number in range(len(kinds)):
    os.dup2(100 + number, 3 + number)
os.environ.update(LISTEN_PID=str(os.getpid()) if pid == "own" else pid, LISTEN_FDS=str(len(kinds)), LISTEN_FDNAMES="a:b")
os.execv(sys.executable, [sys.executable, "-c", '''
import os
from relay.process import systemd as sd
try:
    for sock in sd.listen_sockets():
        print(sock.fileno(), sock.getsockname()[0], os.get_inheritable(sock.fileno()))
except OSError as error:
    print(error)
print([name for name in os.environ if name.startswith("LISTEN_")])
'''])
"""


def activated(*kinds: str, pid: str = "own") -> list[str]:
    command = [sys.executable, "-c", AS_SYSTEMD, ",".join(kinds), pid]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    *said, environment = done.stdout.splitlines()
    assert environment == "[]", "a child of the relay must not take the sockets for its own"
    return said


def test_sockets_are_taken_in_their_order_and_are_not_inherited() -> None:
    assert activated("tcp", "tcp") == ["3 127.0.0.1 False", "4 127.0.0.1 False"]


@pytest.mark.parametrize("kinds", [("udp",), ("unix",), ("bound",), ("tcp", "udp")])
def test_anything_but_listening_tcp_sockets_is_refused(kinds: tuple[str, ...]) -> None:
    (said,) = activated(*kinds)
    assert "no listening TCP socket" in said


def test_sockets_of_another_process_are_not_taken() -> None:
    (said,) = activated("tcp", pid="1")
    assert "handed over no socket" in said


@pytest.mark.parametrize("count", ["", "0", "many"])
def test_no_socket_at_all(count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    with pytest.raises(OSError, match="handed over no socket"):
        systemd.listen_sockets()


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_notified(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"@relay-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1) if abstract else name)
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        systemd.notify("READY=1")
        assert manager.recv(100) == b"READY=1"
        systemd.notify(systemd.reloading())
        assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        systemd.notify(systemd.stopping(70.5))
        assert manager.recv(100) == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=70500000"


def test_a_failed_notification_is_only_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    systemd.notify(systemd.stopping(1))
    assert "systemd was not notified of STOPPING=1" in caplog.text


def test_without_a_service_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")
    assert not caplog.records
