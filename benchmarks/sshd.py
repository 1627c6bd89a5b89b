"""OpenSSH's sshd as the suite runs it: as the git host with stub services, and as a relay by ForceCommand."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

from benchmarks.processes import MeasureError, Server
from benchmarks.user import Account
from benchmarks.workspace import Key, Workspace

START_SECONDS = 10.0
PENALTIES_SINCE = (9, 8)  # older versions do not have PerSourcePenalties

# What the account's shell runs in place of a stub repository; any other command of the client is evaluated by the same shell, as
# without a ForceCommand. `cat` and `cksum` are the cheapest source and sink whose bytes can be checked.
DISPATCH = (
    """case "$SSH_ORIGINAL_COMMAND" in """
    """*/stub/down/*) n=${SSH_ORIGINAL_COMMAND##*/stub/down/}; exec cat %(git)s/blob-"${n%%%%[!0-9]*}";; """
    """*/stub/up*) echo ready; exec cksum;; """
    """*/stub/exit/*) n=${SSH_ORIGINAL_COMMAND##*/stub/exit/}; exit "${n%%%%[!0-9]*}";; """
    """*) eval "exec $SSH_ORIGINAL_COMMAND";; esac"""
)


def program() -> str:
    found = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise MeasureError("no sshd: install openssh-server (it need not run)")
    return found


def version() -> tuple[int, int]:
    """The version of OpenSSH, from ssh."""
    said = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True, timeout=10).stderr
    if not (found := re.match(r"OpenSSH_(\d+)\.(\d+)", said)):
        raise MeasureError(f"ssh -V says {said.strip()!r}, which is not OpenSSH")
    return int(found[1]), int(found[2])


def free_port() -> int:
    """A port that is not in use: sshd cannot report the port of a bind to 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Sshd:
    """One sshd on loopback for one account; `stop` ends it with every session."""

    def __init__(self, space: Workspace, name: str, host_key: Key, authorized: list[str], force_command: str, port: int = 0) -> None:
        self.port, self.account, self.host_key = port or free_port(), space.account, host_key
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # the chroot of sshd's unprivileged process
        keys = space.keys / f"{name}.authorized_keys"
        keys.write_text("".join(f"{line}\n" for line in authorized))
        lines = [
            f"ListenAddress 127.0.0.1:{self.port}",
            f"HostKey {host_key.private}",
            f"AuthorizedKeysFile {keys}",
            "PidFile none",
            "PermitRootLogin yes",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "StrictModes no",  # the keys are in a temporary folder
            "UsePAM no",
            "UseDNS no",
            "PrintMotd no",
            "PrintLastLog no",
            "LogLevel ERROR",
            "MaxStartups 20000",
            "MaxSessions 20000",
            "AcceptEnv GIT_PROTOCOL RELAY_*",
            f'SetEnv HOME="{space.home}"',  # where the account's shell looks for start-up files: none are there
            f"ForceCommand {force_command}",
        ]
        if version() >= PENALTIES_SINCE:
            lines.append("PerSourcePenalties no")
        config = space.root / f"{name}.conf"
        config.write_text("\n".join(lines) + "\n")
        self._argv, self._log = [program(), "-D", "-e", "-f", str(config)], space.logs / f"{name}.log"
        self.start()

    def start(self) -> None:
        """Also after `stop`, on the same port."""
        self.server = Server(self._argv, self._log, env={"PATH": os.environ["PATH"]})
        try:
            self.server.wait_for_port(self.port, START_SECONDS)
        except BaseException:
            self.server.stop()
            raise

    @property
    def pid(self) -> int:
        return self.server.pid

    def stop(self) -> None:
        self.server.stop()

    def kill(self) -> None:
        self.server.kill()


def git_host(space: Workspace, name: str, host_key: Key, authorized: list[str], port: int = 0) -> Sshd:
    """The upstream: the real git, and the stub services below `stub/`."""
    return Sshd(space, name, host_key, authorized, DISPATCH % {"git": shlex.quote(str(space.git))}, port)


def forwarding(space: Workspace, name: str, host_key: Key, authorized: list[str], ssh: list[str], account: Account) -> Sshd:
    """A relay of OpenSSH alone: every session runs `ssh` to the upstream with the client's command."""
    command = shlex.join(["exec", *ssh, f"{account.name}@127.0.0.1"]) + ' "$SSH_ORIGINAL_COMMAND"'
    return Sshd(space, name, host_key, authorized, command)
