"""Everything that the pages name exists: links, commands and their options, make's targets, files, settings, metrics, fields."""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest

from relay.access.file import AccessFile
from relay.cli import _parser
from relay.config import Config, Policy
from relay.config.toml import TomlFault, decode
from relay.model import Route
from relay.observe.audit_lines import audit_schema
from relay.routes.file import RoutesFile, RouteTable
from tests.pages.configuration import settings
from tests.pages.messages import reasons
from tests.pages.metrics import families
from tests.pages.pages import ROOT, pages
from tests.test_floors import FLOORS

MAINTAINERS = [ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "docs/debugging.md", "docs/releasing.md")]
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(ROOT / folder / "README.md" for folder in ("deploy", "grafana", "native", "native/package", "benchmarks")),
    *pages(),
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

FOREIGN = {  # names of other programs and libraries
    "authorized_keys", "authorized_principals", "act_user", "relay_ca", "sshd_config", "gitolite_principals", "rule_files",
    "relay_gcm", "relay_ssh2", "hostkey_hash", "epoll_pwait", "CAP_SYS_PTRACE", "CFLAGS", "LIBSSH2_VERSION",
    "ss",
}  # fmt: skip
MADE = {"benchmarks/report/"}  # made by a make target
FOREIGN_PAGES = {"report.md", "batch.md", "server-discovery.md", "ssh_adapter.md"}  # a benchmark's report, and git-lfs's own

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_FILE = re.compile(r"(?<![\w./-])((?:[\w.-]+/)+[\w.-]*\w\.(?:py|md|toml|sh|patch|json|yml|yaml|cfg|c))\b")
_OUTSIDE = re.compile(r"https?://\S+|\B[~/]\S+|[A-Z]+/\S+")  # URLs, absolute paths, and placeholders
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def codes(page: Path) -> Iterator[str]:
    """The text between backquotes."""
    yield from _CODE.findall(prose(page))


def shell_lines(page: Path) -> Iterator[str]:
    """Code, and the lines of fenced shell."""
    yield from codes(page)
    for language, text in _FENCE.findall(page.read_text()):
        if language in ("sh", "console", ""):
            yield from text.replace("\\\n", " ").splitlines()


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def complain(page: Path, what: str, found: list[str]) -> None:
    if found:
        pytest.fail("\n".join(f"{page.relative_to(ROOT)}: {what}: {one}" for one in found), pytrace=False)


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(link)
    complain(page, "leads nowhere", broken)


def test_the_readme_leads_to_every_page() -> None:
    linked = set(_LINK.findall(prose(ROOT / "README.md")))
    assert {str(page.relative_to(ROOT)) for page in PAGES[1:]} <= linked


@each_page
def test_commands_are_those_of_the_command_line(page: Path) -> None:
    known = _commands()
    wrong = []
    for line in shell_lines(page):
        if not (found := re.match(r"(?:\S*/bin/)?relay ([a-z]+)\b(.*)", line)):
            continue
        options = set(re.findall(r"(?<= )--?[a-z][a-z-]*", found[2].partition(" #")[0]))
        if found[1] not in known or not options <= known[found[1]]:
            wrong.append(line)
    complain(page, f"no such command or option (there are {', '.join(known)})", wrong)


@cache
def _commands() -> dict[str, set[str]]:
    (commands,) = [action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: _options(one) for name, one in commands.choices.items()}


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """A command's options, with those of its actions, such as `relay upstreams pause`."""
    options = set(chain.from_iterable(action.option_strings for action in parser._actions))
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            options.update(*(_options(one) for one in action.choices.values()))
    return options


