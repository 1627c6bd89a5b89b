"""native/: the build is that of the patches, and a missing tool is reported in one line."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.native.client import library, relay_build

ROOT = Path(__file__).resolve().parents[2]
PATCHES = sorted((ROOT / "native/patches").glob("*.patch"))
EXPORTED = ["libssh2_relay_build", "libssh2_channel_has_exit_status", "libssh2_channel_setenv_noreply"]


def named() -> str:
    """The name that the patches give the library."""
    patch = (ROOT / "native/patches/0002-relay-build-name.patch").read_text()
    found = re.search(r'^\+#define LIBSSH2_RELAY_BUILD "(relay-\d+)"$', patch, re.M)
    assert found is not None
    return found[1]


def test_library_is_that_of_the_patches(hardened: str) -> None:
    """The loaded library was built from the patches of this tree, as its wheel also says, and exports the added functions."""
    assert hardened == named(), "native/build.sh has not been run since the patches changed"
    assert version("git-ssh-relay-native") == f"1.11.1.{named().removeprefix('relay-')}"
    for name in EXPORTED:
        assert getattr(library(), name)


def test_the_version_of_the_package_is_that_of_the_library_and_its_build() -> None:
    package = tomllib.loads((ROOT / "native/package/pyproject.toml").read_text())["project"]
    assert package["version"] == f"1.11.1.{named().removeprefix('relay-')}"
    relay = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert relay["optional-dependencies"]["native"] == [f"git-ssh-relay-native>={package['version']}"]
    assert package["requires-python"] == relay["requires-python"]


def test_stock_library_exports_none_of_it() -> None:
    """A stock library does not have the symbols that identify the hardened one."""
    if relay_build() is None:
        assert not any(hasattr(library(), name) for name in EXPORTED)


def test_source_is_the_pinned_one() -> None:
    """The version whose checksum is recorded is the one that constraints.txt pins."""
    recorded = dict(line.split(maxsplit=1) for line in (ROOT / "native/sdist").read_text().splitlines())
    assert f"ssh2-python=={recorded['version']}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert re.fullmatch(r"[0-9a-f]{64}", recorded["sha256"])


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_patch_says_what_why_and_how_it_was_tested(patch: Path) -> None:
    """Each header is complete, and the tests that it names exist."""
    header = patch.read_text().partition("\ndiff --git ")[0]
    assert re.match(r"What: .+\nWhy: .+\nTested: .+", header, re.S), header
    tested = header.partition("Tested: ")[2]
    for name in re.findall(r"\btest_\w+\.py", tested):
        assert list(ROOT.glob(f"tests/**/{name}")), name


def test_patches_are_numbered() -> None:
    """The build applies patches in the order of their names; 0001 was about a build that package/setup.py has replaced."""
    assert [int(path.name[:4]) for path in PATCHES] == list(range(2, len(PATCHES) + 2))


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    """Without patch, --check names the package and fails; nothing is built."""
    for tool in ("sh", "sed", "dirname", "cc", "cat", "ls"):
        found = next(Path(folder, tool) for folder in os.environ["PATH"].split(":") if Path(folder, tool).exists())
        (tmp_path / tool).symlink_to(found.resolve() if tool != "cc" else found)
    checked = subprocess.run(
        [ROOT / "native/build.sh", "--check", sys.prefix], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 1
    assert re.fullmatch(r"native: .*apt-get install.* patch.*\n", checked.stderr), checked.stderr


def test_nothing_of_a_source_with_another_checksum_is_run(tmp_path: Path) -> None:
    """pip runs a source's setup.py to get its name: an attacker who replaced the download could run code with that."""
    tree, index, ran = tmp_path / "tree", tmp_path / "index", tmp_path / "ran"
    shutil.copytree(ROOT / "native", tree / "native")
    shutil.copy(ROOT / "constraints.txt", tree)
    with (tree / "native/source.sh").open("a") as script:
        script.write("# another mark than that of the library which is installed\n")
    index.mkdir()
    pinned = dict(line.split(maxsplit=1) for line in (ROOT / "native/sdist").read_text().splitlines())["version"]
    with tarfile.open(index / f"ssh2_python-{pinned}.tar.gz", "w:gz") as sdist:
        for name, text in (
            ("setup.py", f"open({str(ran)!r}, 'w')\nfrom setuptools import setup\nsetup(name='ssh2-python', version={pinned!r})\n"),
            ("PKG-INFO", f"Metadata-Version: 1.0\nName: ssh2-python\nVersion: {pinned}\n"),
        ):
            member = tarfile.TarInfo(f"ssh2_python-{pinned}/{name}")
            member.size = len(text)
            sdist.addfile(member, io.BytesIO(text.encode()))
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    built = subprocess.run([tree / "native/build.sh", sys.prefix], env=environment, capture_output=True, text=True, check=False)
    assert not ran.exists(), "setup.py was run"
    assert built.returncode == 1
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in built.stderr
    assert "SHA-256 that native/sdist names could not be had" in built.stderr.splitlines()[-1]
