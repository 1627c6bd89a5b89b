"""A real redis-server, alone, as a sentinel or as a cluster of one, which tests fill, kill, freeze and start again.

with RedisServer() as redis:                     # on a Unix socket: redis.url
    redis.run("HSET", "relay:keys", ...)
    redis.kill(); redis.start()                  # its data is kept
"""

from __future__ import annotations

import socket
from typing import Any

from tests.support.server_process import ServerProcess

PROGRAM = "redis-server"
ANSWER_SECONDS = 60.0


class RedisServer(ServerProcess):
    """The constructor starts the server. `port` 0: on a Unix socket only. `options` are lines of its configuration."""

    def __init__(self, *options: str, port: int = 0, sentinel: bool = False) -> None:
        super().__init__("redis")
        self.socket = self.folder / "socket"
        self.port = port
        self._file = self.folder / "redis.conf"
        own = [f"dir {self.folder}", f"unixsocket {self.socket}", "daemonize no"]
        if not any(option.startswith("tls-port") for option in options):
            own.append(f"port {port}")
        if not sentinel:
            own += ["appendonly yes", "appendfsync always", 'save ""']
        self._file.write_text("".join(f"{line}\n" for line in (*own, "bind 127.0.0.1", *options)))
        self._sentinel = sentinel
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        arguments = [PROGRAM, str(self._file), *(["--sentinel"] if self._sentinel else [])]
        self._launch(arguments, lambda: self.run("PING") in ("PONG", "-NOAUTH Authentication required."))

    def run(self, *command: str) -> Any:
        """Runs one command on the Unix socket. Returns a string, a number, a list or None; of an error the text, with a hyphen in front."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(ANSWER_SECONDS)
            try:
                sock.connect(str(self.socket))
            except (FileNotFoundError, ConnectionRefusedError) as error:
                raise AssertionError(f"redis does not listen: {error}") from None
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
