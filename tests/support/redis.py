"""A real redis-server, alone, as a sentinel or as a cluster of one, that tests fill, take away, freeze and bring back.

with RedisServer() as redis:                     # on a Unix socket: redis.url
    redis.run("HSET", "relay:keys", ...)
    redis.kill(); redis.start()                  # what was in it is kept
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.wait import wait_until

PROGRAM = "redis-server"
END_SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class RedisServer:
    """Running from its making on. `port` 0: on a Unix socket only. `options` are lines of its configuration."""

    def __init__(self, *options: str, port: int = 0, sentinel: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="redis-"))  # short: a Unix socket's path has at most 107 bytes
        self.socket = self.folder / "socket"
        self.port = port
        self._log = self.folder / "log"
        self._file = self.folder / "redis.conf"
        own = [f"dir {self.folder}", f"unixsocket {self.socket}", f"logfile {self._log}", "daemonize no"]
        if not any(option.startswith("tls-port") for option in options):
            own.append(f"port {port}")
        if not sentinel:
            own += ["appendonly yes", "appendfsync always", 'save ""']
        self._file.write_text("".join(f"{line}\n" for line in (*own, "bind 127.0.0.1", *options)))
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self.folder)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        arguments = [PROGRAM, str(self._file), *(["--sentinel"] if self._sentinel else [])]
        self._process = process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

        def answers() -> bool:
            assert process.poll() is None, self._log.read_text()
            return self.run("PING") in ("PONG", "-NOAUTH Authentication required.")

        wait_until(answers, message="redis answers")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(END_SECONDS)
            self._process = None

    def freeze(self, frozen: bool = True) -> None:
        """SIGSTOP: connections stay, and nothing answers any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def run(self, *command: str) -> Any:
        """One command on the Unix socket: a string, a number, a list, None; an error as its text with a hyphen in front."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(END_SECONDS)
            try:
                sock.connect(str(self.socket))
            except (FileNotFoundError, ConnectionRefusedError) as error:
                raise AssertionError(f"redis is not there: {error}") from None
            words = [word.encode() for word in command]
            sock.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
            with sock.makefile("rb") as file:
                return _reply(file)


def _reply(file: Any) -> Any:
    line = file.readline()
    kind, text = line[:1], line[1:-2].decode()
    if kind == b"+":
        return text
    if kind == b"-":
        return f"-{text}"
    if kind == b":":
        return int(text)
    if kind == b"$":
        return None if text == "-1" else file.read(int(text) + 2)[:-2].decode()
    assert kind == b"*", line
    return [_reply(file) for _ in range(int(text))]
