"""The manual page relay(1), in man(7), written from the argument parser."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from relay.commands.command_tree import Argument, Command

DESCRIPTION = (
    "Clients connect to the relay as to a git server; it identifies people by their public keys, checks what each may read or write, "
    "finds the git host that has the repository, and carries the bytes there over a connection that is already open. "
    "All settings are in one TOML file."
)
PROGRAM = "relay"
FILES = (
    ("relay.toml", "The configuration that a command reads without -c, if it is in the current folder."),
    ("/etc/relay/relay.toml", "The one that it reads otherwise."),
)
STATUS = (
    ("0", "Success."),
    ("1", "Problems, which were printed, one line each; with check --explain the answer no; with health not ready."),
    ("2", "A command line that is not understood."),
    ("130", "Ended by Ctrl-C."),
    ("141", "The reader of the output, as a pager, has closed it."),
)
ENVIRONMENT = (
    ("RELAY_LIBSSH2", "With the value stock: the libssh2 of ssh2-python's wheel is used though git-ssh-relay-native is installed."),
    ("RELAY_HUGE_PAGES", "With the value 0: workers do not move their memory into huge pages (madvise(2)) when they begin to serve."),
    ("RELAY_WIRE", "With the value python packets are encrypted without relay_gcm; with 0 by asyncssh, which then does key exchanges too."),
)


def manual(tree: Command, version: str) -> str:
    """The page. `tree` is that of the whole command line."""
    return "\n".join(_lines(tree, version)) + "\n"


def _lines(tree: Command, version: str) -> Iterator[str]:
    yield f'.TH {tree.name.upper()} 1 "" "git-ssh-relay {_text(version)}" "User Commands"'
    yield from (".nh", ".ad l")  # names and options are neither divided nor drawn apart
    yield from (".SH NAME", f"{tree.name} \\- {_text(tree.help[0].lower() + tree.help[1:].rstrip('.'))}")
    yield ".SH SYNOPSIS"
    for number, path in enumerate(_paths(tree)):
        if number:
            yield ".br"
        yield _usage(path)
    yield from (".SH DESCRIPTION", *_wrapped(DESCRIPTION))
    yield from (".SH OPTIONS", *_arguments(tree))
    yield ".SH COMMANDS"
    for path in _paths(tree):
        command = path[-1]
        yield f".SS {_text(' '.join(one.name for one in path[1:]))}"
        yield from (*_wrapped(_sentence(command.help)), *_arguments(command))
    for title, rows in (("FILES", FILES), ("ENVIRONMENT", ENVIRONMENT), ("EXIT STATUS", STATUS)):
        yield f".SH {title}"
        for head, text in rows:
            yield from (".TP", f".B {_text(head)}", *_wrapped(text))
    yield from (".SH SEE ALSO", ".BR git (1),", ".BR ssh (1),", ".BR sshd (8)")


def _paths(command: Command, above: tuple[Command, ...] = ()) -> Iterator[tuple[Command, ...]]:
    """Each command that can be run, with those above it."""
    path = (*above, command)
    if not command.needs_command:
        yield path
    for one in command.commands:
        yield from _paths(one, path)


def _usage(path: tuple[Command, ...]) -> str:
    command = path[-1]
    words = [f"\\fB{_text(' '.join(one.name for one in path))}\\fR"]
    shown = [option for option in command.options if "--help" not in option.flags]
    words += (f"[{_flag(option.flags[-1])}{_values(option)}]{'...' if option.repeated else ''}" for option in shown)
    return " ".join([*words, *(_values(one).strip() for one in command.arguments)])


def _arguments(command: Command) -> Iterator[str]:
    for one in (*command.arguments, *command.options):
        if one.help and not (command.name != PROGRAM and "--help" in one.flags):  # which each command has
            head = ", ".join(map(_flag, one.flags)) + _values(one)
            yield from (".TP", head.strip(), *_wrapped(_sentence(one.help)))


def _flag(flag: str) -> str:
    return f"\\fB{_text(flag)}\\fR"


def _values(argument: Argument) -> str:
    text = "".join(f" \\fI{_text(name)}\\fR" for name in argument.names)
    return f" [{text.strip()}]" if argument.optional else text


def _wrapped(text: str) -> list[str]:
    return [_text(line) for line in textwrap.wrap(text, 66)]  # mandoc objects to more than 80, and some characters take up to four


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")


def _text(text: str) -> str:
    r"""As troff reads it: \ and - are characters of their own, and a dot or a quote that begins a line would be a request."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
