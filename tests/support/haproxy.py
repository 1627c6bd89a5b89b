"""A real HAProxy in TCP mode in front of one server, as a process; its statistics are read from its socket.

with Haproxy(relay.port, "send-proxy-v2 check inter 100ms") as balancer:
    ...connect to 127.0.0.1:balancer.port...
    balancer.server_state()      # UP, DOWN, ...

Haproxy.deployed([(port, admin port), ...]) is that of deploy/haproxy.cfg, with these relays.
"""

from __future__ import annotations

import csv
import shutil
import socket
from pathlib import Path
from typing import Self

from tests.support.server_process import ServerProcess

DEPLOYED = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"

CONFIG = """\
global
    stats socket {folder}/stats level admin
defaults
    mode tcp
    timeout connect 10s
    timeout client 60s
    timeout server 60s
listen git
    bind 127.0.0.1:{port}
    server relay 127.0.0.1:{target} {options}
"""


class HaproxyMissingError(RuntimeError):
    """HAProxy is not installed on this machine."""


def program() -> str:
    found = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if found is None:
        raise HaproxyMissingError("haproxy is missing: install the package haproxy (apt-get install haproxy)")
    return found


class Haproxy(ServerProcess):
    """Listens on 127.0.0.1; `options` are those of its `server` line. A context manager."""

    def __init__(self, target: int, options: str, template: str = CONFIG) -> None:
        super().__init__("haproxy")
        self.port = 0
        self._template, self._target, self._options = template, target, options

    def start(self) -> None:
        self.port = self._launch_on_port(self._start_on)

    def _start_on(self, port: int) -> None:
        config = self.folder / "haproxy.cfg"
        config.write_text(self._template.format(folder=self.folder, port=port, target=self._target, options=self._options))
        self._launch([program(), "-db", "-f", str(config)], lambda: self._listens(port))

    @classmethod
    def deployed(cls, relays: list[tuple[int, int]]) -> Self:
        """With deploy/haproxy.cfg, in which the example addresses are replaced by those of `relays`: (port, admin port) each."""
        text = DEPLOYED.read_text()
        changes = [("\nglobal\n", "\nglobal\n    stats socket {folder}/stats level admin\n"), ("bind :2222\n", "bind 127.0.0.1:{port}\n")]
        for number, (port, admin) in enumerate(relays, 1):
            server = f"server relay{number} "
            changes.append((f"{server}10.0.0.1{number}:2222 port 9122\n", f"{server}127.0.0.1:{port} port {admin}\n"))
        for written, meant in changes:
            assert text.count(written) == 1, written
            text = text.replace(written, meant)
        return cls(0, "", text)

    def statistics(self, server: str = "relay") -> dict[str, str]:
        """The server's line of `show stat`."""
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(str(self.folder / "stats"))
            asked.sendall(b"show stat\n")
            answer = b"".join(iter(lambda: asked.recv(65536), b"")).decode()
        lines = csv.DictReader(answer.removeprefix("# ").splitlines())
        return next(line for line in lines if line["svname"] == server)

    def server_state(self, server: str = "relay") -> str:
        """UP, DOWN, `no check`, ..."""
        return self.statistics(server)["status"]

    def _listens(self, port: int) -> bool:
        """On both sockets: HAProxy binds all of them before it listens on the last one, so the file may be there and refuse."""
        with socket.socket() as probe, socket.socket(socket.AF_UNIX) as stats:
            return stats.connect_ex(str(self.folder / "stats")) == 0 and probe.connect_ex(("127.0.0.1", port)) == 0
