"""Runs make targets that run pytest; tests that failed run once more, alone, and are named at the end.

    python scripts/once_more.py debug test-stock test

A last net only: a test that fails now and then is a fault of the test or of the relay. Prints, as the last lines, the tests that needed a
second run and the ones that failed twice, and then the closing line of the last pytest ("4100 passed, 9 skipped in 550 s"). Ends with 1
when anything failed twice, or when pytest ended for another reason than failed tests.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

TESTS_FAILED = 1  # pytest's exit status; any other but 0 (interrupted, internal error, bad usage, no tests) is no matter of flaky tests
FLAKY_MOST = 20  # more than this is no flake, and takes too long alone
ALONE = "-n 0 --last-failed --last-failed-no-failures none"
GROUP = re.compile(r"@\w+$")  # xdist appends it to the id of a test that belongs to a group; without xdist the id has none
MAKE_SAYS = re.compile(r"make(?:\[\d+\])?: \*\*\* \[.*\] Error (\d+)")  # the exit status of the command; make itself ends with 2
NOT_RUN = -1  # make did not get as far as pytest
CACHES = Path("build") / "once-more"


@dataclass
class Run:
    """One target. `again` passed the second time, `twice` did not; `broken` says why nothing could be run again."""

    target: str
    again: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    broken: str = ""
    closing: str = ""

    @property
    def passed(self) -> bool:
        return not self.twice and not self.broken


def run(target: str) -> Run:
    cache = CACHES / target
    shutil.rmtree(cache, ignore_errors=True)  # what failed in an earlier run is not of interest
    this = Run(target)
    status = _make(this, cache, "")
    if status == 0:
        return this
    if status != TESTS_FAILED:
        this.broken = "did not get as far as its tests" if status == NOT_RUN else f"ended with status {status}, see above"
        return this
    failed = _failed(cache)
    if not failed:
        this.broken = "failed, and no test did"
    elif files := [test for test in failed if "::" not in test]:
        this.broken = f"not all tests ran: {', '.join(files)} could not be collected"
    elif len(failed) > FLAKY_MOST:
        this.broken = f"{len(failed)} tests failed, too many to run once more"
    else:
        print(f"{this.closing}\nonce-more: {target}: once more, alone: {', '.join(failed)}", flush=True)
        _keep(cache, failed)
        again = _make(this, cache, ALONE)
        this.twice = _failed(cache)  # pytest takes out what passed; a test that was not found stays
        this.again = [test for test in failed if test not in this.twice]
        if again != 0 and not this.twice:
            this.broken = f"the second run ended with status {again}, see above"
    return this


def _make(this: Run, cache: Path, arguments: str) -> int:
    """pytest's exit status. Passes the output on, but for pytest's closing line, which becomes `this.closing`."""
    env = {
        **os.environ,
        "LC_ALL": "C.UTF-8",  # make's own words are read here
        "PYTEST_ADDOPTS": f"{os.environ.get('PYTEST_ADDOPTS', '')} -o {shlex.quote(f'cache_dir={cache.absolute()}')}".strip(),
        "PYTEST_ARGS": f"{os.environ.get('PYTEST_ARGS', '')} {arguments}".strip(),
    }
    held, status = "", None
    command = ["make", this.target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=env) as make:
        assert make.stdout is not None
        for line in make.stdout:
            if ended := MAKE_SAYS.match(line):
                status = int(ended[1])
            elif line.strip():
                print(held, end="", flush=True)
                held = line
    this.closing = held.rstrip("\n")
    if make.returncode == 0:
        return 0
    return NOT_RUN if status is None else status


def _failed(cache: Path) -> list[str]:
    """The ids of the tests that failed, as pytest without xdist has them."""
    try:
        kept: dict[str, bool] = json.loads((cache / "v" / "cache" / "lastfailed").read_text())
    except FileNotFoundError:
        return []
    return sorted({GROUP.sub("", test) for test in kept})


def _keep(cache: Path, failed: list[str]) -> None:
    (cache / "v" / "cache" / "lastfailed").write_text(json.dumps(dict.fromkeys(failed, True)))


def main(targets: list[str]) -> int:
    runs = [run(target) for target in targets]
    for one in runs:
        for test in one.again:
            print(f"once-more: {one.target}: passed only when run once more: {test}")
        for test in one.twice:
            print(f"once-more: {one.target}: failed twice: {test}")
        if one.broken:
            print(f"once-more: {one.target}: {one.broken}")
    print(runs[-1].closing, flush=True)
    return 0 if all(one.passed for one in runs) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
