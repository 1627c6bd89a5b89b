"""Clone and push by dulwich over paramiko: by_dulwich KEY clone URL FOLDER, or in the working copy by_dulwich KEY push REMOTE BRANCH"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import dulwich.client
import paramiko
from dulwich import porcelain
from dulwich.errors import GitProtocolError

TIMEOUT = 60.0  # seconds


class Command:
    """One exec on a connection of its own, in dulwich's terms."""

    def __init__(self, client: paramiko.SSHClient, channel: paramiko.Channel) -> None:
        self._client = client
        self._channel = channel
        self._out = channel.makefile("rb")
        self.read = self._out.read
        self.stderr = channel.makefile_stderr("rb")

    def write(self, data: bytes) -> int:
        self._channel.sendall(data)
        return len(data)

    def can_read(self) -> bool:
        return self._channel.recv_ready()

    def close(self) -> None:
        self._client.close()


class Vendor(dulwich.client.SSHVendor):
    """dulwich's own vendors start programs; this one runs in Python."""

    def run_command(  # type: ignore[override]
        self,
        host: str,
        command: bytes,
        username: str | None = None,
        port: int | None = None,
        key_filename: str | None = None,
        protocol_version: int | None = None,
        **others: Any,
    ) -> Command:
        client = paramiko.SSHClient()
        client.load_host_keys(str(Path.home() / ".ssh" / "known_hosts"))
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        only: dict[str, Any] = {"key_filename": key_filename, "allow_agent": False, "look_for_keys": False}
        client.connect(host, port or 22, username, timeout=TIMEOUT, auth_timeout=TIMEOUT, **only)
        transport = client.get_transport()
        assert transport is not None
        channel = transport.open_session()
        channel.settimeout(TIMEOUT)
        if protocol_version:
            channel.update_environment({"GIT_PROTOCOL": f"version={protocol_version}"})
        channel.exec_command(command)
        return Command(client, channel)


def main(key: str, action: str, first: str, second: str) -> int:
    dulwich.client.get_ssh_vendor = Vendor
    try:
        if action == "clone":
            porcelain.clone(first, second, key_filename=key, protocol_version=2).close()
        else:
            porcelain.push(".", first, f"refs/heads/{second}", key_filename=key)
    except (paramiko.SSHException, GitProtocolError, porcelain.Error, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
