"""`python -m tests.soak --minutes 10`: prints the report, and exits with status 1 if it has problems."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
from pathlib import Path

from tests.soak.soak import soak

REPORTS = Path(__file__).resolve().parents[2] / "build" / "soak"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.soak", description="mixed load through a relay under random faults")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32), help="of what is done when; printed")
    parser.add_argument("--reports", type=Path, default=REPORTS, help="folder for what there is to see of operations that hang")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        report = asyncio.run(soak(given.minutes * 60, Path(folder), given.seed, given.reports, lambda line: print(line, flush=True)))
    print(report, flush=True)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
