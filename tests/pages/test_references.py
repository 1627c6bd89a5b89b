"""What the pages name exists: links, commands and their options, make's targets, files, settings, metrics, fields."""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import pytest

from relay.access.file import AccessFile
from relay.cli import _parser
from relay.config import Config, Policy
from relay.config.toml import TomlFault, decode
from relay.model import Route
from relay.observe.audit_lines import audit_schema
from relay.routes.file import RoutesFile
from tests.pages.configuration import settings
from tests.pages.messages import reasons
from tests.pages.metrics import families
from tests.pages.pages import ROOT, pages

PAGES = [ROOT / "README.md", *(ROOT / folder / "README.md" for folder in ("deploy", "grafana", "native", "benchmarks")), *pages()]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

FOREIGN = {"authorized_keys", "rule_files"}  # names of other programs
MADE = {"benchmarks/report/"}  # by a target

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def codes(page: Path) -> Iterator[str]:
    """What stands between backquotes."""
    yield from _CODE.findall(prose(page))


def shell_lines(page: Path) -> Iterator[str]:
    """Code, and the lines of fenced shell."""
    yield from codes(page)
    for language, text in _FENCE.findall(page.read_text()):
        if language in ("sh", "console", ""):
            yield from text.replace("\\\n", " ").splitlines()


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
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
    return {name: set(chain.from_iterable(action.option_strings for action in one._actions)) for name, one in commands.choices.items()}


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


@each_page
def test_tables_and_their_settings_exist(page: Path) -> None:
    """`[limits]`, `[limits] stall_seconds` and `[limits] stall_seconds = 300`."""
    known = settings()
    files = {"groups": set[str](), "rule": set[str](), "route": set[str]()}  # of the other files
    wrong = []
    for text in codes(page):
        if not (found := re.fullmatch(r"\[+([a-z_]+(?:\.[A-Za-z_]+)*)\]+(?: ([a-z_]+)(?: = .*)?)?", text)):
            continue
        name = re.sub(r"^upstreams\.\w+", "upstreams.NAME", found[1])
        if name not in known.keys() | files.keys() or (found[2] and found[2] not in known.get(name, ())):
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
    named = [text.partition(" = ")[0].partition("{")[0] for text in codes(page) if re.match(r"[a-z0-9]+(_[a-z0-9]+)+( = |\{|$)", text)]
    complain(page, "nothing has this name", [name for name in named if name not in known])


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "backends.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_toml_is_valid(page: Path) -> None:
    """Each example by itself, as the file that it says it is, else as a part of relay.toml. The backends' page has its own test."""
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
