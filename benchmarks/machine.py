"""The machine and the versions, for readers of the measurements."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = ("asyncssh", "ssh2-python", "uvloop", "cryptography")
QUIET_LOAD = 0.3


def describe() -> dict[str, str]:
    """Processor, kernel, and the versions of all programs and libraries that carry bytes."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    facts = {
        "processor": f"{len(os.sched_getaffinity(0))} x {cpu[1].strip() if cpu else platform.machine()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f} GB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "git": _said("git", "--version").removeprefix("git version "),
        "ssh": _said("ssh", "-V"),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["libssh2"] = _libssh2()
    return facts


def warning() -> str | None:
    """A warning if other processes use this machine's CPU, which ratios do not compensate."""
    load = os.getloadavg()[0]
    return f"the machine was not quiet: its load was {load:.2f} before the run began" if load > QUIET_LOAD else None


def commit() -> str:
    """The short commit of the measured sources; "" if they are no checkout."""
    try:
        return _said("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return ""


def _libssh2() -> str:
    """The version of the libssh2 that ssh2-python loads, and whether it is the hardened one; from a process of its own."""
    try:
        return _said(sys.executable, "-c", "from relay.upstream import libssh2; print(libssh2.loaded_library())").splitlines()[-1]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def _said(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30)
    return (done.stdout or done.stderr).strip()
