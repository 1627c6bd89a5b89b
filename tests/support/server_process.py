"""The base of servers that tests run as processes on loopback: start, wait and stop; an error shows the end of the log.

class Haproxy(ServerProcess): ...       # one class for each real peer
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.support.machine import free_port
from tests.support.processes import is_stopped
from tests.support.wait import WaitTimeoutError, wait_until

START_SECONDS = 60.0  # until the server answers
STOP_SECONDS = 60.0  # until the process has ended after a signal
TERMINATE_SECONDS = 60.0  # until the process has ended after SIGTERM; then it is killed
PORT_ATTEMPTS = 20
LOG_SHOWN = 4_000  # characters at the end of the log that an error shows

RETRY_SECONDS = 0.05  # after another process has taken the port first

_PORT_TAKEN = re.compile(r"address (already )?in use", re.IGNORECASE)


class PortTakenError(RuntimeError):
    """Another process listens on the port."""


class ServerProcess:
    """A context manager that starts the server and, at the end, stops it and removes its folder if this object made it.

    A subclass writes the configuration into `folder` and implements `start`, by `_launch`.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        """Without `folder` a temporary one, with a short path: a Unix socket's path has at most 107 bytes."""
        self.name = name
        self._own_folder = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix=f"{name}-")) if folder is None else folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self._process is None:
            try:
                self.start()
            except BaseException:
                self.close()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    def start(self) -> None:
        """Start the process and wait until it answers; raises RuntimeError with the end of its log if it does not."""
        raise NotImplementedError

    def kill(self) -> None:
        """SIGKILL: connections are reset, and then refused. The server may be started again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
            self._process = None

    def terminate(self) -> None:
        """SIGTERM; SIGKILL if the process has not ended after TERMINATE_SECONDS."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(TERMINATE_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            self.kill()

    def freeze(self, frozen: bool = True) -> None:
        """SIGSTOP: connections stay open, the kernel accepts new ones, and nothing is answered; SIGCONT with `frozen` false."""
        assert self._process is not None, f"{self.name} was not started"
        self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)
        if frozen:
            process = psutil.Process(self._process.pid)
            wait_until(lambda: is_stopped(process), STOP_SECONDS, f"{self.name} is stopped")

    def close(self) -> None:
        """Stop the server, and remove the folder if this object made it."""
        self.kill()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    # -- the log

    def log_text(self, since: int = 0) -> str:
        """The log of all starts so far, from byte `since` (a value of `log_mark`) on."""
        if not self._log.exists():
            return ""
        with self._log.open("rb") as file:
            file.seek(since)
            return file.read().decode(errors="replace")

    def log_mark(self) -> int:
        return self._log.stat().st_size if self._log.exists() else 0

    def wait_for_log(self, pattern: str, timeout: float = 60.0, since: int = 0) -> re.Match[str]:
        """Wait (blocking) until the log matches `pattern`; in a coroutine use wait_until_async on `log_text`."""
        try:
            return wait_until(lambda: re.search(pattern, self.log_text(since), re.MULTILINE), timeout, f"{self.name} logs {pattern!r}")
        except WaitTimeoutError as error:
            raise WaitTimeoutError(f"{error}\n{self.log_text(since)[-LOG_SHOWN:]}") from None

    # -- for subclasses

    def _launch(self, arguments: Sequence[str], answers: Callable[[], object], seconds: float = START_SECONDS, **options: Any) -> None:
        """Start the process with its output in the log, and wait until `answers` returns a true value; `options` are those of Popen."""
        mark = self.log_mark()
        with self._log.open("ab") as log:
            process = self._process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)
        problem = ""
        try:
            wait_until(lambda: process.poll() is not None or answers(), seconds, f"{self.name} answers")
            if process.poll() is not None:
                problem = f"{self.name} ended with status {process.returncode}"
        except WaitTimeoutError as error:
            problem = str(error)
        except BaseException:
            self.kill()
            raise
        if problem:
            self.kill()
            text = self.log_text(mark)
            raise (PortTakenError if _PORT_TAKEN.search(text) else RuntimeError)(f"{problem}:\n{text[-LOG_SHOWN:]}")

    def _launch_on_port(self, launch: Callable[[int], None], port: int = 0, address: str = "127.0.0.1") -> int:
        """Call `launch` with `port`, or with one that is free, again when another process has taken the port first; returns the port."""
        for attempt in range(1, PORT_ATTEMPTS + 1):
            chosen = port or free_port(address)
            try:
                launch(chosen)
            except PortTakenError:
                if attempt == PORT_ATTEMPTS:
                    raise
                time.sleep(RETRY_SECONDS)
            else:
                return chosen
        raise AssertionError("not reached")
