"""Which binding a process gets: the hardened one where it can be loaded, else that of ssh2-python, and why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from relay.upstream.libssh2 import binding
from tests.native import client

ROOT = Path(__file__).parents[3]
# the module without its package, whose import takes half a second
LOAD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("binding", sys.argv[1])
binding = importlib.util.module_from_spec(spec)
spec.loader.exec_module(binding)
print(binding.Session.__module__, binding.exceptions.__name__, binding.LIBRARY, binding.WHY_STOCK)
"""


def loaded(env: dict[str, str]) -> str:
    command = [sys.executable, "-c", LOAD, str(ROOT / "relay/upstream/libssh2/binding.py")]
    clean = {name: value for name, value in os.environ.items() if name not in ("RELAY_LIBSSH2", "PYTHONPATH")}
    done = subprocess.run(command, env=clean | env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_stock_is_used_when_asked_for() -> None:
    assert loaded({"RELAY_LIBSSH2": "stock"}) == "ssh2.session ssh2.exceptions libssh2 RELAY_LIBSSH2=stock asks for it"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (
            "raise ModuleNotFoundError(\"No module named 'relay_ssh2'\", name='relay_ssh2')",
            "git-ssh-relay-native is not installed",
        ),
        (
            "raise ImportError('libcrypto.so.3: cannot open shared object file')",
            "relay_ssh2 cannot be loaded: libcrypto.so.3: cannot open shared object file",
        ),
        ("", "relay_ssh2 cannot be loaded: No module named 'relay_ssh2.session'"),
    ],
    ids=["missing", "no libcrypto", "half installed"],
)
def test_stock_is_used_where_the_hardened_one_cannot_be_loaded(tmp_path: Path, source: str, why: str) -> None:
    (tmp_path / "relay_ssh2").mkdir()
    (tmp_path / "relay_ssh2/__init__.py").write_text(source)
    assert loaded({"PYTHONPATH": str(tmp_path)}) == f"ssh2.session ssh2.exceptions libssh2 {why}"


@pytest.mark.parametrize(
    ("stock", "source", "why"),
    [
        (
            False,
            "raise ModuleNotFoundError(\"No module named 'ssh2'\", name='ssh2')",
            "git-ssh-relay-native is not installed; ssh2-python is not installed; pip install 'git-ssh-relay[native]'",
        ),
        (
            False,
            "raise ImportError('libssh2.so.1: cannot open shared object file')",
            "git-ssh-relay-native is not installed; ssh2-python cannot be loaded: libssh2.so.1: cannot open shared object file; "
            "pip install 'git-ssh-relay[native]'",
        ),
        (
            True,
            "raise ModuleNotFoundError(\"No module named 'ssh2'\", name='ssh2')",
            "RELAY_LIBSSH2=stock asks for ssh2-python; ssh2-python is not installed; pip install ssh2-python, or unset RELAY_LIBSSH2",
        ),
    ],
    ids=["missing", "no library", "stock is asked for"],
)
def test_where_neither_can_be_loaded_one_line_says_so(tmp_path: Path, stock: bool, source: str, why: str) -> None:
    missing = "raise ModuleNotFoundError(\"No module named 'relay_ssh2'\", name='relay_ssh2')"
    for name, text in (("relay_ssh2", missing), ("ssh2", source)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    env = {name: value for name, value in os.environ.items() if name != "RELAY_LIBSSH2"} | ({"RELAY_LIBSSH2": "stock"} if stock else {})
    command = [sys.executable, "-c", LOAD, str(ROOT / "relay/upstream/libssh2/binding.py")]
    done = subprocess.run(command, env=env | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}, capture_output=True, text=True, check=False)
    assert done.stdout == "" and done.stderr.endswith(f"relay.errors.ConfigError: no libssh2 for {sys.executable}: {why}\n")


def test_the_hardened_one_is_used_where_it_is_installed() -> None:
    pytest.importorskip("relay_ssh2", reason="git-ssh-relay-native is not installed")
    assert loaded({}) == "relay_ssh2.session relay_ssh2.exceptions librelay_ssh2"


def test_the_tests_of_the_library_drive_the_same_binding() -> None:
    assert client.LIBRARY == binding.LIBRARY
    assert client.Session is binding.Session


def test_both_bindings_are_in_one_process_without_touching_each_other() -> None:
    """What one raises is not what the other one's users catch, and each has its library."""
    pytest.importorskip("relay_ssh2", reason="git-ssh-relay-native is not installed")
    code = """
import relay_ssh2.session, relay_ssh2.exceptions, relay_ssh2.utils, ssh2.session, ssh2.exceptions, ssh2.utils
for mine, other in ((ssh2, relay_ssh2), (relay_ssh2, ssh2)):
    assert mine.session.Session().__class__ is not other.session.Session
    try:
        mine.utils.handle_error_codes(-18)
    except other.exceptions.SSH2Error:
        raise SystemExit("caught as the other's")
    except mine.exceptions.AuthenticationError as error:
        print(type(error).__module__)
with open("/proc/self/maps") as maps:
    names = {line.rstrip().rpartition("/")[2].partition("-")[0].partition(".")[0] for line in maps if "/lib" in line}
print(*sorted(name for name in names if name.startswith("lib") and "ssh2" in name))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["ssh2.exceptions", "relay_ssh2.exceptions", "librelay_ssh2 libssh2"]
