"""Git hosts other than OpenSSH's sshd, with the same repositories, stub services and methods as tests.support.sshd.Sshd.

with Dropbear() as host: ...        # as root only: Dropbear reads a home's .ssh/authorized_keys, so a user is made, and removed again
with AsyncsshHost() as host: ...    # asyncssh, in a process of its own; rekey_bytes is how often it exchanges keys anew
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.sshd import STOP_TIMEOUT, Sshd

RECEIVE_WINDOW = 1 << 20  # bytes; Dropbear's default of 24 KiB would dominate the measurement


class HostMissing(RuntimeError):
    """This git host cannot be started on this machine; the text says why."""


class Dropbear(Sshd):
    """Dropbear with sshd's script as its forced command; it passes no variable of the client to it.

    Its sessions cannot be counted or signalled apart from the listener.
    """

    def __init__(self, **options: Any) -> None:
        program = shutil.which("dropbear", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
        if program is None or shutil.which("dropbearconvert") is None:
            raise HostMissing("dropbear is not installed (Debian's package dropbear-bin)")
        if os.geteuid() != 0:
            raise HostMissing("dropbear needs a user of its own, which only root may make")
        self._dropbear = program
        self._account = f"relay-{secrets.token_hex(6)}"
        # with -p '*' the account is not locked, though it has no password
        subprocess.run(["useradd", "--no-create-home", "--home-dir", "/nonexistent", "-s", "/bin/sh", "-p", "*", self._account], check=True)
        try:
            super().__init__(user=self._account, **options)
            home = self.folder / "login"
            (home / ".ssh").mkdir(parents=True)
            subprocess.run(["usermod", "--home", home, self._account], check=True)
        except BaseException:
            self._remove_account()
            raise

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._remove_account()

    def authorize(self, *lines: str) -> None:
        """Dropbear reads the file in the user's home only, which must belong to the user."""
        super().authorize(*lines)
        self._install_keys()

    def listening(self) -> str:
        return r"Not backgrounding"

    def environment(self) -> dict[str, str]:
        return {**super().environment(), **self._environment()}

    def arguments(self) -> list[str]:
        self._install_keys()
        host_key = self.folder / "host_key.dropbear"
        subprocess.run(["dropbearconvert", "openssh", "dropbear", self.host_key.private, host_key], check=True, capture_output=True)
        command = f"exec /bin/sh {shlex.quote(str(self._state / 'services.sh'))}"
        options = ["-F", "-E", "-s", "-m", "-e", "-W", str(RECEIVE_WINDOW), "-p", f"{self.address}:{self.port}"]
        return [self._dropbear, *options, "-P", str(self.folder / "pid"), "-r", str(host_key), "-c", command]

    def _install_keys(self) -> None:
        home = self.folder / "login"
        if home.exists():
            shutil.copy(self._authorized_keys, home / ".ssh" / "authorized_keys")
            for path in (home, home / ".ssh", home / ".ssh" / "authorized_keys"):
                shutil.chown(path, self._account)
                path.chmod(0o600 if path.is_file() else 0o700)

    def _remove_account(self) -> None:
        subprocess.run(["userdel", self._account], check=True, capture_output=True, timeout=STOP_TIMEOUT)


class AsyncsshHost(Sshd):
    """Accepts the user who runs the tests. Its sessions cannot be counted or signalled apart from the listener."""

    def __init__(self, rekey_bytes: int = 1 << 30, **options: Any) -> None:
        self._rekey_bytes = rekey_bytes
        super().__init__(**options)

    def listening(self) -> str:
        return r"listening"

    def environment(self) -> dict[str, str]:
        return {**super().environment(), **self._environment(), "PYTHONPATH": str(Path(__file__).parents[2])}

    def arguments(self) -> list[str]:
        program = [sys.executable, "-m", "tests.support.asyncssh_host", self.address, str(self.port), str(self._rekey_bytes)]
        return [*program, str(self.host_key.private), str(self._authorized_keys), str(self._state / "services.sh")]
