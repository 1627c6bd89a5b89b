"""What is published: complete source distributions, and wheels that a relay with all native parts is installed from without an index."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
THIRD_PARTY = ROOT / "build/third-party"
MADE_BY_SETUPTOOLS = {"PKG-INFO", "setup.cfg"}

pytestmark = pytest.mark.xdist_group("dist")


def script(name: str) -> str:
    done = subprocess.run([ROOT / "scripts" / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def unpacked(archive: Path, folder: Path) -> Path:
    subprocess.run(["tar", "-xzf", archive, "--directory", folder], check=True)
    [tree] = folder.iterdir()
    return tree


def contents(tree: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name not in MADE_BY_SETUPTOOLS and ".egg-info/" not in name}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The unpacked source distributions of the relay and of its native part."""
    names = re.findall(r"^dist: dist/(\S+)$", script("dist"), re.MULTILINE)
    assert len(names) == 2, names
    relay, native = (unpacked(DIST / name, tmp_path_factory.mktemp("source")) for name in names)
    yield relay, native


def test_the_source_distribution_of_the_relay_has_every_file(sources: tuple[Path, Path]) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: git cannot say which files belong to the source")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = {name: (ROOT / name).read_bytes() for name in listed.split("\0") if name and (ROOT / name).is_file()}
    found = contents(sources[0])
    assert sorted(found) == sorted(expected)
    assert found == expected
    for part in ("native/patches", "native/package", "requirements", "deploy", "grafana", "docs", "tests", "scripts"):
        assert any(name.startswith(f"{part}/") for name in found), part
    assert {"constraints.txt", "Dockerfile", "Makefile", ".ci/run", "LICENSE"} <= set(found)


def test_scripts_that_are_run_are_executable_in_it(sources: tuple[Path, Path]) -> None:
    for name in ("scripts/setup", "scripts/peers", "native/build.sh", "native/source.sh", ".ci/run"):
        assert os.access(sources[0] / name, os.X_OK), name


def test_a_source_distribution_made_of_an_unpacked_one_has_the_same_files(sources: tuple[Path, Path], tmp_path: Path) -> None:
    """Without git: scripts/tree leaves out what was built there."""
    tree = tmp_path / "tree"
    shutil.copytree(sources[0], tree)
    for built in (".venv/bin/python", "build/x", "dist/y", "relay/__pycache__/z.pyc"):
        (tree / built).parent.mkdir(parents=True)
        (tree / built).write_text("")
    subprocess.run([tree / "scripts/tree", tmp_path / "copy"], check=True)
    assert sorted(contents(tmp_path / "copy")) == sorted(contents(sources[0]))


def test_the_source_distribution_of_the_native_part_has_what_it_is_built_of(sources: tuple[Path, Path]) -> None:
    found = contents(sources[1])
    for name in (
        *("setup.py", "pyproject.toml", "libssh2_config.h", "relay_gcm.c", "libssh2/src/kex.c", "libssh2/include/libssh2.h"),
        *("relay_ssh2/session.c", "relay_ssh2/session.pyx", "relay_ssh2/ext/find_eol.h", "relay_ssh2/__init__.py"),
        *("licenses/ssh2-python-LGPL-2.1.txt", "licenses/libssh2-BSD-3-Clause.txt", "licenses/Apache-2.0.txt"),
    ):
        assert name in found, name
    assert b"LIBSSH2_RELAY_BUILD" in found["libssh2/include/libssh2.h"], "the patches were applied"
    assert {name.removeprefix("patches/") for name in found if name.startswith("patches/")} == {
        path.name for path in (ROOT / "native/patches").iterdir()
    }
    included = {name for text in found.values() for name in re.findall(rb'#\s*include "([\w/.]+)"', text) if not name.startswith(b"..")}
    there = {Path(name).name for name in found}
    missing = {name.decode() for name in included if Path(name.decode()).name not in there}
    assert not {name for name in missing if name.startswith(("libssh2", "relay", "find"))}, missing


