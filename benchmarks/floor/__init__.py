"""The floor: the least CPU time that any relay must spend for a gigabyte and for a session, measured by floor.c beside the contenders.

A yardstick, no contender: it knows what its peers will say, and serves one at a time.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.golang import BUILD, Built
from benchmarks.processes import MeasureError

SOURCE = Path(__file__).with_name("floor.c")
BUILD_SECONDS = 120
RUN_SECONDS = 320  # the program ends itself after 300
READ_BYTES = 256 * 1024  # at most, of a recv: larger ones leave the cache
PACKET_BYTES = {"down": 32_768, "up": 32_700}  # of data, as the git host's sshd sends and as the relay lets a client send
NO_KEM_STATUS = 3
NAME = "floor"
ABOUT = "the least that any relay must do, in C on OpenSSL, no protocol behind it"


class Figures(msgspec.Struct, frozen=True):
    """What floor.c prints: bytes or sessions, their CPU time and duration in seconds, and how many system calls moved them."""

    count: int
    cpu_seconds: float
    seconds: float
    calls: int


class Floor(NamedTuple):
    path: Path
    mlkem: bool  # whether its OpenSSL has ML-KEM-768 (from 3.5 on)

    def bulk(self, direction: str, size: int) -> Figures:
        """One stream of `size` bytes by aes128-gcm@openssh.com. Raises MeasureError when a byte is missing."""
        return self._run("bulk", str(size), str(PACKET_BYTES[direction]), str(READ_BYTES))

    def sessions(self, count: int, *, mlkem: bool = False) -> Figures:
        """`count` sessions one after another, with X25519, with `mlkem` ML-KEM-768 as well. Raises MeasureError when one fails."""
        return self._run("sessions", str(count), *(["mlkem"] if mlkem else []))

    def _run(self, *words: str) -> Figures:
        try:
            done = subprocess.run([str(self.path), *words], capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise MeasureError(f"floor {' '.join(words)} took over {RUN_SECONDS} s") from None
        if done.returncode != 0:
            raise MeasureError(done.stderr.strip() or f"floor {' '.join(words)} ended with {done.returncode}")
        return msgspec.json.decode(done.stdout, type=Figures)


def build(folder: Path = BUILD) -> Built:
    """Builds floor.c; does not raise if there is no compiler or no OpenSSL."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return Built(None, "no C compiler was found")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / NAME
    argv = [compiler, "-std=c11", "-O2", "-o", str(target), str(SOURCE), "-lcrypto"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Built(None, f"the compiler took over {BUILD_SECONDS} s")
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [f"status {done.returncode}"]
        return Built(None, f"the compiler says: {lines[0].strip()}")
    return Built(
        target, subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()[0]
    )


def opened(path: Path) -> Floor:
    """Asks the program whether its OpenSSL has ML-KEM-768. Raises MeasureError if it does not work at all."""
    done = subprocess.run([str(path), "sessions", "1", "mlkem"], capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    if done.returncode not in (0, NO_KEM_STATUS):
        raise MeasureError(done.stderr.strip() or f"floor ended with {done.returncode}")
    return Floor(path, mlkem=done.returncode == 0)
