"""The commands, options and arguments of an argument parser as plain data: what the manual page and shell completions are written from."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Value = Literal["", "any", "file", "folder", "choice"]


@dataclass(frozen=True)
class Argument:
    """An option, or a positional argument, whose `flags` are empty. `value`: it takes nothing, a file, one of `choices`, or anything."""

    flags: tuple[str, ...]
    help: str
    value: Value = ""
    names: tuple[str, ...] = ()  # of its values, for people
    choices: tuple[str, ...] = ()
    optional: bool = False  # its value may be left out
    repeated: bool = False


@dataclass(frozen=True)
class Command:
    name: str
    help: str
    options: tuple[Argument, ...]
    arguments: tuple[Argument, ...]
    commands: tuple[Command, ...]
    needs_command: bool


def command_tree(parser: argparse.ArgumentParser, name: str, text: str) -> Command:
    """What `parser` understands; `name` and `text` are its own, as its parent calls it."""
    options: list[Argument] = []
    arguments: list[Argument] = []
    commands: list[Command] = []
    needs = False
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            commands += (command_tree(sub, key, texts.get(key, "")) for key, sub in action.choices.items())
            needs = bool(action.required)
        elif action.option_strings:
            options.append(_argument(action))
        else:
            arguments.append(_argument(action))
    return Command(name, text, tuple(options), tuple(arguments), tuple(commands), needs)


def _argument(action: argparse.Action) -> Argument:
    kind: Value
    if action.nargs == 0:
        kind = ""
    elif action.choices is not None:
        kind = "choice"
    elif action.type is Path:
        kind = "folder" if action.dest == "directory" else "file"
    else:
        kind = "any"
    choices = tuple(map(str, action.choices or ()))
    metavar = action.metavar or (f"{{{','.join(choices)}}}" if choices else action.dest.upper())
    names = () if kind == "" else metavar if isinstance(metavar, tuple) else (metavar,)
    repeated = isinstance(action, argparse._AppendAction)
    return Argument(tuple(action.option_strings), action.help or "", kind, names, choices, action.nargs == "?", repeated)
