"""requirements/: the pins of constraints.txt with the checksum of each file, for running, development and fuzzing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "requirements").glob("*.txt"))


def pins() -> dict[str, str]:
    return dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())


def requirements(path: Path) -> dict[str, tuple[str, list[str]]]:
    """name -> version and checksums"""
    found = {}
    for block in re.split(r"\n(?=\S)", path.read_text().strip()):
        head, *rest = re.split(r"\s*\\\n\s*", block)
        name, _, version = head.partition("==")
        found[name] = (version, rest)
    return found


def test_every_pin_is_in_a_file() -> None:
    named = {name.lower().replace("_", "-") for path in FILES for name in requirements(path)}
    assert named == {name.lower().replace("_", "-") for name in pins()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_has_the_version_of_its_pin_and_checksums(path: Path) -> None:
    known = {name.lower().replace("_", "-"): version for name, version in pins().items()}
    for name, (version, hashes) in requirements(path).items():
        assert version == known[name.lower().replace("_", "-")], f"{name}: run scripts/pins"
        assert hashes, name
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), name


def test_what_runs_is_part_of_what_developers_have() -> None:
    run, dev = (requirements(ROOT / "requirements" / f"{name}.txt") for name in ("run", "dev"))
    assert run.items() <= dev.items()
    assert {"asyncssh", "ssh2-python", "uvloop", "msgspec", "prometheus-client", "aiohttp", "redis", "rich", "setuptools"} <= set(run)
    assert not {"pytest", "mypy", "atheris"} & set(run)


@pytest.mark.parametrize("path", [*FILES, ROOT / "constraints.txt"], ids=lambda path: path.stem)
def test_no_address_of_an_index_is_in_it(path: Path) -> None:
    assert "://" not in path.read_text()
    assert not re.search(r"^\s*-(?!-hash)", path.read_text(), re.M), "options of pip"


def test_nothing_that_is_needed_is_missing_here() -> None:
    """--no-deps installs only listed packages, so the list must be complete for this Python, too."""
    command = [sys.executable, "-m", "pip", "check", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
