"""The real fail2ban-regex on a relay's log; nothing is banned and no service runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILTER = ROOT / "deploy" / "fail2ban" / "filter.d" / "relay.conf"
UNPACKED = ROOT / "build" / "fail2ban"  # unpacked there by scripts/peers


def command() -> list[str]:
    """Raises FileNotFoundError if fail2ban-regex is not installed."""
    if installed := shutil.which("fail2ban-regex"):
        return [installed]
    unpacked = UNPACKED / "usr" / "bin" / "fail2ban-regex"
    if not unpacked.exists():
        raise FileNotFoundError("there is no fail2ban-regex: run scripts/peers")
    return ["/usr/bin/python3", str(unpacked)]


def matches(log: Path) -> list[tuple[float, str]]:
    """(seconds since the epoch, address) of each line that the filter matches, in order."""
    env = {**os.environ, "PYTHONPATH": str(UNPACKED / "usr" / "lib" / "python3" / "dist-packages"), "LC_ALL": "C.UTF-8"}
    arguments = [*command(), "--usedns=no", "-o", "<time> <ip>", str(log), str(FILTER)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False, env=env)
    assert done.returncode in (0, 1) and "ERROR" not in done.stderr, done.stderr  # 1: nothing matched
    found = [line.split() for line in done.stdout.splitlines()]
    return [(float(seconds), address) for seconds, address in found]
