"""A report about an operation that hangs: the relay's sessions, the sockets of both sides with their queues, and every process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from tests.soak.site import Site

LOG_SHOWN = 20_000  # characters
COMMAND_SHOWN = 2_000  # characters
TOOL_SECONDS = 20.0


def describe(site: Site, client: int) -> str:
    """The report's text; `client` is the process group of the operation. Blocks."""
    ports = {"client": site.front.port, "relay": site.relay.port, "back": site.back.port, "sshd": site.sshd.port}
    theirs = [process for process in psutil.process_iter() if _group(process) == client]
    sshd = psutil.Process(site.sshd.pid)
    return "\n".join(
        [
            "== sessions of the relay",
            _run([sys.executable, "-m", "relay", "sessions", "-c", str(site.relay.config_file), "--json"]),
            f"== sockets; ports: {ports}",
            _sockets(ports.values()),
            "== the client's processes",
            *map(_process, theirs),
            "== the relay's processes",
            *map(_process, site.relay.processes()),
            "== the git host's processes",
            *map(_process, [sshd, *sshd.children(recursive=True)]),
            "== the end of the relay's log",
            site.relay.log_text()[-LOG_SHOWN:],
        ]
    )


def _group(process: psutil.Process) -> int:
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[2])


def _process(process: psutil.Process) -> str:
    folder = Path(f"/proc/{process.pid}")
    lines = []
    try:
        with process.oneshot():
            lines.append(f"{process.pid} (parent {process.ppid()}) {process.status()} {' '.join(process.cmdline())[:COMMAND_SHOWN]}")
        lines.append(f"    waits in {(folder / 'wchan').read_text()}")
        lines += [f"    {entry.name} -> {entry.readlink()}" for entry in sorted((folder / "fd").iterdir(), key=lambda one: int(one.name))]
    except (psutil.Error, OSError) as error:  # it ended meanwhile, or is another user's
        lines.append(f"{process.pid}: {error}")
    return "\n".join(lines)


def _sockets(ports: Iterable[int]) -> str:
    """From ss, with timers, windows and processes; else from the kernel's table, with state and queues."""
    if shutil.which("ss"):
        return _run(["ss", "-tinpaH", " or ".join(f"sport = :{port} or dport = :{port}" for port in ports)])
    wanted = [f":{port:04X} " for port in ports]
    table = Path("/proc/net/tcp").read_text().splitlines()
    return "\n".join([table[0], *(line for line in table[1:] if any(port in line for port in wanted))])


def _run(arguments: list[str]) -> str:
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=TOOL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout + done.stderr
