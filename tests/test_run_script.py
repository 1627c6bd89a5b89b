"""`make run` on a fresh clone: it tells its steps, and the demo runs while libssh2 is built; pip, build and demo are stand-ins."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.wait import wait_until

ROOT = Path(__file__).parents[1]
# `python -m venv` makes an environment whose python knows pip; "slow" holds pip back
PYTHON = """#!/bin/sh
case "$*" in
"-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp demo .venv/bin/relay ;;
*"pip"*"install"*"requirements"*)
    echo "$*" >>asked
    for name in a b c; do echo "Collecting $name"; done
    trap 'touch pip-ended; exit 143' TERM
    while [ -e slow ]; do touch pip-runs; sleep 0.1; done ;;
*"pip"*) echo "$*" >>asked ;;
esac
"""
BUILD = """#!/bin/sh
case ${1-} in
--check) [ ! -e no-compiler ] || { echo "native: the hardened libssh2 cannot be built: apt-get install gcc" >&2; exit 1; } ;;
--if-built) [ -e built ] || exit 3 ;;
*)
    trap 'touch ended; exit 143' TERM
    touch building
    while ! [ -e finish ]; do sleep 0.1; done
    [ ! -e broken ] || { echo "native: the build failed" >&2; exit 1; }
    touch built ;;
esac
"""
# like the real one it ends with 0 on Ctrl-C; it ends by itself only when the build has begun: `make run` must not wait for its end
DEMO = """#!/bin/sh
trap 'exit 0' INT
echo "$*"
while [ -e wait-for-build ] && ! [ -e building ]; do sleep 0.1; done
touch shown
while [ -e interactive ]; do sleep 0.1; done
exit "$(cat status 2>/dev/null || echo 0)"
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("scripts/setup", "scripts/run", "requirements/run.txt", "requirements/dev.txt", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "native").mkdir()
    for path, text in (("python", PYTHON), ("native/build.sh", BUILD), ("demo", DEMO)):
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o755)
    return tmp_path


def start(tree: Path, *arguments: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHON": str(tree / "python"), "RELAY_NATIVE": "1"}
    command = [str(tree / "scripts/run"), *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def run(tree: Path, *arguments: str) -> tuple[int, list[str]]:
    process = start(tree, *arguments)
    said, _ = process.communicate(timeout=120)
    return process.returncode, said.splitlines()


def test_each_step_is_told_and_the_demo_runs_while_the_library_is_built(tree: Path) -> None:
    (tree / "wait-for-build").touch()
    process = start(tree, "--once")
    wait_until(lambda: (tree / "shown").exists(), message="the demo has ended, and the build has not")
    (tree / "finish").touch()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    packages = len(re.findall(r"^\w", (tree / "requirements/run.txt").read_text(), re.MULTILINE))
    lines = [line for line in said.splitlines() if "waiting for the hardened" not in line]
    assert [line.partition(" with ")[0] for line in lines] == [
        "setup: 1 of 4: making .venv",
        f"setup: 2 of 4: installing {packages} pinned packages into .venv",
        "setup: 3 of 4: installing the relay itself",
        "run: building libssh2",
        "run: 4 of 4: starting the demo",
        "demo --once",
        "run: the hardened libssh2 is installed",
    ]
    asked = (tree / "asked").read_text()
    assert "requirements/run.txt" in asked and "requirements/dev.txt" not in asked


def test_the_second_time_nothing_is_told_but_the_demo(tree: Path) -> None:
    (tree / "finish").touch()
    run(tree)
    assert run(tree, "--once") == (0, ["demo --once"])


def test_where_nothing_can_be_built_the_demo_runs_and_the_reason_is_told(tree: Path) -> None:
    (tree / "no-compiler").touch()
    status, lines = run(tree)
    assert status == 0
    assert lines[-3:] == ["native: the hardened libssh2 cannot be built: apt-get install gcc", "run: 4 of 4: starting the demo", "demo"]


def test_a_build_that_fails_is_told_after_the_demo(tree: Path) -> None:
    for name in ("broken", "finish"):
        (tree / name).touch()
    status, lines = run(tree)
    assert status == 0
    assert lines[-2:] == ["native: the build failed", "run: the hardened libssh2 could not be built, see build/native.log"]


def test_the_status_is_that_of_the_demo_and_its_failure_ends_the_build(tree: Path) -> None:
    (tree / "wait-for-build").touch()
    (tree / "status").write_text("1")
    assert run(tree, "--once")[0] == 1
    wait_until(lambda: (tree / "ended").exists(), message="the build was ended")


def test_ctrl_c_ends_the_demo_and_the_build(tree: Path) -> None:
    for name in ("interactive", "wait-for-build"):
        (tree / name).touch()
    process = start(tree)
    wait_until(lambda: (tree / "shown").exists(), message="the demo runs")
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 0
    wait_until(lambda: (tree / "ended").exists(), message="the build was ended")
    assert not (tree / "built").exists()


def test_a_slow_installation_tells_how_far_it_is(tree: Path) -> None:
    (tree / "slow").touch()
    (tree / "finish").touch()
    process = start(tree, "--once")
    assert process.stdout is not None
    told = next(line for line in process.stdout if "looked at" in line)
    (tree / "slow").unlink()
    process.communicate(timeout=120)
    assert told.startswith("setup: 2 of 4: 3 of ") and " packages looked at, " in told


def test_ctrl_c_ends_an_installation(tree: Path) -> None:
    """What is installed is not taken for complete: the next time goes on with it."""
    (tree / "slow").touch()
    process = start(tree)
    wait_until(lambda: (tree / "pip-runs").exists(), message="pip runs")
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT)
    wait_until(lambda: (tree / "pip-ended").exists(), message="pip was ended")
    assert not (tree / ".venv/.installed").exists()


def test_an_environment_for_developers_does_for_the_demo(tree: Path) -> None:
    (tree / "finish").touch()
    env = {**os.environ, "PYTHON": str(tree / "python"), "RELAY_NATIVE": "0"}
    done = subprocess.run([tree / "scripts/setup"], env=env, capture_output=True, text=True, check=True)
    assert [line[:15] for line in done.stderr.splitlines()] == ["setup: 1 of 3: ", "setup: 2 of 3: ", "setup: 3 of 3: "]
    (tree / "asked").unlink()
    run(tree)
    assert not (tree / "asked").exists()
