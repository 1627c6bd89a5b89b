"""The floors of relay/: imports go down only, no circle, one importer for each third-party transport, and a test file for every module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the top. A module imports only modules of lower floors, or of its own package. A package is named once, for all its modules.
FLOORS: tuple[set[str], ...] = (
    {"__main__"},
    {"cli"},
    {"commands", "demo"},
    {"process"},
    {"wiring"},
    {"server"},
    {"connection"},
    {"session", "preflight"},
    {"access", "routes", "ssh"},
    {"keys", "shared"},
    {"intercept"},
    {"packs"},
    {"admission", "backends", "observe", "splice", "upstream"},
    {"replay", "stall_watch"},
    {"git"},
    {"events"},
    {"config", "model", "openssh"},
    {"address", "errors", "gathering", "tasks", "text"},
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}

OBSERVERS = {"observe.metrics", "observe.audit", "observe.admin", "observe.tracing"}  # the server knows only the Observer interface
WIRING = {"cli", "commands", "demo", "observe", "process"}
BACKENDS = {"keys", "access", "routes"}  # other modules know their Protocols only

# a package: all in it
SOLE_IMPORTER = {
    "prometheus_client": "observe.metrics",
    "ssh2": "upstream.libssh2",
    "relay_ssh2": "upstream.libssh2",
    "redis": "backends.redis",
    "relay_gcm": "ssh.gcm",
    "opentelemetry": "observe.tracing",
}


def modules() -> dict[str, Path]:
    """Dotted name below `relay` -> file; a package's own name means its __init__."""
    found = {}
    for path in sorted((ROOT / "relay").rglob("*.py")):
        parts = path.relative_to(ROOT / "relay").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found.pop("")  # relay/__init__.py
    return found


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import at run time, also within functions."""
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse  # imports for mypy only: not run
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
            while imported and imported not in known:  # the last part may be a name in a module
                imported = imported.rpartition(".")[0]
            if imported:
                yield f"{path.relative_to(ROOT)}:{line}", importer, imported


def package(name: str) -> str:
    return name.partition(".")[0]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "relay").with_suffix("").parts)


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
            if package(imported) in BACKENDS and "." in imported.replace(".open", "") and package(importer) != package(imported)
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


def test_every_module_has_its_test_file() -> None:
    missing = []
    for path in modules().values():
        if path.name in ("__init__.py", "__main__.py"):
            continue
        name = "test_contract.py" if path.name == "open.py" and package(name_of(path)) in BACKENDS else f"test_{path.name}"
        mirror = ROOT / "tests" / path.relative_to(ROOT / "relay").with_name(name)
        if not mirror.exists() or not ("def test_" in mirror.read_text() or "TestCase" in mirror.read_text()):
            missing.append(f"{path.relative_to(ROOT)} has no tests in {mirror.relative_to(ROOT)}")
    complain(missing)


def test_the_rules_see_what_they_forbid(tmp_path: Path) -> None:
    """The reader of imports finds every form of an import."""
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


def test_the_root_tells_the_story() -> None:
    files = sorted(path.name for path in (ROOT / "relay").glob("*.py"))
    assert len(files) <= 18, f"{len(files)} files lie flat in relay/: {files}"


def test_no_imports_go_in_a_circle_annotations_included() -> None:
    """Imports for mypy alone count as well: a reader must follow them."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for importer, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                imported = name.removeprefix("relay.") if name.startswith("relay.") else ""
                while imported and imported not in known:
                    imported = imported.rpartition(".")[0]
                if imported and imported != importer:
                    graph.setdefault(importer, set()).add(imported)
    problems: list[str] = []
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            problems.append(" -> ".join([*way[way.index(name) :], name]))
        elif name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, [*way, name])
            done.add(name)

    for name in sorted(known):
        visit(name, [])
    complain(problems)