@each_page
def test_what_is_made_has_a_target(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [found[1] for line in shell_lines(page) if (found := re.match(r"make ([a-z-]+)\b", line))]
    complain(page, "make has no such target", [name for name in named if name not in targets])


@each_page
def test_files_of_this_repository_exist(page: Path) -> None:
    named = [
        text.partition(" ")[0] for text in codes(page) if re.match(r"(relay|docs|deploy|grafana|native|scripts|tests|benchmarks)/", text)
    ]
    complain(page, "no such file", [name for name in named if not (ROOT / name).exists() and name not in MADE])


def tracked(*patterns: str, new: bool = True) -> list[Path]:
    """Files of the repository; with `new` also untracked files that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", *(["--others", "--exclude-standard"] if new else []), "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return sorted(path for name in set(listed.stdout.split("\0")) if name and (path := ROOT / name).is_file())


def test_every_page_of_the_repository_is_checked() -> None:
    assert set(tracked("*.md", new=False)) - {ROOT / "CHANGELOG.md"} == set(PAGES)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    """Every `folder/file.py` and the like, in prose, code and fenced lines: relative to the repository or to the page's folder."""
    named = _FILE.findall(_OUTSIDE.sub("", page.read_text()))
    complain(page, "no such file", [name for name in named if not (ROOT / name).exists() and not (page.parent / name).exists()])


def test_no_file_refers_to_a_page_that_is_not_there() -> None:
    """The tests above check links in pages; this one checks comments, docstrings and configuration."""
    names = {page.name for page in tracked("*.md")} | FOREIGN_PAGES
    wrong = []
    for path in tracked():
        if path.suffix in (".md", ".patch", ".png") or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            named = re.findall(r"\b[A-Za-z_-]+\.md\b", line)
            wrong += [f"{path.relative_to(ROOT)}:{number}: {name}" for name in named if name not in names]
    if wrong:
        pytest.fail("\n".join(["no such page in this repository:", *wrong]), pytrace=False)


class Kind(NamedTuple):
    """A class of relay/, or several of one name."""

    bases: set[str]
    names: set[str]  # of its methods and attributes


@cache
def kinds() -> dict[str, Kind]:
    found: dict[str, Kind] = {}
    for path in tracked("relay/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases, names = found.setdefault(node.name, Kind(set(), set()))
                bases.update(base.id for base in node.bases if isinstance(base, ast.Name))
                for one in ast.walk(node):
                    if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
                        names.add(one.name)
                    elif isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == "self":
                        names.add(one.attr)
                    elif isinstance(one, ast.AnnAssign | ast.Assign):
                        targets = one.targets if isinstance(one, ast.Assign) else [one.target]
                        names.update(target.id for target in targets if isinstance(target, ast.Name))
    return found


def has(kind: str, name: str) -> bool:
    """Whether the class, or a base class, has a method or an attribute of this name."""
    known = kinds().get(kind)
    return known is not None and (name in known.names or any(has(base, name) for base in known.bases))


@cache
def words() -> set[str]:
    """All words in the sources, also in tests, native/ and configuration."""
    read = (path.read_text(errors="replace") for path in tracked() if path.suffix not in (".md", ".png"))
    return set(chain.from_iterable(re.findall(r"\w+", text) for text in read))


@pytest.mark.parametrize("page", MAINTAINERS, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_of_the_code_exist(page: Path) -> None:
    """`Class.method`, `Class`, `CONSTANT`, `function`, `_private`."""
    wrong = []
    for text in codes(page):
        if found := re.fullmatch(r"([A-Z][a-z]\w*)\.(\w+)", text):
            if not has(found[1], found[2]):
                wrong.append(text)
        elif re.fullmatch(r"[A-Za-z_]\w*(\(\))?", text) and text.removesuffix("()") not in words() | FOREIGN:
            wrong.append(text)
    complain(page, "the code has no such name", wrong)


def test_a_name_that_is_gone_is_noticed() -> None:
    assert has("Streams", "_pump") and has("Connection", "_pump"), "a method of its own, and one of a class that it is made from"
    assert not has("Streams", "_pumps") and not has("Stream", "_pump")


def floors(page: Path) -> list[set[str]]:
    section = page.read_text().partition("\n## Floors\n")[2].partition("\n## ")[0]
    return [set(re.findall(r"`(\w+)`", line)) for line in re.findall(r"^\d+\. (.*)$", section, re.MULTILINE)]


def test_the_floors_of_the_page_are_those_of_the_test() -> None:
    assert floors(ROOT / "ARCHITECTURE.md") == list(FLOORS)


@each_page
def test_tables_and_their_settings_exist(page: Path) -> None:
    """`[limits]`, `[limits] stall_seconds` and `[limits] stall_seconds = 300`."""
    known = settings()
    files = {"groups": set[str](), "rule": set[str](), "route": set(RouteTable.__struct_fields__)}  # tables of the other files
    wrong = []
    for text in codes(page):
        if not (found := re.fullmatch(r"\[+([a-z_]+(?:\.[A-Za-z_]+)*)\]+(?: ([a-z_]+)(?: = .*)?)?", text)):
            continue
        name = re.sub(r"^upstreams\.\w+", "upstreams.NAME", found[1])
        if name not in known.keys() | files.keys() or (found[2] and found[2] not in known.get(name, files.get(name, ()))):
            wrong.append(text)
    complain(page, "no such setting", wrong)


@each_page
def test_names_with_an_underscore_exist(page: Path) -> None:
    """Settings, fields of the audit, reasons, metrics, the values of their labels, and modules."""
    known = {path.stem for path in (ROOT / "relay").rglob("*.py")} | reasons() | FOREIGN
    known.update(chain.from_iterable(settings().values()), Route.__struct_fields__, get_args(Policy))
    known.update(re.findall(r'"(\w+)"', json.dumps(audit_schema())))
    for family in families():
        known.update(family.name + suffix for suffix in ("_total" if family.kind == "counter" else "", *(one[0] for one in family.samples)))
        known.update(word for _, labels, _ in family.samples for label in labels for word in label)
    if page in MAINTAINERS:
        known |= words()
    named = [text.partition(" = ")[0].partition("{")[0] for text in codes(page) if re.match(r"[a-z0-9]+(_[a-z0-9]+)+( = |\{|$)", text)]
    complain(page, "nothing has this name", [name for name in named if name not in known])


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "backends.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_toml_is_valid(page: Path) -> None:
    """Each example by itself, as the file that it names, else as a part of relay.toml. The backends' page has its own test."""
    wrong = []
    for language, text in _FENCE.findall(page.read_text()):
        if language != "toml":
            continue
        kind: Any = AccessFile if "# access.toml" in text else RoutesFile if "# routes.toml" in text else Config
        table = tomllib.loads(text)
        faults: list[TomlFault] = []
        decode(kind, {"upstreams": {"main": {"addresses": ["a:22"]}}, **table} if kind is Config else table, faults)
        wrong += [f"{fault.key}: {fault.text}" for fault in faults if not fault.text.startswith("is missing")]
    complain(page, "an example is not valid", wrong)