def test_without_openssl_headers_the_build_says_in_one_line_what_to_install(sources: tuple[Path, Path], tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(sources[1], tree)
    (tmp_path / "cc").write_text('#!/bin/sh\ncase "$*" in *probe.c*) exit 1 ;; esac\nexec cc "$@"\n')
    (tmp_path / "cc").chmod(0o755)
    built = subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        cwd=tree,
        env={**os.environ, "CC": str(tmp_path / "cc")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 1
    said = built.stderr.splitlines()[-1]
    needed = "a C compiler with the headers of OpenSSL 1.1.1 or later is needed"
    assert said.startswith(f"git-ssh-relay-native: {needed}: apt-get install gcc libssl-dev")
    assert not list(tree.rglob("*.so"))


# -- wheels ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with the wheels of both distributions and of all that they need."""
    if shutil.which("cc") is None:
        pytest.skip("a C compiler is missing: the native part cannot be built")
    stamp = THIRD_PARTY / ".stamp"
    wanted = (ROOT / "requirements/run.txt").read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(THIRD_PARTY, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
        command += ["--only-binary", ":all:", "--dest", str(THIRD_PARTY), "-r", str(ROOT / "requirements/run.txt")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"the wheels of other projects cannot be downloaded here: {done.stderr.strip().splitlines()[-1]}")
        stamp.write_text(wanted)
    names = script("wheels").splitlines()[-1].partition("in dist/: ")[2].split()
    folder = tmp_path_factory.mktemp("wheels")
    for path in (*(DIST / name for name in names), *THIRD_PARTY.glob("*.whl")):
        (folder / path.name).symlink_to(path)
    return folder


def test_the_native_wheel_is_a_manylinux_wheel_that_brings_its_libcrypto(wheels: Path) -> None:
    [wheel] = wheels.glob("git_ssh_relay_native-*.whl")
    assert re.search(r"-manylinux_2_\d+_x86_64\.whl$", wheel.name) or os.uname().machine != "x86_64", wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [sbom] = [name for name in names if name.endswith("/sboms/auditwheel.cdx.json")]
        assert b"libssl3" in archive.read(sbom), "the wheel names the package that its libcrypto came from"
    assert any(name.startswith("git_ssh_relay_native.libs/libcrypto-") for name in names)
    assert "relay_ssh2/librelay_ssh2.so" in names, "under its own name, so that it can be replaced"
    assert not any(name.startswith(("ssh2/", "relay/")) for name in names), "nothing of other distributions"
    assert {Path(name).name for name in names if "/licenses/" in name} >= {"ssh2-python-LGPL-2.1.txt", "libssh2-BSD-3-Clause.txt"}


def test_a_bare_environment_gets_the_hardened_relay_from_a_folder_of_wheels(wheels: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    python = tmp_path / "bare/bin/python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--find-links", str(wheels), "git-ssh-relay[native]"]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    assert (tmp_path / "bare/share/man/man1/relay.1").read_text() == (ROOT / "docs/relay.1").read_text(), "man finds it beside bin"
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RELAY_LIBSSH2", "RELAY_WIRE")}
    code = """
import relay, relay_gcm, relay_ssh2, ssh2
from relay.process import native_parts
from relay.upstream.libssh2 import loaded_library
print(native_parts.used(), native_parts.warning(), loaded_library(), sep="|")
print(*sorted({line.split()[-1].rpartition("/")[0] for line in open("/proc/self/maps") if "libcrypto" in line}))
"""
    loaded = subprocess.run([python, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr
    named, crypto = loaded.stdout.splitlines()
    assert re.fullmatch(r"\['libssh2', 'gcm'\]\|\|1\.11\.1\+relay-\d+", named)
    assert f"{tmp_path}/bare/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/git_ssh_relay_native.libs" in crypto
    demo = [str(tmp_path / "bare/bin/relay"), "demo", "--once"]
    tried = subprocess.run(demo, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert "libssh2 1.11.1+relay-" in tried.stdout
