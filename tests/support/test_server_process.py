"""ServerProcess: waiting for a start, the errors of a server that does not start, taken ports, stopping."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import server_process
from tests.support.machine import free_port
from tests.support.server_process import PortTakenError, ServerProcess

LISTENS = """
import signal, socket, sys
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
while True: server.accept()
"""
FAILS = "import sys; print('noise\\n' * 10_000 + 'no such option'); sys.exit(3)"
SILENT = "import time; print('still starting', flush=True); time.sleep(1000)"


class Program(ServerProcess):
    def __init__(self, program: str, *arguments: str) -> None:
        super().__init__("program")
        self.port = 0
        self._program, self._arguments = program, arguments

    def start(self) -> None:
        self.port = self._launch_on_port(self._start_on, self.port)

    def _start_on(self, port: int) -> None:
        mark = self.log_mark()
        arguments = [sys.executable, "-c", self._program, str(port), *self._arguments]
        self._launch(arguments, lambda: "listening" in self.log_text(mark))


def test_it_is_waited_for_and_its_folder_is_removed() -> None:
    with Program(LISTENS) as program:
        socket.create_connection(("127.0.0.1", program.port)).close()
        pid = program.pid
        assert program.running
    assert not program.running
    assert not psutil.pid_exists(pid)
    assert not program.folder.exists()


def test_a_given_folder_is_kept(tmp_path: Path) -> None:
    ServerProcess("program", tmp_path / "folder").close()
    assert (tmp_path / "folder").exists()


def test_the_error_of_a_server_that_ends_has_the_status_and_the_end_of_its_log() -> None:
    program = Program(FAILS)
    with pytest.raises(RuntimeError, match=r"^program ended with status 3:\n(?s:.*)no such option\n$") as raised, program:
        pass
    assert len(str(raised.value)) < server_process.LOG_SHOWN + 100
    assert not program.folder.exists()


def test_a_server_that_does_not_answer_is_killed_and_its_log_shown() -> None:
    program = Program(SILENT)

    def never() -> bool:
        program.wait_for_log("still starting")
        return False

    with pytest.raises(RuntimeError, match=r"program answers did not hold within 0 s(?s:.*)still starting"):
        program._launch([sys.executable, "-c", SILENT], never, 0.0)
    assert not program.running
    program.close()


def test_another_port_is_tried_when_the_first_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1]])
        monkeypatch.setattr(server_process, "free_port", lambda address: next(ports, None) or free_port(address))
        with Program(LISTENS) as program:
            assert program.port != taken.getsockname()[1]


def test_a_fixed_port_that_stays_taken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_process, "PORT_ATTEMPTS", 2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        program = Program(LISTENS)
        program.port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match="in use"), program:
            pass


def test_a_killed_server_starts_again_on_its_port() -> None:
    with Program(LISTENS) as program:
        port = program.port
        program.kill()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        program.start()
        assert program.port == port


def test_a_frozen_server_is_stopped_and_goes_on_when_thawed() -> None:
    with Program(LISTENS) as program:
        program.freeze()
        assert psutil.Process(program.pid).status() == psutil.STATUS_STOPPED
        program.freeze(False)
        socket.create_connection(("127.0.0.1", program.port)).close()
        assert program.running


def test_a_server_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Program(LISTENS, "stubborn") as program:
        process = program._process
        assert process is not None
        monkeypatch.setattr(server_process, "TERMINATE_SECONDS", 0.2)
        program.terminate()
        assert process.returncode == -signal.SIGKILL
