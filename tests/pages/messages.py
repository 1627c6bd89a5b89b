"""Every text that a client may read, and every warning of the log, collected from the code; `…` stands for a variable part.

Few calls send a text to a client ("doors"): a RelayError's `message`, a disconnect, a farewell, a refused channel, a banner, a greeting,
git's report of a push. This module finds the doors by name in the syntax tree; a text that reaches one of them through a variable must
come from another door.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

from relay import errors
from relay.admission import farewell
from relay.config import Config
from relay.git import refs
from tests.pages.pages import ROOT

VARIES = "…"

# function, with its module if it is a door only there -> the position of the argument that the client reads
DOORS = {
    "DisconnectError": 1,
    "ChannelOpenError": 1,
    "disconnect": 1,
    "send_channel_open_failure": 2,
    "_send_disconnect": 1,
    "send_auth_banner": 0,
    "client_connection._end": 0,
    "connection._send_banner": 0,
    "connection.end": 1,
    "server.end": 1,
    "session._notice": 0,
    "command._refuse": 0,  # prepends "relay: "
    "BadName": 0,  # prepends "relay: ", too
}
PREFIX = {"command._refuse": "relay: ", "BadName": "relay: "}
LEVELS = ("debug", "info", "warning", "error", "exception", "critical", "log")
WARNINGS = ("warning", "error", "exception", "critical", "log")  # log: chooses its level at run time

_PERCENT = re.compile(r"%[#0\- +]*\d*(?:\.\d+)?[srdfgx]")


@cache
def client_messages() -> set[str]:
    found = {kind.message for kind in _kinds(errors.RelayError) if kind.message}
    found.add(re.sub(r"\{\w+\}", VARIES, Config(upstreams={}).greeting))
    found.update(value for name, value in vars(refs).items() if name.isupper() and isinstance(value, str))  # for git's report of a push
    found.update(text for _, text in farewell.TEXTS.values())
    for path, tree in _modules():
        if path.parts[0] not in ("demo", "upstream"):
            found.update(_of_module(path, tree))
    return found


@cache
def reasons() -> set[str]:
    """The reasons of failed sessions, as in the audit."""
    found = {kind.reason for kind in _kinds(errors.RelayError)}
    for _, tree in _modules():
        given = (word.value for call in _calls(tree) for word in call.keywords if word.arg == "reason")
        found.update(value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str))
    return found | {f"undecided_{why}" for why in get_args(errors.Why)}


@cache
def log_lines(levels: tuple[str, ...] = LEVELS) -> set[str]:
    """The log lines that have a text besides their variable parts."""
    found = set()
    for _, tree in _modules():
        for call in _calls(tree):
            function = call.func
            if isinstance(function, ast.Attribute) and ast.unparse(function.value) == "_log" and function.attr in levels:
                text = _template(call.args[1 if function.attr == "log" else 0])
                text = re.sub(f"{VARIES}+", VARIES, _PERCENT.sub(VARIES, text or ""))
                if re.search(r"\w{3}", text):
                    found.add(text)
    return found


def _kinds(kind: type[errors.RelayError]) -> Iterator[type[errors.RelayError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


@cache
def _modules() -> list[tuple[Path, ast.Module]]:
    return [(path.relative_to(ROOT / "relay"), ast.parse(path.read_text())) for path in sorted((ROOT / "relay").rglob("*.py"))]


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _of_module(path: Path, tree: ast.Module) -> Iterator[str]:
    for function, call in _calls_in_functions(tree):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
        door = _door(path, name)
        handed = [word.value for word in call.keywords if word.arg == "message" and hasattr(errors, name)]
        if door is not None and len(call.args) > DOORS[door]:
            handed.append(call.args[DOORS[door]])
        for value in handed:
            text = _template(value)
            if text is not None and re.search(r"\w", text.replace(VARIES, "").removeprefix("relay: ")):
                yield PREFIX.get(door or "", "") + text
            elif not _passed_on(value, function, path):
                where = f"relay/{path}:{value.lineno}"
                raise AssertionError(f"{where}: a client may read {ast.unparse(value)}, which is no text: name the way there in DOORS")


def _door(path: Path, name: str) -> str | None:
    return next((door for door in (name, f"{path.stem}.{name}") if door in DOORS), None)


def _passed_on(value: ast.expr, function: ast.FunctionDef | ast.AsyncFunctionDef | None, path: Path) -> bool:
    """Whether the text comes from another door, from an error's message (a DisconnectError's reason), or from a setting."""
    if function is not None and _door(path, function.name) is not None:
        parameters = {one.arg for one in function.args.args}
        return {node.id for node in ast.walk(value) if isinstance(node, ast.Name)} <= parameters
    return ast.unparse(value).endswith((".message", "error.reason", ".banner_lines"))


def _calls_in_functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef | None, ast.Call]]:
    inside: dict[ast.Call, ast.FunctionDef | ast.AsyncFunctionDef] = {}
    for node in ast.walk(tree):  # outer functions come first
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside.update(dict.fromkeys(_calls(node), node))
    return ((inside.get(call), call) for call in _calls(tree))


def _template(value: ast.expr) -> str | None:
    """The text of a literal or f-string; None for any other expression."""
    if isinstance(value, ast.Constant):
        return str(value.value)
    if isinstance(value, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else _inserted(part) for part in value.values)
    return None


def _inserted(part: ast.expr) -> str:
    """The message itself for `{NotGit.message}`; `…` for any other value."""
    assert isinstance(part, ast.FormattedValue)
    found = re.fullmatch(r"(\w+)\.message", ast.unparse(part.value))
    return str(getattr(errors, found[1]).message) if found and hasattr(errors, found[1]) else VARIES
