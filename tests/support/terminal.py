"""A program on a real pseudo-terminal, whose screen a terminal emulator (pyte) reads.

with Terminal([sys.executable, "-m", "relay", "sessions", "--watch"], columns=120) as terminal:
    terminal.wait_for("OUT/s")
    terminal.send("q")
    assert terminal.wait() == 0 and terminal.as_it_was()
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import pyte

from tests.support.wait import WaitTimeoutError, wait_until


class Terminal:
    """The program's stdin, stdout and controlling terminal; its stderr too."""

    def __init__(self, arguments: Sequence[str], columns: int = 120, lines: int = 24, env: Mapping[str, str] | None = None) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self.raw = b""  # all output
        self._master, self._slave = pty.openpty()
        self._size(columns, lines)
        self._before = termios.tcgetattr(self._slave)
        environment = {
            **{name: value for name, value in os.environ.items() if name != "NO_COLOR"},
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
        }
        self.process = subprocess.Popen(
            arguments,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**environment, **(env or {})},
            preexec_fn=_login,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._slave)
        self._reader.join(10)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # EIO: no process has the other side open any more
                return
            with self._lock:
                self.raw += data
                self._stream.feed(data)

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        with self._lock:
            self._screen.resize(lines, columns)
        self._size(columns, lines)  # the kernel signals SIGWINCH

    def send(self, keys: str | bytes) -> None:
        os.write(self._master, keys.encode() if isinstance(keys, str) else keys)

    def lines(self) -> list[str]:
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    def text(self) -> str:
        return "\n".join(self.lines())

    def line(self, pattern: str) -> str:
        """The first line that contains the text, or an empty one."""
        return next((line for line in self.lines() if re.search(pattern, line)), "")

    def wait_for(self, pattern: str, timeout: float = 60.0) -> re.Match[str]:
        try:
            return wait_until(lambda: re.search(pattern, self.text()), timeout, f"the screen shows {pattern!r}")
        except WaitTimeoutError as error:
            raise WaitTimeoutError(f"{error}\n{self.text()}") from None

    def wait(self, timeout: float = 60.0) -> int:
        return self.process.wait(timeout)

    def stopped(self) -> bool:
        """Whether the program was suspended since the last call."""
        pid, status = os.waitpid(self.process.pid, os.WUNTRACED | os.WNOHANG)
        return pid != 0 and os.WIFSTOPPED(status)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def as_it_was(self) -> bool:
        """Whether settings, main screen and cursor are restored; wait for it, because a thread reads the last bytes."""
        shown = (self.raw.rfind(b"\x1b[?1049l"), self.raw.rfind(b"\x1b[?25h"))
        hidden = (self.raw.rfind(b"\x1b[?1049h"), self.raw.rfind(b"\x1b[?25l"))
        return self.settings() == self._before and all(on > off for on, off in zip(shown, hidden, strict=True))


def _login() -> None:
    os.login_tty(0)
