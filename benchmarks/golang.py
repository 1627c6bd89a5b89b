"""The two Go programs of the suite, built from the module versions that their go.sum pins."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).parent / "peers"
BUILD = Path(__file__).parent.parent / "build" / "benchmarks"
BUILD_SECONDS = 300


class Built(NamedTuple):
    """The program's path, with the versions that built it; or None, with the reason."""

    path: Path | None
    note: str


def build(name: str, folder: Path = BUILD) -> Built:
    """Build `benchmarks/peers/NAME`; does not raise if Go or the modules are missing."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    if go is None:
        return Built(None, "no Go toolchain was found")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    argv = [go, "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-o", str(target), "."]
    try:
        done = subprocess.run(argv, cwd=SOURCES / name, env=os.environ, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Built(None, f"go build took over {BUILD_SECONDS} s")
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        return Built(None, f"go build failed: {lines[-1]}")
    version = subprocess.run([go, "version"], capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    crypto = re.search(r"golang.org/x/crypto (v\S+)", (SOURCES / name / "go.mod").read_text())
    assert crypto is not None, "go.mod names golang.org/x/crypto"
    return Built(target, f"{version.removeprefix('go version ')}, x/crypto {crypto[1]}")
