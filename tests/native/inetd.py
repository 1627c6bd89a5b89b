"""An OpenSSH sshd in inetd mode behind a loopback connection: one process a connection, and no port to wait for."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

USER = getpass.getuser()
STOP_TIMEOUT = 60.0  # seconds until a terminated sshd must be gone


def new_key() -> tuple[bytes, bytes]:
    """A fresh ed25519 key: (private part in OpenSSH's format, public line)."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return private, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def supported(query: str) -> frozenset[str]:
    """The algorithms that this OpenSSH supports: `cipher`, `mac`, `kex` ... (ssh -Q)."""
    listed = subprocess.run(["ssh", "-Q", query], check=True, capture_output=True, text=True)
    return frozenset(listed.stdout.split())


class Sshd:
    """sshd with the given configuration lines; `connect` starts a process of its own for each connection."""

    def __init__(self, folder: Path, *options: str) -> None:
        """`folder` must be empty; it keeps keys, configuration and log."""
        program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None:
            raise FileNotFoundError("there is no sshd here: install openssh-server")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # the chroot of sshd's unprivileged process
        self._program = program
        self._config = folder / "sshd_config"
        self._log = folder / "sshd.log"
        self._children: list[subprocess.Popen[bytes]] = []
        host_private, _ = new_key()
        self.private_key, public = new_key()
        host_key, authorized = folder / "host_key", folder / "authorized_keys"
        host_key.write_bytes(host_private)
        host_key.chmod(0o600)
        authorized.write_bytes(public + b"\n")
        home = folder / "home"
        home.mkdir()
        lines = [
            *options,  # first, as sshd takes the first value of each
            f"HostKey {host_key}", f"AuthorizedKeysFile {authorized}", "PidFile none", "UsePAM no", "StrictModes no",
            f'SetEnv HOME="{home}"',  # else bash reads the start-up files of who runs the tests before each command
            "PermitRootLogin yes", "PasswordAuthentication no", "KbdInteractiveAuthentication no", "LogLevel VERBOSE",
        ]  # fmt: skip
        self._config.write_text("\n".join(lines) + "\n")

    def connect(self, send_buffer: int | None = None, server_buffer: int | None = None) -> socket.socket:
        """A client socket to a fresh sshd; the buffers are SO_SNDBUF/SO_RCVBUF in bytes, of the client's side and of sshd's."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            if server_buffer is not None:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, server_buffer)  # before accept: it fixes the TCP window
            client = socket.socket()
            if send_buffer is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            client.connect(listener.getsockname())
            served, _ = listener.accept()
        with served, self._log.open("ab") as log:
            command = [self._program, "-i", "-e", "-f", str(self._config)]
            environment = {"PATH": os.environ["PATH"]}  # without LD_PRELOAD: a sanitizer is for the client only
            self._children.append(subprocess.Popen(command, stdin=served.fileno(), stdout=served.fileno(), stderr=log, env=environment))
        return client

    @property
    def log(self) -> str:
        """Everything that the processes have logged."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for child in self._children:
            child.terminate()
            child.wait(STOP_TIMEOUT)
