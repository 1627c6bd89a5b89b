"""Compares the CPU time of libssh2 builds: bulk data from and to a real sshd, one cipher at a time, the builds in turn.

    native/measure.py stock=/path/to/python hardened=/path/to/other/python [--megabytes 512] [--rounds 3] [--cipher NAME ...]

Each build is named by a Python whose environment holds it. A transfer runs in a process of its own, which counts its
own CPU time (user and system, without sshd's); the builds take turns (A B A B). What is printed is the median in CPU seconds
per GB, the spread, and the ratio to the first build.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests' sshd and client, whichever Python runs this

from tests.native.client import CHUNK, EAGAIN, READ_SIZE, Client
from tests.native.inetd import USER, Sshd

CIPHERS = {
    "aes128-gcm": ("aes128-gcm@openssh.com", ""),
    "aes256-ctr": ("aes256-ctr", "hmac-sha2-256"),
    "chacha20": ("chacha20-poly1305@openssh.com", ""),
}


def cpu_seconds() -> float:
    """User and system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def transfer(direction: str, name: str, size: int) -> float:
    """Move `size` bytes `down` or `up`; the CPU seconds that it took, without the login."""
    cipher, mac = CIPHERS[name]
    with tempfile.TemporaryDirectory() as folder, Sshd(Path(folder)) as sshd, Client(sshd.connect()) as client:
        client.handshake(cipher, mac)
        client.login(USER, sshd.private_key)
        if direction == "down":
            client.execute(f"head -c {size} /dev/zero")
            before = cpu_seconds()
            read, moved = client.channel.read, 0
            while moved < size:
                rc, data = read(READ_SIZE)
                moved += len(data)
                if rc == EAGAIN:
                    client.wait()
                elif rc == 0:
                    raise EOFError(f"{moved} of {size} bytes")
            return cpu_seconds() - before
        client.execute(f"head -c {size} >/dev/null")
        block = bytes(CHUNK)
        before = cpu_seconds()
        for _ in range(size // CHUNK):
            client.write(block)
        return cpu_seconds() - before


def main() -> None:
    """Read the arguments; without builds, be the process that moves the data."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("builds", nargs="*", metavar="NAME=PYTHON")
    parser.add_argument("--megabytes", type=int, default=512, help="moved by each transfer")
    parser.add_argument("--rounds", type=int, default=3, help="transfers of each kind for each build")
    parser.add_argument("--cipher", nargs="+", choices=CIPHERS, default=list(CIPHERS))
    parser.add_argument("--direction", choices=["down", "up"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = options.megabytes * 1_000_000
    if options.direction:
        print(transfer(options.direction, options.cipher[0], size) / size * 1e9)
        return
    builds = dict(build.split("=", 1) for build in options.builds)
    if not builds:
        parser.error("name at least one build")
    for cipher in options.cipher:
        for direction in ("down", "up"):
            seen: dict[str, list[float]] = {name: [] for name in builds}
            for _ in range(options.rounds):
                for name, python in builds.items():
                    command = [*python.split(), __file__, "--direction", direction, "--cipher", cipher]
                    command += ["--megabytes", str(options.megabytes)]
                    seen[name].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            base = statistics.median(next(iter(seen.values())))
            for name, values in seen.items():
                middle = statistics.median(values)
                print(
                    f"{cipher:11} {direction:4} {name:12} {middle:6.3f} CPU s/GB  ({min(values):.3f} to {max(values):.3f})"
                    f"  {base / middle:5.2f} x {next(iter(seen))}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
