"""What a test sshd needs of the machine: the program, a port, the user who runs the tests."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import socket
import sys
from pathlib import Path


class SshdMissingError(RuntimeError):
    """sshd is not installed on this machine."""


def sshd_program() -> str:
    program = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"]))
    if program is None:
        raise SshdMissingError("sshd is missing: install the package openssh-server (make test does: apt-get install openssh-server)")
    return program


def free_port(address: str = "127.0.0.1") -> int:
    """A port that is not in use, below the range of outgoing connections, so that the kernel gives it to none of them."""
    first_ephemeral = 32768
    range_file = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if range_file.exists():
        first_ephemeral = int(range_file.read_text().split()[0])
    lowest = 15000 if first_ephemeral > 20000 else 61001
    highest = first_ephemeral - 1 if first_ephemeral > 20000 else 65535
    while True:
        port = random.SystemRandom().randint(lowest, highest)
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port


def current_user() -> str:
    """The user of the effective user id: $USER and $LOGNAME may be stale after setpriv or su."""
    return pwd.getpwuid(os.geteuid()).pw_name


def python_for(user: str) -> str:
    """An interpreter that `user` may run: this one may be in the home of the user who runs the tests."""
    own = os.path.realpath(sys.executable)
    if user == current_user():
        return own
    return shutil.which("python3", path="/usr/bin:/bin:/usr/local/bin") or own
