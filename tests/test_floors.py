"""The floors of DESIGN.md section 2: imports go down only, edges have one importer each, and every module has its test file."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the top. A module imports only what stands on a lower floor, or in its own package. A package is named once, for all in it.
FLOORS: tuple[set[str], ...] = (
    {"__main__"},
    {"cli"},
    {"watching"},
    {"screen"},
    {"demo", "sessions", "checks", "init", "health"},  # what the commands other than serve do
    {"supervisor"},
    {"worker_process", "sockets", "console", "worker"},  # the supervisor's parts, and what runs in the processes it starts
    {"server", "metrics", "audit", "admin"},
    {"proxy_door"},
    {"connection"},
    {"session", "load", "case_probe"},
    {"channel", "transport"},
    {"userauth"},
    {"kexinit"},
    {"packets"},
    {"bulk", "wire"},
    {"gcm"},
    {"access", "routes"},
    {"keys", "upstream"},  # access rules name identities, so keys stand below them
    {"gate"},
    {"refs"},
    {"shared"},
    {"clients", "cache", "client_key", "limits", "audit_text", "live"},
    {"audit_lines"},
    {"splice", "command", "proxy_protocol", "algorithms", "control", "ask", "globs", "coverage", "log", "private_key", "schema", "watch"},
    {"public_key", "push", "fetch", "turn", "host_words"},
    {"address", "descriptors", "events", "pktline", "memory", "sd", "slots", "snapshot", "tables", "tallies", "tasks"},
    {"config", "model", "names", "errors", "farewell", "human", "terminal", "toml_lines", "trust"},
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}

OBSERVERS = {"metrics", "audit", "admin"}  # beside the server, which tells an Observer and knows none of them
WIRING = {"cli", "supervisor", "worker", "demo"}
BACKENDS = {"keys", "access", "routes"}  # everybody else knows their Protocols only

# a package: all in it
SOLE_IMPORTER = {"prometheus_client": "metrics", "ssh2": "upstream.libssh2", "redis": "clients.redis", "relay_gcm": "gcm"}


def modules() -> dict[str, Path]:
    """Dotted name below `relay` -> file; a package's own name stands for its __init__."""
    found = {}
    for path in sorted((ROOT / "relay").rglob("*.py")):
        parts = path.relative_to(ROOT / "relay").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found.pop("")  # relay/__init__.py
    return found


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that is imported at run time, within functions too."""
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse  # names for mypy: nothing is imported
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports are absolute here"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        pending += ast.iter_child_nodes(node)


def edges() -> Iterator[tuple[str, str, str]]:
    """(where, importer, imported) for every import of one module of `relay` by another."""
    known = modules()
    for importer, path in known.items():
        for line, name in imports(path):
            if not name.startswith("relay."):
                continue
            imported = name.removeprefix("relay.")
            while imported and imported not in known:  # from a module it may be a name
                imported = imported.rpartition(".")[0]
            if imported:
                yield f"{path.relative_to(ROOT)}:{line}", importer, imported


def package(name: str) -> str:
    return name.partition(".")[0]


def complain(problems: list[str]) -> None:
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def test_every_module_stands_on_a_floor() -> None:
    homeless = sorted({package(name) for name in modules()} - set(FLOOR))
    complain([f"relay/{name} stands on no floor: place it in FLOORS of tests/test_floors.py" for name in homeless])


def test_imports_go_down() -> None:
    problems = []
    for where, importer, imported in edges():
        above, below = package(importer), package(imported)
        if above != below and above in FLOOR and below in FLOOR and FLOOR[above] >= FLOOR[below]:
            problems.append(f"{where}: {importer} must not import {imported}, which stands on {_compare(above, below)}")
    complain(problems)


def _compare(above: str, below: str) -> str:
    return "the same floor" if FLOOR[above] == FLOOR[below] else "a higher floor"


def test_only_the_wiring_knows_the_observers() -> None:
    complain(
        [
            f"{where}: {importer} must not import {imported}, only {', '.join(sorted(WIRING))} may"
            for where, importer, imported in edges()
            if imported in OBSERVERS and package(importer) not in WIRING
        ]
    )


def test_only_a_package_knows_its_backends() -> None:
    complain(
        [
            f"{where}: {importer} must not import {imported}: ask {package(imported)} for it"
            for where, importer, imported in edges()
            if package(imported) in BACKENDS and "." in imported and package(importer) != package(imported)
        ]
    )


def test_a_third_party_transport_has_one_importer() -> None:
    complain(
        [
            f"{path.relative_to(ROOT)}:{line}: only relay.{sole} imports {package(name)}"
            for importer, path in modules().items()
            for line, name in imports(path)
            if (sole := SOLE_IMPORTER.get(package(name))) and not f"{importer}.".startswith(f"{sole}.")
        ]
    )


def test_a_relay_that_asks_no_backend_starts_without_their_clients() -> None:
    """redis-py alone is a fifth of the time that a worker takes to start."""
    program = "import sys, relay.cli, relay.supervisor, relay.worker; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "relay.worker" in loaded
    assert not {"redis", "relay.clients.redis", "relay.clients.http"} & set(loaded)


def test_every_module_has_its_test_file() -> None:
    missing = []
    for path in modules().values():
        if path.name in ("__init__.py", "__main__.py"):
            continue
        mirror = ROOT / "tests" / path.relative_to(ROOT / "relay").with_name(f"test_{path.name}")
        if not mirror.exists() or not ("def test_" in mirror.read_text() or "TestCase" in mirror.read_text()):
            missing.append(f"{path.relative_to(ROOT)} has no tests in {mirror.relative_to(ROOT)}")
    complain(missing)


def test_the_rules_see_what_they_forbid(tmp_path: Path) -> None:
    """The reader of imports against every form that an import takes."""
    source = """
from typing import TYPE_CHECKING
import ssh2.session, os
from relay.upstream import libssh2
from relay import metrics as counted
if TYPE_CHECKING:
    from relay.cli import main
else:
    import redis
def late():
    try:
        from prometheus_client import Counter
    except ImportError:
        import relay.admin
"""
    path = tmp_path / "example.py"
    path.write_text(source)
    names = {name for _, name in imports(path)} - {"typing.TYPE_CHECKING"}
    assert names == {"ssh2.session", "os", "relay.upstream.libssh2", "relay.metrics", "redis", "prometheus_client.Counter", "relay.admin"}
