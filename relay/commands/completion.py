"""`relay completion`: a script that lets bash, zsh or fish complete the command line, written from the argument parser.

Printed, not installed as a file: an environment of its own has no folder that a shell looks into, and what is printed always fits the
version that is installed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from relay.commands.command_tree import Argument, Command

SHELLS = ("bash", "zsh", "fish")
PROGRAMS = ("relay", "git-ssh-relay")


def completion(tree: Command, shell: str) -> str:
    """The script for `shell`, one of SHELLS."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](tree)


def _walk(command: Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Command]]:
    """Each command with the words that lead to it; the program itself has none."""
    yield path, command
    for one in command.commands:
        yield from _walk(one, (*path, one.name))


def _flags(command: Command) -> list[str]:
    return [flag for option in command.options for flag in option.flags]


# -- bash --------------------------------------------------------------------------------------------------------------------


def _bash(tree: Command) -> str:
    """`at` is the path of the command so far; an option that takes a value hides the next word from it."""
    descend, hide, values, words = [], [], [], []
    for path, command in _walk(tree):
        at = " ".join(path)
        for one in command.commands:
            descend += [f"            {shlex.quote(f'{at}|{one.name}')}) at={shlex.quote(' '.join((*path, one.name)))} ;;"]
        for option in command.options:
            if not option.value or option.optional:
                continue
            patterns = "|".join(shlex.quote(f"{at}|{flag}") for flag in option.flags)
            hide.append(f"            {patterns}) ((i += {len(option.names)})) ;;")
            values.append(f"        {patterns}) {_bash_value(option)} return ;;")
        offered = [*(one.name for one in command.commands), *_flags(command), *(one for arg in command.arguments for one in arg.choices)]
        kinds = {arg.value for arg in command.arguments}
        files = " files=-f" if "file" in kinds else " files=-d" if "folder" in kinds else ""
        words.append(f"        {shlex.quote(at)}) words={shlex.quote(' '.join(offered))}{files} ;;")
    lines = "\n".join
    return f"""# bash completion of relay; for this shell: source <(relay completion bash)
_relay() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} at= words= files= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$at|${{COMP_WORDS[i]}}" in
{lines(descend)}
{lines(hide)}
        esac
    done
    COMPREPLY=()
    case "$at|$before" in
{lines(values)}
    esac
    case $at in
{lines(words)}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [[ $files && $current != -* ]]; then
        compopt -o filenames 2>/dev/null
        COMPREPLY+=($(compgen $files -- "$current"))
    fi
}}
complete -F _relay {" ".join(PROGRAMS)}
"""


def _bash_value(option: Argument) -> str:
    if option.value == "choice":
        return f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(option.choices))} -- "$current"));'
    if option.value in ("file", "folder"):
        return f'compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen {"-f" if option.value == "file" else "-d"} -- "$current"));'
    return ""


# -- zsh ---------------------------------------------------------------------------------------------------------------------


def _zsh(tree: Command) -> str:
    functions = "\n".join(_zsh_function(path, command) for path, command in _walk(tree))
    programs = " ".join(PROGRAMS)
    return f"""#compdef {programs}
# zsh completion of relay; for this shell: source <(relay completion zsh); for all: relay completion zsh > a folder of $fpath/_relay
{functions}
if [[ $funcstack[1] == _relay ]]; then _relay "$@"; else compdef _relay {programs}; fi
"""


def _zsh_function(path: tuple[str, ...], command: Command) -> str:
    name = "_".join(("_relay", *path))
    specs = [spec for option in command.options for spec in _zsh_option(option)]
    if command.commands:
        specs += ["'1: :->command'", "'*:: :->rest'"]
        listed = "\n".join(f"            {_single(f'{one.name}:{one.help}')}" for one in command.commands)
        cases = "\n".join(f"            {one.name}) {name}_{one.name} ;;" for one in command.commands)
        return f"""{name}() {{
    local context state state_descr line
    typeset -A opt_args
    _arguments -C -s {" ".join(specs)}
    case $state in
    command)
        local -a commands=(
{listed}
        )
        _describe command commands ;;
    rest)
        case $words[1] in
{cases}
        esac ;;
    esac
}}"""
    specs += [f"'{number}:{_zsh_text(_named(one))}:{_zsh_action(one)}'" for number, one in enumerate(command.arguments, 1)]
    return f"{name}() {{\n    _arguments -s {' '.join(specs)}\n}}"


def _zsh_option(option: Argument) -> Iterator[str]:
    star = "*" if option.repeated else ""
    colons = "::" if option.optional else ":"
    values = "".join(f"{colons}{_zsh_text(name)}:{_zsh_action(option)}" for name in option.names)
    apart = "" if option.repeated else f"({' '.join(option.flags)})"
    for flag in option.flags:
        yield f"'{apart}{star}{flag}[{_zsh_text(option.help)}]{values}'"


def _zsh_action(argument: Argument) -> str:
    return {"choice": f"({' '.join(argument.choices)})", "file": "_files", "folder": "_files -/"}.get(argument.value, "()")


def _zsh_text(text: str) -> str:
    """In a spec of _arguments, within single quotes."""
    return re.sub(r"([\[\]:\\])", r"\\\1", text).replace("'", "'\\''")


def _named(argument: Argument) -> str:
    return argument.help or " ".join(argument.names)


def _single(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# -- fish --------------------------------------------------------------------------------------------------------------------


def _fish(tree: Command) -> str:
    lines = ["# fish completion of relay; for all shells: relay completion fish > ~/.config/fish/completions/relay.fish"]
    for program in PROGRAMS:
        lines.append(f"complete -c {program} -f")
        for path, command in _walk(tree):
            given = [f"__fish_seen_subcommand_from {word}" for word in path]
            if command.commands:
                below = " ".join(one.name for one in command.commands)
                given.append(f"not __fish_seen_subcommand_from {below}")
            when = f" -n {_fish_text('; and '.join(given))}"
            lines += (f"complete -c {program}{when} -a {one.name} -d {_fish_text(one.help)}" for one in command.commands)
            for option in command.options:
                flags = "".join(f" -l {flag[2:]}" if flag.startswith("--") else f" -s {flag[1:]}" for flag in option.flags)
                takes = "" if not option.value or option.optional else " -r"
                lines.append(f"complete -c {program}{when}{flags}{takes}{_fish_value(option)} -d {_fish_text(option.help)}")
            lines += (f"complete -c {program}{when}{value}" for value in map(_fish_value, command.arguments) if value)
    return "\n".join(lines) + "\n"


def _fish_value(argument: Argument) -> str:
    if argument.value == "choice":
        return f" -a {_fish_text(' '.join(argument.choices))}"
    return {"file": " -F", "folder": " -a '(__fish_complete_directories)'"}.get(argument.value, "")


def _fish_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
