"""Fuzzes the targets with Atheris (libFuzzer), a given time each: `python -m tests.fuzz.run --seconds 60`; exit 0, or 1 with the input."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Names only: the modules under test must not be imported before they are instrumented.
TARGETS = ("command", "proxy", "krl", "certificate", "options", "push", "fetch", "login", "conversation")
INSTRUMENTED = ["relay.git.command", "relay.admission.proxy_protocol", "relay.model", "relay.openssh.public_key"]
INSTRUMENTED += ["relay.openssh.krl", "relay.keys.certificate", "relay.keys.authorized_keys"]
INSTRUMENTED += [
    "relay.ssh.userauth",
    "relay.ssh.client_key",
    "relay.ssh.kex",
    "relay.ssh.packets",
    "relay.ssh.client_connection",
    "relay.connection",
]
INSTRUMENTED += ["relay.git.pktline", "relay.git.push_commands", "relay.git.fetch_request", "relay.git.refs"]
INSTRUMENTED += ["relay.git.conversation", "relay.git.v2_request"]

INPUT_LIMIT = 16_384  # bytes; above the longest command line and PROXY header
INPUT_SECONDS = 20  # for one input; more is a hang
GRACE_SECONDS = 120  # for start and instrumentation, beyond the time asked for


@dataclass
class Result:
    """The result of one target; `wrong` is empty, or libFuzzer's last output and the input that failed."""

    executions: int
    edges: int  # covered; more than a handful only when the code under test was instrumented
    wrong: str


def available() -> bool:
    return importlib.util.find_spec("atheris") is not None


def fuzz(target: str, seconds: int, folder: Path, module: str = "tests.fuzz.targets") -> None:
    """Runs one target, and ends this process with it: 0 when the time is up, else libFuzzer's status, with the input in `folder`."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=INSTRUMENTED):
        targets = importlib.import_module(module)
    corpus = folder / f"corpus-{target}"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.SEEDS[target]):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [f"-max_total_time={seconds}", f"-max_len={INPUT_LIMIT}", f"-timeout={INPUT_SECONDS}", f"-artifact_prefix={folder}/{target}-"]
    atheris.Setup(["fuzz", *options, str(corpus)], targets.TARGETS[target])
    atheris.Fuzz()


def supervise(target: str, seconds: int, folder: Path, module: str = "tests.fuzz.targets") -> Result:
    """Fuzzes a target of `module` in a process of its own, and reads its result from libFuzzer's output."""
    code = (
        "import sys, pathlib; from tests.fuzz.run import fuzz; fuzz(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]), sys.argv[4])"
    )
    command = [sys.executable, "-c", code, target, str(seconds), str(folder), module]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds + GRACE_SECONDS, check=False)
    said = done.stdout.decode("utf-8", "replace")
    ran = re.findall(r"^Done (\d+) runs? in|^stat::number_of_executed_units: *(\d+)|^#(\d+)\t", said, re.MULTILINE)
    edges = re.findall(r"\bcov: (\d+)", said)
    wrong = ""
    if done.returncode != 0 or "Done " not in said:
        found = [f"{path.name}: {path.read_bytes()!r}" for path in sorted(folder.glob(f"{target}-*"))]
        wrong = "\n".join([f"exit {done.returncode}", *said.splitlines()[-40:], *found])
    return Result(executions=int(max(ran[-1])) if ran else 0, edges=int(edges[-1]) if edges else 0, wrong=wrong)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one; may be repeated")
    parser.add_argument("--folder", type=Path, help="keeps the corpus from run to run, and an input that fails")
    arguments = parser.parse_args()
    if not available():
        print("atheris is not installed: pip install atheris")
        return 1
    failed = False
    with tempfile.TemporaryDirectory(prefix="relay-fuzz-") as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        for target in arguments.target or TARGETS:
            result = supervise(target, arguments.seconds, folder)
            outcome = "a failure" if result.wrong else "no failure"
            print(f"{target}: {result.executions:,} executions, {result.edges} edges covered, {outcome}", flush=True)
            if result.wrong:
                failed = True
                print(result.wrong, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
